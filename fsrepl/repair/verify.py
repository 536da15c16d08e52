"""What is, compared by hash with what should be: a source, its destinations, and what people see of both.

Nothing is written here, and no daemon is needed; while one works, what looks wrong is looked at again
once its regions have finished what they were at. Versions are taken one at a time, so that memory does not
grow with a bucket; which of them is current is kept in a temporary index. What is found is mended, if it
shall be, by repair/repair.py, and looked at once more. Source: design.md, section 5.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from fsrepl.errors import FsreplError, Refused, StoreDamaged, reason
from fsrepl.model import attributes, clock, digests, keys
from fsrepl.model.rule import Role
from fsrepl.model.version import NULL, Origin, Status, Version, Versioning
from fsrepl.repair import compare
from fsrepl.repair.compare import Difference, Problem, Seen, Verdict
from fsrepl.storage import bucket, listing, records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.documents import read_document
from fsrepl.storage.fs import GONE
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.site import Site
from fsrepl.views import directories

_AT_ONCE = 256
"""So many suspects are looked at again together."""

Place = tuple[str, bytes]
"""A bucket, and a path in it."""


@dataclass(frozen=True, slots=True)
class Dates:
    """Versions of a bucket with a modification time that its filesystem cannot hold: how many, and one of them."""

    number: int
    key: bytes
    mtime_ns: int


@dataclass(slots=True)
class Tally:
    """What a verification has come to so far.

    checked: versions and markers looked at, on either side, and size their bytes. pending: deliveries that are
    not done, and files people changed that are not captured. mounted: of each bucket, the directories and files over
    which something else is mounted, and how many keys that hides. away: buckets that could not be compared, and why.
    dates: by bucket, what its filesystem cannot hold of them, which is no difference: the records have them.
    """

    checked: int = 0
    bytes: int = 0
    pending: int = 0
    failed: int = 0
    differences: int = 0
    left: int = 0
    """Differences that are still there."""
    mounted: dict[Place, int] = field(default_factory=dict)
    away: dict[str, str] = field(default_factory=dict)
    dates: dict[str, Dates] = field(default_factory=dict)


# -- looking


@dataclass(frozen=True, slots=True)
class Side:
    """One bucket of the comparison, open for reading. since_ns: when the bucket was made."""

    address: str
    bucket: OpenBucket
    since_ns: int = 0

    def is_removed(self, key: bytes, version_id: str) -> bool:
        return (key, version_id) in self.bucket.bucket.documents.removed


Look = Callable[[], Difference | None]


def _nothing() -> None:
    return None


@dataclass(slots=True)
class Hooks:
    """What a verification asks of its caller. settled: wait until a running daemon has finished what it was at.
    capture: have keys of a bucket captured, whose files differ from their record. mend: repair one difference.
    progress: told now and then."""

    settled: Callable[[], None] = _nothing
    capture: Callable[[str, Sequence[bytes]], None] = lambda address, keys: None
    mend: Callable[[Difference], None] | None = None
    progress: Callable[[Tally], None] = lambda tally: None


class Verification:
    """Compares a source with one of its destinations, or with all of them. Close it, or use it in a `with`.

    Raises Refused for a source that was never versioned or a destination that is none, FsreplError where
    the source is away.
    """

    def __init__(
        self, site: Site, source: str, destination: str | None, journal: Journal | None, hooks: Hooks | None = None
    ) -> None:
        self.site, self.source, self.only, self.journal = site, source, destination, journal
        self.hooks = hooks or Hooks()
        self.tally = Tally()
        self._index = Journal("")
        """In a temporary file of SQLite's own: which version of each key is current."""
        self._sides: dict[str, Side | None] = {}
        self._found: list[tuple[Difference, Look]] = []
        self._bad: set[tuple[str, bytes, str]] = set()
        """Stored versions that are not what they should be."""
        bucket = site.bucket(source)
        opened = bucket.open()
        self._sides[source] = self._prepare(source, opened)
        if bucket.versioning is Versioning.OFF:
            self.close()
            raise Refused("InvalidRequest", f"{source} was never versioned: it has no versions to verify")
        rules = bucket.replication.rules if bucket.replication else ()
        self.destinations = sorted({rule.destination for rule in rules})
        self._roles: dict[str, Role | None] = {}
        if destination is not None:
            self._check_destination(destination)
            self.destinations = [destination]

    def _check_destination(self, destination: str) -> None:
        self.site.bucket(destination)
        sent = self.journal.deliveries.counts(self.source) if self.journal is not None else {}
        back = self.site.buckets[destination].replication
        returns = back is not None and any(rule.destination == self.source for rule in back.rules)
        if destination in self.destinations or any(to == destination for to, _, _ in sent) or returns:
            return
        known = ", ".join(self.destinations) or "none"
        self.close()
        raise Refused("InvalidRequest", f"{destination} is no destination of {self.source}; its destinations: {known}")

    def _prepare(self, address: str, opened: OpenBucket) -> Side:
        self._index.bucket_id(address)
        made_ns = 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            identity = read_document(opened.fs, opened.meta, b"bucket.json") or {}
            made_ns = clock.parse(str(identity["created"]))
        return Side(address, opened, made_ns)

    def _side(self, address: str) -> Side | None:
        """A bucket to compare with; None where it is none of those asked for, or away."""
        if self.only is not None and address not in (self.source, self.only):
            return None
        if address not in self._sides:
            self._sides[address] = None
            try:
                bucket = self.site.bucket(address)
                opened = bucket.open()
            except FsreplError as error:
                self.tally.away[address] = str(error)
            else:
                if opened.versions >= 0:
                    self._sides[address] = self._prepare(address, opened)
                else:
                    opened.close()
        return self._sides[address]

    def close(self) -> None:
        for side in self._sides.values():
            if side is not None:
                side.bucket.close()
        self._sides.clear()
        self._index.close()

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the pass

    def differences(self) -> Iterator[Difference]:
        """Everything that is not as it should be, as it is found (and mended). The tally is complete afterwards."""
        with self._index.transaction():
            # what is wrong with the store is told, and mended, before capture looks at the views of it
            for suspicions in (self._stored(), self._seen()):
                for suspicion in suspicions:
                    self._found.append(suspicion)
                    if len(self._found) >= _AT_ONCE:
                        yield from self._confirmed()
                yield from self._confirmed()
        self.hooks.progress(self.tally)

    def _confirmed(self) -> Iterator[Difference]:
        """What is still so at a second look, and after it was mended at a third."""
        found, self._found = self._found, []
        if found:
            self.hooks.settled()
            self._refresh()
        for _, look in found:
            difference = look()
            if difference is None:
                continue
            self.tally.differences += 1
            if self.hooks.mend is not None:
                self.hooks.mend(difference)
                after = look()
                difference = replace(difference, repaired=after is None, why=after.why if after else difference.why)
            self.tally.left += not difference.repaired
            yield difference

    def _refresh(self) -> None:
        """Read the documents again that have changed."""
        for side in self._sides.values():
            if side is not None:
                with contextlib.suppress(FsreplError):
                    side.bucket.bucket.refresh(side.bucket)

    def _stored(self) -> Iterator[tuple[Difference, Look]]:
        source = self._side(self.source)
        assert source is not None
        yield from self._store(source, self._sent)
        for address in [*self.destinations, *self._sides]:
            self._side(address)
        for side in [s for s in self._sides.values() if s is not None and s is not source]:
            yield from self._store(side, partial(self._received, source))

    def _seen(self) -> Iterator[tuple[Difference, Look]]:
        for side in [s for s in self._sides.values() if s is not None]:
            yield from self._views(side)
            yield from self._directories(side)
            if (source := self._side(self.source)) is not None and side is not source:
                yield from self._deletions(source, side)

    def _store(
        self, side: Side, compared: Callable[[Side, Version], Iterator[tuple[Difference, Look]]]
    ) -> Iterator[tuple[Difference, Look]]:
        """Every stored version of a bucket by itself, and compared with the other side."""
        unreadable: list[tuple[bytes, OSError]] = []
        for path, fd, name, stored in versions.stream(side.bucket, lambda *about: unreadable.append(about)):
            version, difference = self._examine(side, fd, path, name, stored)
            self.hooks.progress(self.tally)
            if difference is not None:
                self._bad.add((side.address, difference.key, stored.id))
                yield difference, partial(self._examine_again, side, path, name, stored)
            if version is None:
                continue
            self.tally.checked += 1
            if compare.lacks_date(version) and version.posix is not None:
                before = self.tally.dates.get(side.address)
                number = before.number + 1 if before else 1
                self.tally.dates[side.address] = Dates(number, version.key, version.posix.mtime_ns)
            self._index.versions.add(side.address, replace(version, deliveries={}))
            if difference is None:
                yield from compared(side, version)
        for path, error in unreadable:
            difference = Difference(side.address, path + b"/", "", Problem.UNREADABLE, reason(error))
            yield difference, partial(self._directory_again, side, path)

    def _directory_again(self, side: Side, path: bytes) -> Difference | None:
        try:
            fd = side.bucket.fs.open_dir(side.bucket.versions, path)
        except OSError as error:
            if error.errno in GONE:
                return None
            return Difference(side.address, path + b"/", "", Problem.UNREADABLE, reason(error))
        side.bucket.fs.close(fd)
        return None

    # -- one stored version

    def _examine(
        self, side: Side, at: int, path: bytes, name: bytes, stored: keys.StoredName
    ) -> tuple[Version | None, Difference | None]:
        """A stored version, and what is wrong with it: its record, then its content."""
        guess = keys.join(path, stored.name)

        def wrong(problem: Problem, why: str, key: bytes = guess) -> Difference:
            return Difference(side.address, key, stored.id, problem, why, stored.marker, place=guess)

        try:
            record = records.read(side.bucket, at, name, guess)
            if record.bare or not attributes.is_whole(record.raw, guess, marker=stored.marker):
                self.tally.checked += 1
                return None, wrong(Problem.LOST, "its attributes are gone", record.raw.get(attributes.KEY, guess))
            version = record.version(guess, stored)
            if version.marker:
                return version, None
            digest = self._digest(side, at, name)
        except FileNotFoundError:
            return None, None
        except StoreDamaged as error:
            self.tally.checked += 1
            return None, wrong(Problem.DAMAGED, str(error))
        except OSError as error:
            self.tally.checked += 1
            return None, wrong(Problem.UNREADABLE, reason(error))
        if digest != version.digest:
            return version, wrong(Problem.DIGEST, "its stored content no longer matches its BLAKE3", version.key)
        return version, None

    def _digest(self, side: Side, at: int, name: bytes) -> bytes:
        fd = side.bucket.fs.open_read(at, name)
        try:
            return digests.of_chunks(self._told(side.bucket.fs.chunks(fd)))
        finally:
            side.bucket.fs.close(fd)

    def _told(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Chunks on their way to be hashed, each of them progress."""
        for chunk in chunks:
            yield chunk
            self.tally.bytes += len(chunk)
            self.hooks.progress(self.tally)

    def _examine_again(self, side: Side, path: bytes, name: bytes, stored: keys.StoredName) -> Difference | None:
        checked, size = self.tally.checked, self.tally.bytes
        try:
            fd = side.bucket.fs.open_dir(side.bucket.versions, path)
        except OSError:
            return None
        try:
            return self._examine(side, fd, path, name, stored)[1]
        finally:
            side.bucket.fs.close(fd)
            self.tally.checked, self.tally.bytes = checked, size

    # -- one version, on both sides

    def _sent(self, source: Side, version: Version) -> Iterator[tuple[Difference, Look]]:
        """Whether a source's version is wherever it was delivered, or came from."""
        for address, delivery in version.deliveries.items():
            if self.only in (None, address):
                self.tally.pending += delivery.status is Status.PENDING
                self.tally.failed += delivery.status is Status.FAILED
        for address in {a for a, d in version.deliveries.items() if d.status is Status.COMPLETED} | {version.source}:
            there = self._side(address) if address in version.deliveries or address in self._wanted() else None
            if there is not None and not self._has(there, version):
                look = partial(self._again, source, there, version)
                if (difference := look()) is not None:
                    yield difference, look

    def _wanted(self) -> set[str]:
        return {self.only} if self.only is not None else {*self.destinations, *self._sides}

    def _has(self, side: Side, version: Version) -> bool:
        try:
            return versions.has(side.bucket, version.key, version.id, marker=version.marker)
        except OSError:
            return True  # named where that side is looked through

    def _received(self, source: Side, there: Side, version: Version) -> Iterator[tuple[Difference, Look]]:
        """Whether a version at a destination is the same as at the source."""
        with contextlib.suppress(OSError, StoreDamaged):  # named where that side is looked through
            original = versions.read_whole(source.bucket, version.key, version.id, marker=version.marker)
            difference = self._compare(source, there, original, version)
            if difference is not None:
                yield difference, partial(self._again, source, there, version)

    def _again(self, source: Side, there: Side, version: Version) -> Difference | None:
        """The same for one version, with both records read afresh."""
        found = []
        for side in (source, there):
            # the directory that is open may have been removed meanwhile, and made again
            side.bucket.store.forget(keys.stored_directory(keys.split(version.key)[0]))
            try:
                found.append(versions.read_whole(side.bucket, version.key, version.id, marker=version.marker))
            except (OSError, StoreDamaged):
                return None
        return self._compare(source, there, *found)

    def _compare(self, source: Side, there: Side, original: Version | None, other: Version | None) -> Difference | None:
        """Two records of one version, of which one was made from the other."""
        if (original and there.address in original.deliveries) or (other and other.source == source.address):
            return self._judge(source, there, original, other)
        if (original and original.source == there.address) or (other and source.address in other.deliveries):
            return self._judge(there, source, other, original)
        return None

    def _judge(self, sender: Side, receiver: Side, sent: Version | None, got: Version | None) -> Difference | None:
        """What of a version is not as it was sent."""
        delivery = sent.deliveries.get(receiver.address) if sent else None
        completed = delivery is not None and delivery.status is Status.COMPLETED
        if got is None:
            if sent is None or not completed or receiver.is_removed(sent.key, sent.id):
                return None
            return _difference(receiver, sent, Problem.MISSING, f"{sender.address} delivered it, and it is not there")
        if sent is None:
            # a null version may have been replaced; an older one is of another bucket that had this name
            if got.id == NULL or got.created_ns < sender.since_ns or sender.is_removed(got.key, got.id):
                return None
            return _difference(sender, got, Problem.MISSING, f"{receiver.address} has it from here, and it is gone")
        if got.id == NULL and (got.source != sender.address or got.created_ns != sent.created_ns):
            return None  # two null versions of one key
        if delivery is None:
            why = f"its record does not say that it was delivered to {receiver.address}"
            return _difference(sender, sent, Problem.LOST, why)
        if not completed:
            return None
        if got.digest != sent.digest:
            return _difference(receiver, got, Problem.DIGEST, f"its recorded BLAKE3 is not that of {sender.address}")
        if compare.is_alike(sent, got):
            return None
        role = self._role_of(sender)
        expected = compare.as_sent(sent, got, delivery, role, sender.address, receiver.address)
        why = compare.metadata_difference(got, expected)
        return _difference(receiver, got, Problem.METADATA, why) if why else None

    def _deletions(self, source: Side, there: Side) -> Iterator[tuple[Difference, Look]]:
        """Objects of a source that are deleted at a destination alone."""
        for key, current in self._index.versions.objects(there.address):
            mine = self._index.versions.object(source.address, key) if current.marker else None
            if mine is not None and not mine.marker:
                look = partial(self._deletion, source, there, key)
                if (difference := look()) is not None:
                    yield difference, look

    def _deletion(self, source: Side, there: Side, key: bytes) -> Difference | None:
        """A marker that was made at a destination, on top of the version that the source delivered or received."""
        sent, got = self._newest(source, key), self._newest(there, key)
        if sent is None or sent.marker or got is None or not got.marker or got.origin is not Origin.USER:
            return None
        delivery, back = sent.deliveries.get(there.address), got.deliveries.get(source.address)
        delivered = sent.source == there.address or (delivery is not None and delivery.status is Status.COMPLETED)
        if not delivered or (back is not None and back.status is not Status.FAILED):
            return None
        what = f"{there.address}/{keys.shown(key)} --version-id {got.id}"
        why = f"only the replica has this delete marker; `fsrepl rm {what}` removes it"
        return _difference(there, got, Problem.DELETED, why)

    def _role_of(self, side: Side) -> Role | None:
        replication = side.bucket.bucket.replication
        if replication is None:
            return None
        if replication.role not in self._roles:
            self._roles[replication.role] = None
            with contextlib.suppress(OSError, ValueError, FsreplError):
                self._roles[replication.role] = self.site.role(replication.role)
        return self._roles[replication.role]

    # -- views

    def _views(self, side: Side) -> Iterator[tuple[Difference, Look]]:
        unlike: list[bytes] = []
        for key, current in self._index.versions.objects(side.address):
            if not current.marker and not current.digest:
                continue
            self.hooks.progress(self.tally)
            verdict, difference = self._view(side, key, current)
            if difference is not None:
                yield difference, partial(self._view_again, side, key)
            elif verdict is Verdict.PENDING and self._is_damage(side, key, current):
                self.tally.pending += 1
            elif verdict is Verdict.PENDING and (mount := _mount_over(side.bucket, key)):
                at = side.address, mount
                self.tally.mounted[at] = self.tally.mounted.get(at, 0) + 1
            elif verdict is Verdict.PENDING:
                unlike.append(key)
                if len(unlike) >= _AT_ONCE:
                    yield from self._captured(side, unlike)
                    unlike = []
        yield from self._captured(side, unlike)

    def _is_damage(self, side: Side, key: bytes, current: Object) -> bool:
        """Whether a file that differs is the stored version's own, and has no further name.

        A write through the view makes an event, so this one went past it: the store is damaged, and `_store` tells.
        """
        directory, name = keys.split(key)
        try:
            found = side.bucket.fs.stat(side.bucket.views.get(directory), name)
        except OSError:
            return False
        return found.st_nlink == 2 and self._is_one_file(side, key, current, found)

    def _captured(self, side: Side, unlike: Sequence[bytes]) -> Iterator[tuple[Difference, Look]]:
        """Files that are not as recorded, perhaps without an event: capture looks at them, then we do once more."""
        if not unlike:
            return
        self.hooks.capture(side.address, unlike)
        self._refresh()
        for key in unlike:
            # the directory that is open may have been removed meanwhile, and made again
            side.bucket.views.forget(keys.split(key)[0])
            current = self._current(side, key)
            if current is None:
                continue
            verdict, difference = self._view(side, key, current)
            if difference is not None:
                yield difference, partial(self._view_again, side, key)
            self.tally.pending += verdict is Verdict.PENDING

    def _view_again(self, side: Side, key: bytes) -> Difference | None:
        current = self._current(side, key)
        return self._view(side, key, current)[1] if current is not None else None

    def _current(self, side: Side, key: bytes) -> Object | None:
        """The current version of a key, from the store as it is now."""
        newest = self._newest(side, key)
        if newest is None or versions.is_stripped(newest):
            return None
        return Object(newest.id, newest.created_ns, newest.marker, newest.digest, None)

    def _newest(self, side: Side, key: bytes) -> Version | None:
        """The record of a key's newest version or marker; None where there is none, or none that can be read."""
        try:
            return next(iter(listing.versions_of(side.bucket, key)), None)
        except (OSError, StoreDamaged):
            return None

    def _view(self, side: Side, key: bytes, current: Object) -> tuple[Verdict, Difference | None]:
        known = self.journal.versions.object(side.address, key) if self.journal is not None else None
        if known is not None and known.id != current.id and (fresh := self._current(side, key)) is not None:
            current = fresh  # newer than our index
        directory, name = keys.split(key)
        fs = side.bucket.fs
        found: os.stat_result | None = None
        seen, same = Seen.NOTHING, False
        try:
            at = side.bucket.views.get(directory)
            found = fs.stat(at, name)
            seen = Seen.FILE if fs.is_regular(found) else Seen.OTHER
            if seen is Seen.FILE and not current.marker:
                same = self._is_stored(side, key, current, found) or self._shown(side, at, name) == current.digest
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            seen = Seen.OTHER
        except BlockingIOError:
            return Verdict.PENDING, None  # open for writing
        except OSError as error:
            if error.errno == errno.EXDEV:
                return Verdict.PENDING, None  # another filesystem is mounted over it
            if found is not None:
                return Verdict.DIFFERS, self._wrong_view(side, key, current, Problem.UNREADABLE, reason(error))
            seen = Seen.OTHER
        as_recorded = bool(found and known and known.view and known.view.is_like(found) and not known.view.racy)
        verdict = compare.judge_view(current, known, seen, same=same, as_recorded=as_recorded)
        if verdict is Verdict.DIFFERS:
            why = "the file shows other content than its version, and nobody wrote into it"
            return verdict, self._wrong_view(side, key, current, Problem.VIEW, why)
        if verdict is Verdict.CONFLICT:
            why = "something else is where its file must be shown"
            return verdict, self._wrong_view(side, key, current, Problem.CONFLICT, why)
        return verdict, None

    def _wrong_view(self, side: Side, key: bytes, current: Object, problem: Problem, why: str) -> Difference:
        place = keys.stored_path(key)
        return Difference(side.address, key, current.id, problem, why, current.marker, place=place)

    def _is_stored(self, side: Side, key: bytes, current: Object, found: os.stat_result) -> bool:
        """Whether the view is another name of the stored version: then that was looked at already."""
        if (side.address, key, current.id) in self._bad:
            return False
        return self._is_one_file(side, key, current, found)

    @staticmethod
    def _is_one_file(side: Side, key: bytes, current: Object, found: os.stat_result) -> bool:
        """Whether the view and the stored version are hard links to one file."""
        try:
            return os.path.samestat(side.bucket.fs.stat(*side.bucket.stored_file(key, current.id)), found)
        except OSError:
            return False

    def _shown(self, side: Side, at: int, name: bytes) -> bytes:
        fd = side.bucket.fs.open_read(at, name)
        try:
            return bucket.content_digest(side.bucket, fd)
        finally:
            side.bucket.fs.close(fd)

    # -- directories

    def _directories(self, side: Side) -> Iterator[tuple[Difference, Look]]:
        """Directories that replication made, and that do not let people do what their sources do."""
        for path in directories.with_parents(self._index.versions.version_directories(side.address)):
            look = partial(self._directory_rights, side, path)
            if (difference := look()) is not None:
                yield difference, look

    def _directory_rights(self, side: Side, path: bytes) -> Difference | None:
        for each in self._sides.values():
            if each is not None:
                each.bucket.views.forget(path)  # it may have been removed meanwhile, and made again
        others = {address: each.bucket for address, each in self._sides.items() if each is not None}
        why = directories.difference(side.bucket, others, path)
        return Difference(side.address, path + b"/", "", Problem.METADATA, why, place=path + b"/") if why else None


def _difference(side: Side, version: Version, problem: Problem, why: str) -> Difference:
    place = keys.stored_path(version.key)
    return Difference(side.address, version.key, version.id, problem, why, version.marker, place=place)


def _mount_over(bucket: OpenBucket, key: bytes) -> bytes:
    """What of a key's path another filesystem is mounted over: a directory, with a slash, or the file; else nothing."""
    path, name = keys.split(key)
    for end in [at for at, byte in enumerate(path + b"/") if byte == ord("/")] if path else []:
        try:
            bucket.views.get(path[:end])
        except OSError as error:
            return path[:end] + b"/" if error.errno == errno.EXDEV else b""
    try:
        return key if bucket.fs.is_mount(bucket.views.get(path), name) else b""
    except OSError:
        return b""
