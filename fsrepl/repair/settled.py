"""Directories of the store that are compared only after the start, since nothing has changed in them for long.

Now and then, between two batches, a bucket's region notes the time at which the journal had all published versions. A
directory with an earlier ctime has the names that the journal knows, since each name that is added or removed sets the
ctime, and no program can set it otherwise. So a start after a crash reads the directories of the last seconds, and not
those of a million versions. The others are compared later, beside other work, since fsck sets no times.

The note counts only where nothing else explains an early ctime: the clock was not set since then, and the filesystem is
not an older state of itself, whose mark would be older too. After another start of the machine, which may have followed
a power cut, it counts from the last moment before which all was synced. How the clock was set meanwhile is not known
then, so that a daemon removes the mark as soon as it sees that, and one that starts as soon as the note does not count.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model import keys
from fsrepl.storage import boot
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import read_intents
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.walk import VANISHED, Directory, Uncompared, Walk, directories
from fsrepl.views.directories import with_parents

NOTE_S, SYNC_S = 5.0, 60.0
"""Between two notes, and between two syncs for them, at least."""
_SLACK_NS = 2_000_000_000
"""Times of directories are as coarse as the kernel's tick, and a clock may be corrected a little without being set."""
_OWN_NS = 500_000_000
"""A filesystem whose time is further from the machine's has times of its own."""
_UNCHANGEABLE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_SAMPLED = 100
"""The directories of a bucket in which a start looks for a lost record. Each look may be two reads from the disk."""
_MARK, _MARK_BYTES = b"settled", 16
"""A file in .fsrepl that a note belongs to, by its content. Its ctime is not earlier than the last note."""


class Note(Struct, frozen=True, array_like=True):
    """The journal had all that was in a bucket's store at noted_ns, and all of that from before synced_ns survives a
    power cut; 0 where that is not known. mark: the content of the mark. apart_ns, boot_id: see storage/boot.py."""

    noted_ns: int
    synced_ns: int
    mark: str
    apart_ns: int
    boot_id: str


def note(bucket: OpenBucket, journal: Journal) -> int:
    """Note that the journal has all that is in a bucket's store; the time of the note, or 0 where the filesystem has
    times of its own. Raises OSError."""
    fs, now_ns, before = bucket.fs, time.time_ns(), _noted(bucket.address, journal)
    fd = _open_mark(bucket)
    try:
        fs.set_mtime(fd, now_ns)
        mark, mark_ns = fs.read_at(fd, _MARK_BYTES, 0).hex(), fs.stat_fd(fd).st_ctime_ns
    finally:
        fs.close(fd)
    if abs(mark_ns - now_ns) >= _OWN_NS:
        return 0
    # a mark that could not be removed when the clock was set back, as on a read-only mount, does not carry on either
    is_of_mark = before is not None and before.mark == mark and before.synced_ns <= now_ns
    synced_ns = before.synced_ns if before is not None and is_of_mark else 0
    _write(bucket.address, journal, Note(now_ns, synced_ns, mark, boot.apart_ns(), boot.boot_id()))
    return now_ns


def _open_mark(bucket: OpenBucket) -> int:
    """The mark, made anew where it is not there, or empty, as an earlier build left it."""
    with contextlib.suppress(FileNotFoundError):
        fd = bucket.fs.open_read(bucket.meta, _MARK)
        if bucket.fs.stat_fd(fd).st_size == _MARK_BYTES:
            return fd
        bucket.fs.close(fd)
        bucket.fs.unlink(bucket.meta, _MARK)
    fd = bucket.fs.create(bucket.meta, _MARK)
    bucket.fs.write(fd, os.urandom(_MARK_BYTES))
    return fd


def note_synced(address: str, journal: Journal, noted_ns: int) -> None:
    """Note that all that was in a bucket's store at an earlier note survives a power cut."""
    if (found := _noted(address, journal)) is not None:
        _write(address, journal, replace(found, synced_ns=noted_ns))


def forget(bucket: OpenBucket) -> None:
    """Remove the mark, durably: no earlier note counts any more. Raises OSError."""
    try:
        bucket.fs.unlink(bucket.meta, _MARK)
        bucket.fs.sync_file(bucket.meta)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in _UNCHANGEABLE:  # else nothing is published in it either
            raise


