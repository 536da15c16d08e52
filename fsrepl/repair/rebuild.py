"""Lost records, rebuilt: a copy of a tree without its attributes leaves versions without records.

The stored name still holds the id and the kind, and the content yields its BLAKE3. The rest comes from other
regions that have the version, then from the journal, from the view, and last from the rules. So ids and
history are kept. Source: design.md, section 5, What happens to what can't be done.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType

from msgspec.structs import replace

from fsrepl.errors import FsreplError, RecordUnreadable, StoreDamaged, reason
from fsrepl.model import attributes, clock, keys, metadata
from fsrepl.model.version import NULL, Posix, Version
from fsrepl.repair import evidence
from fsrepl.repair.evidence import Evidence, ViewEvidence
from fsrepl.storage import posix, records, versions
from fsrepl.storage.bucket import Bucket, OpenBucket, content_digest
from fsrepl.storage.fs import GONE
from fsrepl.storage.intents import Act, read_intents
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.posix import inode_posix
from fsrepl.storage.site import Site
from fsrepl.storage.tiers import OpenTier
from fsrepl.storage.view_file import ViewFile, open_view_if_there
from fsrepl.views import unseen, view_attributes

log = logging.getLogger("fsrepl")


# -- records in other buckets


class Elsewhere:
    """The buckets of other regions that may have the same versions, open for reading as long as this object.

    Buckets that replicate to or from this bucket come first. away: the buckets that cannot be read now.
    """

    def __init__(self, site: Site, bucket: Bucket) -> None:
        self.address = bucket.address
        self.away: dict[str, str] = {}
        self.buckets: dict[str, OpenBucket] = {}
        others = [a for a, b in sorted(site.buckets.items()) if b.region != bucket.region]
        self.near = _related(site, bucket.address)
        for address in sorted(others, key=lambda a: a not in self.near):
            try:
                opened = site.buckets[address].open()
            except FsreplError as error:
                self.away[address] = str(error)
                continue
            if opened.versions >= 0:
                self.buckets[address] = opened
            else:
                opened.close()

    def records(
        self, path: bytes, name: bytes, stored: keys.StoredName, digest: bytes
    ) -> tuple[dict[str, Version], frozenset[str]]:
        """The records of a version in other buckets, and which of them have a file for it.

        Null versions are the same only in related buckets, if their contents match or one record names the other.
        """
        found: dict[str, Version] = {}
        seen = set()
        for address, bucket in self.buckets.items():
            if stored.id == NULL and address not in self.near:
                continue
            try:
                record = records.read(bucket, bucket.store.get(path), name, keys.join(path, stored.name))
            except OSError as error:
                if error.errno not in GONE:
                    log.warning("cannot read bucket=%s version=%s: %s", address, stored.id, error.strerror)
                    self.away[address] = reason(error)  # its record may help once it can be read
                continue
            except RecordUnreadable as error:
                self.away[address] = str(error)  # until it is repaired there
                continue
            except StoreDamaged:
                seen.add(address)
                continue
            with contextlib.suppress(StoreDamaged):
                guess = keys.join(path, stored.name)
                if attributes.is_whole(record.raw, guess, marker=stored.marker):
                    version = record.version(guess, stored)
                    named = self.address == version.source or self.address in version.deliveries
                    if stored.id != NULL or named or version.digest == digest:
                        found[address] = version
            if stored.id != NULL or address in found:
                seen.add(address)
        return found, frozenset(seen)

    def close(self) -> None:
        while self.buckets:
            self.buckets.popitem()[1].close()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def from_elsewhere(bucket: OpenBucket, stored: keys.StoredName, records: dict[str, Version]) -> Version | None:
    """A version by the records of it in other buckets, where nothing of it can be read here; None where there are none,
    or it should not be here. Raises OSError."""
    if not records:
        return None
    key = next(iter(records.values())).key
    if (key, stored.id) in bucket.bucket.documents.removed:
        return None
    folder = bucket.fs.stat_fd(bucket.fd)
    return evidence.rebuild(
        Evidence(
            bucket.address,
            key,
            stored,
            elsewhere=records,
            seen_in=frozenset(records),
            replication=bucket.bucket.replication,
            since=bucket.bucket.documents.since,
            owner=(folder.st_uid, folder.st_gid),
        )
    )


def _related(site: Site, address: str) -> frozenset[str]:
    """The buckets that a bucket's versions went to or came from, by the present rules, over any number of steps."""
    edges = {(b.address, r.destination) for b in site.buckets.values() if b.replication for r in b.replication.rules}
    near = {address}
    while more := {b for a, b in edges if a in near} | {a for a, b in edges if b in near}:
        if more <= near:
            break
        near |= more
    return frozenset(near - {address})


