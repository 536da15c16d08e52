"""The checker of an attack: what users saved, and what the stores listed, make a history in which nothing forbidden may
be. Pure: the verdict depends on the observations alone.

A listing is what the disks of all buckets held at a moment when no daemon ran. The maker of a version is the bucket in
which it was captured; in every other bucket it is a replica.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from blake3 import blake3

from tests.attack.ledger import Rest, Verdict, judge

EMPTY = blake3(b"").hexdigest()
"""Every file is empty for a moment while it is written, so that this content says nothing of order."""
NULL = "null"


@dataclass(frozen=True, slots=True)
class Listed:
    """A version or marker as a store has it.

    is_whole: the stored content matches digest. completed: destinations to which it is COMPLETED by its own record.
    is_unread: its record is lost, or cannot be read, so that its name alone is known. ino: of the stored file.
    """

    key: str
    id: str
    created_ns: int
    digest: str
    maker: str
    is_marker: bool = False
    is_whole: bool = True
    completed: frozenset[str] = frozenset()
    is_unread: bool = False
    ino: int = 0

    @property
    def order(self) -> tuple[int, str]:
        return self.created_ns, self.id


Listing = Mapping[str, Sequence[Listed]]
"""The versions and markers of each bucket."""


class Kind(enum.Enum):
    LOST = "no version holds bytes that rested"
    MIXED = "a version holds bytes that nobody saved"
    SWAPPED = "a later save is listed before an earlier one"
    DOUBLED = "one save is listed twice"
    UNREPLICATED = "COMPLETED, and the destination does not have it"
    DIFFERENT = "a replica is not what its source is"
    GONE = "a version was listed, and is listed no more"
    BACKDATED = "a new version is older than one that was listed before"
    DAMAGED = "the stored content is not what was published"


@dataclass(frozen=True, slots=True)
class Violation:
    kind: Kind
    bucket: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind.name} {self.bucket}/{self.key}: {self.kind.value}: {self.what}"


@dataclass(slots=True)
class History:
    """All that was observed.

    contents: the digest of all bytes that users ever gave a file, also for a moment; and since when, at most. copied:
    digests of bytes that are kept elsewhere, and may come back at any time. up: the periods in which a daemon was
    ready. suspended: those in which versioning was suspended, so that a save replaces the one before. overwritten:
    digests of bytes that were overwritten in place where files share an inode with their version; what became of those
    is not promised.
    """

    rests: list[Rest] = field(default_factory=list)
    contents: dict[str, float] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)
    listings: list[Listing] = field(default_factory=list)
    up: list[tuple[float, float]] = field(default_factory=list)
    suspended: list[tuple[float, float]] = field(default_factory=list)
    overwritten: Collection[str] = ()
    groups_links: bool = False
    """Tree buckets: a name that joins the names of one file, or leaves them, is a new version of the same content."""


def check(history: History) -> list[Violation]:
    """Everything in a history that must not be. The last listing is from after all came to rest."""
    last = history.listings[-1]
    found = check_listings(history.listings, history.overwritten)
    found += _mixed(last, history.contents)
    again = _relinked(history) if history.groups_links else set()
    found += _doubled(last, again | (_returned(history) if history.suspended else set()))
    found += _swapped(last, history)
    found += (
        Violation(Kind.LOST, rest.bucket, rest.key, f"{rest.file.digest[:12]} for {rest.until_s - rest.since_s:.1f} s")
        for rest, verdict in verdicts(history)
        if verdict is Verdict.LOST
    )
    return list(dict.fromkeys(found))


def check_listings(listings: Sequence[Listing], overwritten: Collection[str] = ()) -> list[Violation]:
    """What the listings alone tell, in the order in which they were taken."""
    found: list[Violation] = []
    for listing in listings:
        found += _replicas(listing, overwritten)
        found += _damaged(listing, overwritten)
    for before, after in pairwise(listings):
        found += _gone(before, after)
        found += _backdated(before, after)
    return list(dict.fromkeys(found))  # a violation stays in the listings that follow


def verdicts(history: History) -> Iterable[tuple[Rest, Verdict]]:
    """What became of each content that rested at a key while versioning was enabled."""
    kept: dict[tuple[str, str], set[str]] = defaultdict(set)
    destroyed: dict[tuple[str, str], set[str]] = defaultdict(set)
    for bucket, versions in history.listings[-1].items():
        for each in versions:
            (kept if each.is_whole else destroyed)[bucket, each.key].add(each.digest)
    for rest in history.rests:
        if any(rest.since_s < until_s and since_s < rest.until_s for since_s, until_s in history.suspended):
            continue
        at = (rest.bucket, rest.key)
        yield rest, judge(rest, history.up, kept[at], destroyed[at], history.overwritten)


def out_of_step(
    listing: Listing, destinations: Mapping[str, Collection[str]], overwritten: Collection[str] = ()
) -> list[Violation]:
    """What is missing at rest. destinations: the buckets to which a bucket replicates. overwritten: digests of bytes
    that may be lost.

    Every content is everywhere; a marker where its record says so, since S3 copies none after the fact.
    """
    found = []
    there = {(bucket, each.key, each.id) for bucket, versions in listing.items() for each in versions}
    for bucket, others in destinations.items():
        for each in listing[bucket]:
            if each.maker != bucket or each.id == NULL or each.digest in overwritten:
                continue
            wanted = set(each.completed) if each.is_marker else set(others)
            found += [
                Violation(Kind.UNREPLICATED, bucket, each.key, f"{each.id} is not in {other}")
                for other in sorted(wanted)
                if (other, each.key, each.id) not in there or other not in each.completed
            ]
    return found


def _replicas(listing: Listing, overwritten: Collection[str]) -> Iterable[Violation]:
    there = {(bucket, each.key, each.id): each for bucket, versions in listing.items() for each in versions}
    for (bucket, key, version_id), each in there.items():
        if version_id == NULL:  # replaced by the next one of that id
            continue
        for other in sorted(each.completed):
            replica = there.get((other, key, version_id))
            if replica is None or not (replica.is_whole or replica.is_unread or replica.digest in overwritten):
                what = f"{version_id} is {'not in' if replica is None else 'damaged in'} {other}"
                yield Violation(Kind.UNREPLICATED, bucket, key, what)
        source = there.get((each.maker, key, version_id)) if each.maker not in (bucket, "") else None
        has_record = source is not None and (source.is_marker or source.digest)  # a user of a linked file may remove it
        if (
            source
            and has_record
            and (source.created_ns, source.digest, source.is_marker)
            != (
                each.created_ns,
                each.digest,
                each.is_marker,
            )
        ):
            yield Violation(Kind.DIFFERENT, bucket, key, f"{version_id}: {each}, but {each.maker} has {source}")


def _damaged(listing: Listing, overwritten: Collection[str]) -> Iterable[Violation]:
    for bucket, versions in listing.items():
        for each in versions:
            if not (each.is_whole or each.is_unread) and each.digest not in overwritten:
                yield Violation(Kind.DAMAGED, bucket, each.key, f"{each.id} {each.digest[:12]}")


def _gone(before: Listing, after: Listing) -> Iterable[Violation]:
    for bucket, versions in before.items():
        there = {(each.key, each.id) for each in after[bucket]}
        for each in versions:
            if each.id != NULL and (each.key, each.id) not in there:
                yield Violation(Kind.GONE, bucket, each.key, f"{each.id} {each.digest[:12]}")


def _backdated(before: Listing, after: Listing) -> Iterable[Violation]:
    for bucket, versions in before.items():
        known = {(each.key, each.id) for each in versions}
        newest = max((each.order for each in versions if each.maker == bucket and each.id != NULL), default=(0, ""))
        for each in after[bucket]:
            is_new = (each.key, each.id) not in known and each.maker == bucket and each.id != NULL
            if is_new and each.order < newest:
                yield Violation(Kind.BACKDATED, bucket, each.key, f"{each.id} is older than {newest[1]}")


def _mixed(listing: Listing, contents: Collection[str]) -> Iterable[Violation]:
    for bucket, versions in listing.items():
        for each in versions:
            is_content = not (each.is_marker or each.is_unread or each.key.endswith("/"))  # a directory has none
            if is_content and each.digest not in contents and each.digest != EMPTY:
                yield Violation(Kind.MIXED, bucket, each.key, f"{each.id} {each.digest[:12]}")


def _by_key(versions: Iterable[Listed]) -> Mapping[str, list[Listed]]:
    """The versions of each key, oldest first."""
    out: dict[str, list[Listed]] = defaultdict(list)
    for each in sorted(versions, key=lambda each: each.order):
        out[each.key].append(each)
    return out


def _relinked(history: History) -> set[tuple[str, str, str]]:
    """Bucket, key and digest of files that had other names too, for a time."""
    return {(rest.bucket, rest.key, rest.file.digest) for rest in history.rests if rest.file.names > 1}


def _returned(history: History) -> set[tuple[str, str, str]]:
    """Bucket, key and digest of content that went and came back: a null version was between, and has been replaced."""
    found = Counter((rest.bucket, rest.key, rest.file.digest) for rest in history.rests)
    again = {at for at, number in found.items() if number > 1}
    return again | {(rest.bucket, rest.key, "") for rest in history.rests}  # or something was there between two markers


def _doubled(listing: Listing, again: Collection[tuple[str, str, str]]) -> Iterable[Violation]:
    """Two versions in a row with one content, or two markers, made by one bucket: the same save, captured twice.

    again: bucket, key and digest where that is right.
    """
    for bucket, versions in listing.items():
        for key, of_key in _by_key(versions).items():
            for one, two in pairwise(of_key):
                is_made_here = one.maker == two.maker == bucket and NULL not in (one.id, two.id)
                is_same = (one.digest, one.is_marker) == (two.digest, two.is_marker)
                is_directory = key.endswith("/") and not one.is_marker  # which has metadata alone
                if is_made_here and is_same and not is_directory and (bucket, key, one.digest) not in again:
                    yield Violation(Kind.DOUBLED, bucket, key, f"{one.id} and {two.id}, {one.digest[:12] or 'markers'}")


def _swapped(listing: Listing, history: History) -> Iterable[Violation]:
    """A version whose content did not exist when the content of a later version was gone for good.

    Content that was seen at several keys, or is kept elsewhere, may have come back for a moment in which nobody looked.
    """
    last: dict[tuple[str, str, str], float] = {}
    keys: dict[str, set[str]] = defaultdict(set)
    for rest in history.rests:
        at = (rest.bucket, rest.key, rest.file.digest)
        last[at] = max(last.get(at, rest.until_s), rest.until_s)
        keys[rest.file.digest].add(rest.key)
    for bucket, versions in listing.items():
        for key, of_key in _by_key(versions).items():
            latest: tuple[float, str] = (-1.0, "")
            for each in of_key:
                at = (bucket, key, each.digest)
                if each.is_marker or each.maker != bucket or each.digest not in history.contents:
                    continue
                stays_gone = len(keys[each.digest]) == 1 and each.digest not in history.copied
                if at in last and stays_gone and each.digest != EMPTY and latest[0] >= last[at]:
                    yield Violation(Kind.SWAPPED, bucket, key, f"{latest[1]} is listed before {each.id}")
                latest = max(latest, (history.contents[each.digest], each.id))