def forget_outdated(bucket: OpenBucket, journal: Journal) -> None:
    """Before anything is published: a note that does not count now does not count later, when the clock is right again.
    Raises OSError."""
    if not before_ns(bucket, journal):
        forget(bucket)


def _noted(address: str, journal: Journal) -> Note | None:
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(journal.settled(address), type=Note)
    return None


def _write(address: str, journal: Journal, noted: Note) -> None:
    with journal.guard:  # not a transaction: those are counted as news
        journal.set_settled(address, msgspec.json.encode(noted).decode())


def before_ns(bucket: OpenBucket, journal: Journal) -> int:
    """The ctime before which a directory of a bucket's store has not changed since the journal had all of it; 0 where
    nothing is known of that. Raises OSError."""
    fs, found = bucket.fs, _noted(bucket.address, journal)
    if found is None:
        return 0
    if found.boot_id == boot.boot_id():
        since_ns, counts = found.noted_ns, not boot.is_clock_set(found.apart_ns)
    else:
        since_ns = found.synced_ns
        counts = since_ns > 0 and time.time_ns() >= found.noted_ns and not fs.is_remote(bucket.fd)
    return since_ns - _SLACK_NS if counts and _has_mark(bucket, found.mark, since_ns - _OWN_NS) else 0


def _has_mark(bucket: OpenBucket, mark: str, since_ns: int) -> bool:
    try:
        fd = bucket.fs.open_read(bucket.meta, _MARK)
    except FileNotFoundError:
        return False
    try:
        return bucket.fs.stat_fd(fd).st_ctime_ns > since_ns and bucket.fs.read_at(fd, _MARK_BYTES, 0).hex() == mark
    finally:
        bucket.fs.close(fd)


def changed(
    bucket: OpenBucket, journal: Journal, unchanged: list[Uncompared],
    has_lost_record: Callable[[OpenBucket, Journal, bytes, int], bool],
) -> Iterator[Directory]:  # fmt: skip
    """The directories of the store that may not have the names that the journal knows. unchanged: gets the others.
    has_lost_record: whether the first version of a directory, open here, has lost its record. Attributes are lost by
    whole trees: where some directories chosen at random have theirs, the others are not looked at for that.

    One that the journal does not know at all is found by the number of its parent's links: two, and one for each
    directory in it. Where a filesystem does not count them so (btrfs), each directory is read.
    """
    until_ns, address = before_ns(bucket, journal), bucket.address
    if not until_ns:
        yield from directories(bucket.fs, bucket.versions)
        return
    intended = (keys.split(intent.key)[0] for _, group in read_intents(bucket) for intent in group)
    looked_at = set(map(keys.stored_directory, intended))
    known = {keys.stored_directory(path): path for path in journal.versions.version_directories(address)}
    paths = {b"", *known, *with_parents(known)}
    links = Counter(keys.split(path)[0] for path in paths if path)

    def is_lost_in(path: bytes) -> bool:
        with _opened(bucket, path) as fd:
            return fd >= 0 and has_lost_record(bucket, journal, path, fd)

    sample = random.sample(sorted(known), min(_SAMPLED, len(known)))
    are_lost = any(map(is_lost_in, sample))
    for path in sorted(paths):
        with _opened(bucket, path) as fd:
            if fd < 0:
                continue
            found = bucket.fs.stat_fd(fd)
            is_unchanged = found.st_ctime_ns < until_ns and found.st_nlink == 2 + links[path]
            is_left_out = is_unchanged and path not in looked_at
            if is_left_out and not (are_lost and has_lost_record(bucket, journal, path, fd)):
                unchanged.append(Uncompared(path, known.get(path, path)))
                continue
        walk = Walk([path])
        with walk.step(bucket.fs, bucket.versions) as directory:
            yield directory
            for _ in directory.entries:
                pass
        for below in walk.todo:
            if below not in paths:
                yield from directories(bucket.fs, bucket.versions, below)


@contextlib.contextmanager
def _opened(bucket: OpenBucket, path: bytes) -> Iterator[int]:
    """A directory of the store; -1 where it is gone. Raises OSError."""
    try:
        fd = bucket.fs.open_dir(bucket.versions, path)
    except OSError as error:
        if error.errno not in VANISHED:
            raise
        yield -1
        return
    try:
        yield fd
    finally:
        bucket.fs.close(fd)