class InTiers:
    """The versions whose content lies in the tiers of a bucket, as the copies of their records there say. Read once.

    away: the tiers that cannot be read now.
    """

    def __init__(self, bucket: OpenBucket) -> None:
        self.away: dict[str, str] = {}
        self._found: dict[tuple[bytes, str], Version] = {}
        for name in bucket.bucket.root.settings.classes:
            try:
                tier = bucket.tier(name)
                for entry in tier.entries():
                    self._add(bucket, tier, entry)
            except (OSError, FsreplError) as error:
                self.away[name] = reason(error)

    def _add(self, bucket: OpenBucket, tier: OpenTier, entry: bytes) -> None:
        with contextlib.suppress(StoreDamaged):
            found = tier.read(entry)
            is_removed = found is not None and (found[1].key, found[1].id) in bucket.bucket.documents.removed
            if found is not None and bucket.bucket.owns(found[0]) and not is_removed:
                self._found[keys.stored_path(found[1].key), found[1].id] = found[1]

    @property
    def versions(self) -> list[Version]:
        """All of them, but those that were removed for good."""
        return list(self._found.values())

    def find(self, path: bytes, version_id: str) -> Version | None:
        """A version by the path of its stored file."""
        return self._found.get((path, version_id))


class Rebuilder:
    """Rebuilds records of one bucket that is open for writing. Other regions are only read."""

    def __init__(self, site: Site, bucket: OpenBucket, journal: Journal) -> None:
        self.site, self.bucket, self.journal = site, bucket, journal
        self.rebuilt: list[bytes] = []
        """The keys of the versions whose records were rewritten."""
        self.damaged: list[tuple[bytes, str, bool]] = []
        """By key, id and kind, versions that must be repaired: their records contradict themselves, or were rebuilt
        and are not those of their contents."""
        self.waiting = 0
        """Number of records that cannot be rebuilt yet, while a region that may help is away."""
        self._elsewhere: Elsewhere | None = None
        self._in_tiers: InTiers | None = None
        self._hidden: dict[str, list[bytes]] | None = None
        """By version id, the keys that no stored path spells. Built once, since each search would read all of them."""
        self._intended: dict[bytes, set[str]] | None = None
        self._destroyed: set[tuple[bytes, str]] = set()
        self._spellings: dict[bytes, dict[bytes, bytes]] = {}
        """By directory of views, then by digest, the names in it that are stored under a digest."""

    @property
    def elsewhere(self) -> Elsewhere:
        if self._elsewhere is None:
            self._elsewhere = Elsewhere(self.site, self.bucket.bucket)
        return self._elsewhere

    @property
    def intended(self) -> Mapping[bytes, Collection[str]]:
        """The versions that views are about to show, by key, as the intents say."""
        self._read_intents()
        assert self._intended is not None
        return self._intended

    @property
    def destroyed(self) -> Collection[tuple[bytes, str]]:
        """The versions that were surely written into, by stored path and id."""
        self._read_intents()
        return self._destroyed

    def _read_intents(self) -> None:
        if self._intended is None:
            self._intended = {}
            for each in itertools.chain.from_iterable(group for _, group in read_intents(self.bucket)):
                if each.act is Act.FETCH and each.was is not None:
                    self._destroyed.add((keys.stored_path(each.key), each.version))
                elif each.act is not Act.FETCH:
                    self._intended.setdefault(each.key, set()).add(each.version)

    def version(
        self, at: int, path: bytes, name: bytes, stored: keys.StoredName, *, damaged: bool = False
    ) -> Version | None:
        """The version of a stored file without a record; None where its key cannot be found, or its BLAKE3: a file that
        was written into does not tell that.

        The record is rewritten, unless a region that may know more is away. Then the returned version is complete
        enough to compare its view with, and `waiting` counts it. damaged: the surviving attributes are not
        trusted. Where the content was overwritten `damaged` names the version. Raises OSError.
        """
        if self._may_be_placed(at, name, stored):
            placed = self.in_tiers.find(keys.join(path, stored.name), stored.id)
            if placed is not None:
                records.rewrite(self.bucket, placed)
                self.rebuilt.append(placed.key)
                return placed
            if self.in_tiers.away:
                self.waiting += 1
                return None
        is_intact = (keys.join(path, stored.name), stored.id) not in self.destroyed
        found = self._recall(at, path, name, stored, damaged=damaged, is_intact=is_intact)
        if found is None:
            self.waiting += bool(self.elsewhere.away)
            return None
        version, model, is_whole, digest = found
        if not (is_whole or model) and self.elsewhere.away:
            self.waiting += 1
            return version
        if digest != version.digest:
            self.damaged.append((version.key, version.id, version.marker))
        try:
            records.rewrite(self.bucket, version)
        except StoreDamaged as error:
            # overwritten, and the file is another version's by now: this one gets a file with a good copy
            log.error(
                'not rebuilt bucket=%s key="%s" version=%s: %s',
                self.bucket.address, keys.shown(version.key), version.id, error,
            )  # fmt: skip
            return version
        self.rebuilt.append(version.key)
        log.warning(
            'rebuilt bucket=%s key="%s" version=%s: its attributes were gone; from=%s',
            self.bucket.address, keys.shown(version.key), version.id, model or "its name and content",
        )  # fmt: skip
        return version

    @property
    def in_tiers(self) -> InTiers:
        if self._in_tiers is None:
            self._in_tiers = InTiers(self.bucket)
        return self._in_tiers

    def _may_be_placed(self, at: int, name: bytes, stored: keys.StoredName) -> bool:
        """Whether the content of a stored file may lie in a tier: the file is empty then."""
        has_tiers = bool(self.bucket.bucket.root.settings.classes)
        return has_tiers and not stored.marker and self.bucket.fs.stat(at, name).st_size == 0

    def from_elsewhere(self, path: bytes, name: bytes, stored: keys.StoredName) -> Version | None:
        """The version of a stored file of which nothing can be read, to compare its view with; see from_elsewhere."""
        found, _ = self.elsewhere.records(path, name, stored, b"")
        return from_elsewhere(self.bucket, stored, found)

    def recall(self, key: bytes, version_id: str) -> Version | None:
        """The version of a stored file that people can write to; nothing is written on it.

        None where the evidence may be incomplete: the content is none, once it was written into. Raises OSError.
        """
        stored_path = keys.stored_path(key)
        path, last = keys.split(stored_path)
        stored, name = keys.StoredName(last, version_id, False, False), keys.stored_name(last, version_id)
        at, damaged = self.bucket.store.get(path), False
        try:
            records.read(self.bucket, at, name, stored_path).version(key, stored)
        except StoreDamaged:
            damaged = True
        is_intact = unseen.before_write(self.journal, self.bucket, key, version_id) is None
        found = self._recall(at, path, name, stored, damaged=damaged, is_intact=is_intact)
        return found[0] if found is not None and (found[1] or not self.elsewhere.away) else None

    def _recall(
        self, at: int, path: bytes, name: bytes, stored: keys.StoredName, *, damaged: bool, is_intact: bool
    ) -> tuple[Version, str, bool, bytes] | None:
        """The version, the bucket whose record was its model, if any, whether its own record is whole, and the
        BLAKE3 of its content as that is now. is_intact: the content may be taken for the version's, where nothing else
        tells that."""
        bucket = self.bucket
        left = {} if damaged else records.read(bucket, at, name, keys.join(path, stored.name)).raw
        if not attributes.is_of(left, keys.join(path, stored.name), stored.id):
            left = {}  # a copy of another file brought them, through a view that may be gone since
        fd = records.open_file(bucket, at, name)
        try:
            found = bucket.fs.stat_fd(fd)
            inode = posix.inode_posix(bucket, fd, found)
            digest = b"" if stored.marker else content_digest(bucket, fd)
        finally:
            bucket.fs.close(fd)
        elsewhere, seen = self.elsewhere.records(path, name, stored, digest)
        key = self._key(path, stored, left, elsewhere)
        if key is None:
            return None
        gathered = self.evidence(key, stored, found.st_size, digest, inode, left, elsewhere, seen)
        version, is_known = evidence.rebuild(gathered), gathered.known_digest or elsewhere or attributes.BLAKE3 in left
        if not (is_known or stored.marker or is_intact):
            return None
        is_whole = attributes.is_whole(left, keys.join(path, stored.name), marker=stored.marker)
        return version, next(iter(elsewhere), ""), is_whole, digest

    def evidence(
        self, key: bytes, stored: keys.StoredName, size: int, digest: bytes, inode: Posix | None,
        left: Mapping[str, bytes], elsewhere: dict[str, Version], seen: frozenset[str],
    ) -> Evidence:  # fmt: skip
        bucket = self.bucket
        current = self.journal.versions.object(bucket.address, key)
        known_digest = current.digest if current and current.id == stored.id else b""
        known_ns = next((c for i, c, _ in self.journal.versions.versions_of(bucket.address, key) if i == stored.id), 0)
        deliveries = {
            o.destination: o for o in self.journal.deliveries.select(bucket.address, key=key) if o.id == stored.id
        }
        folder = bucket.fs.stat_fd(bucket.fd)
        return Evidence(
            bucket.address, key, stored, size, digest, inode, left, elsewhere, seen, known_ns, known_digest, deliveries,
            view_evidence=None if stored.marker else self._view_evidence(key, digest),
            replication=bucket.bucket.replication,
            since=bucket.bucket.documents.since,
            sources=tuple(self.site.sources_of(bucket.address)),
            owner=(folder.st_uid, folder.st_gid),
        )  # fmt: skip

    def _key(
        self, path: bytes, stored: keys.StoredName, left: Mapping[str, bytes], elsewhere: Mapping[str, Version]
    ) -> bytes | None:
        """The key of a stored file: the spelling of its path, unless a part of that is a digest."""
        guess = keys.join(path, stored.name)
        if not any(map(keys.is_digest, guess.split(b"/"))):
            return guess
        candidates = [left[attributes.KEY]] if attributes.KEY in left else []
        candidates += [version.key for version in elsewhere.values()]
        candidates += self._known_keys(stored.id) if stored.id != NULL else []
        candidates += self._spelled(guess)
        return next((key for key in candidates if keys.stored_path(key) == guess), None)

    def _known_keys(self, version_id: str) -> Sequence[bytes]:
        """The keys that the journal knows by a version's id, among those that no stored path spells."""
        if self._hidden is None:
            self._hidden = {}
            for key, hidden_id in self.journal.versions.all_versions(self.bucket.address):
                if keys.is_hidden(key):
                    self._hidden.setdefault(hidden_id, []).append(key)
        return self._hidden.get(version_id, ())

    def _names_in(self, directory: bytes) -> dict[bytes, bytes]:
        """The names in a directory of views that are stored under a digest, by digest."""
        if directory not in self._spellings:
            names = self.bucket.fs.names(self.bucket.views.get(directory))
            spelled = ((keys.stored_component(name), name) for name in names)
            self._spellings[directory] = {stored: name for stored, name in spelled if stored != name}
        return self._spellings[directory]

    def _spelled(self, guess: bytes) -> Iterator[bytes]:
        """The key as the names of views spell it, if they do."""
        key = b""
        for part in guess.split(b"/"):
            name: bytes | None = part
            if keys.is_digest(part):
                try:
                    name = self._names_in(key).get(part)
                except OSError:
                    return
            if name is None:
                return
            key = keys.join(key, name)
        yield key

    def _view_evidence(self, key: bytes, digest: bytes) -> ViewEvidence | None:
        """The evidence of a view, if the view shows this content."""
        with open_view_if_there(self.bucket, key, errno.errorcode) as view:
            if view is None or view.kind is None or view.digest() != digest:
                return None
            raw = self.bucket.fs.attributes(view.fd) if view.is_regular else {}
            posix = inode_posix(self.bucket, view.fd, view.found)
        created_ns = 0
        with contextlib.suppress(ValueError, KeyError, UnicodeDecodeError):
            created_ns = clock.parse(raw[attributes.LAST_MODIFIED].decode())
        return ViewEvidence(posix, attributes.own(raw), attributes.tags(raw), created_ns)

    def show(self, keys_: Collection[bytes] | None = None) -> None:
        """Restore the labels of views that lost them with the store, and record how these views look now. keys_: of
        these views only.

        Without this a scan would take the missing attributes for a user's edit.
        """
        bucket, known_versions = self.bucket, self.journal.versions
        some = (
            known_versions.objects(bucket.address)
            if keys_ is None
            else known_versions.look_up(bucket.address, set(keys_)).items()
        )
        for key, known in some:
            if known.marker or not known.digest:
                continue
            try:
                with open_view_if_there(bucket, key, errno.errorcode) as view:
                    if view is not None and view.is_regular:
                        self._show(key, known, view)
            except (OSError, StoreDamaged) as error:
                log.warning('cannot label bucket=%s key="%s": %s', bucket.address, keys.shown(key), error)

    def _show(self, key: bytes, known: Object, shown: ViewFile) -> None:
        bucket, fd = self.bucket, shown.fd
        if bucket.fs.attribute(fd, attributes.VERSION_ID) is not None or shown.digest() != known.digest:
            return
        version = versions.read(bucket, key, known.id, marker=False)
        if version is None or versions.has_lost_record(version):
            return
        lacks = metadata.shortfall(version, version.posix, view_attributes.write(bucket, fd, version)).lacks
        if lacks != version.shortfall.lacks:
            records.amend(bucket, replace(version, shortfall=replace(version.shortfall, lacks=lacks)))
        # where nothing was lost a view may be unlabelled and edited: the next scan reads it again
        racy = not self.rebuilt or bucket.coarse_ns > 0
        view = bucket.view(bucket.fs.stat_fd(fd), known.id, racy=racy)
        if view.has_content_of(shown.found):
            self.journal.views.see(bucket.address, key, view)

    def close(self) -> None:
        if self._elsewhere is not None:
            self._elsewhere.close()
            self._elsewhere = None

    def __enter__(self) -> Rebuilder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
