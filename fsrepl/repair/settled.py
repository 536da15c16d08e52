"""Directories of the store that are compared only after the start, since nothing has changed in them for long.

Now and then, between two batches, a bucket's region notes the time at which the journal had all published versions. A
directory with an earlier ctime has the names that the journal knows, since each name that is added or removed sets the
ctime, and no program can set it otherwise. So a start after a crash reads the directories of the last seconds, and not
those of a million versions. The others are compared later, beside other work, since fsck sets no times.

The note counts only where nothing else explains an early ctime: the clock was not set and the machine not started since
then, and the filesystem is not an older state of itself, whose mark would be older too.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

from fsrepl.model import json_text, keys
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import read_intents
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.walk import VANISHED, Directory, Uncompared, Walk, directories
from fsrepl.views.directories import with_parents

NOTE_S = 5.0
_SLACK_NS = 2_000_000_000
"""Times of directories are as coarse as the kernel's tick, and a clock may be corrected a little without being set."""
_SET_NS = 500_000_000
_SAMPLED = 100
"""The directories of a bucket in which a start looks for a lost record. Each look may be two reads from the disk."""
_MARK = b"settled"
"""An empty file in .fsrepl. Its ctime is part of the note."""
_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def note(bucket: OpenBucket, journal: Journal) -> None:
    """Note that the journal has all that is in a bucket's store. Raises OSError."""
    fs, now_ns, apart_ns = bucket.fs, time.time_ns(), _apart_ns()
    try:
        fd = fs.open_read(bucket.meta, _MARK)
    except FileNotFoundError:
        fd = fs.create(bucket.meta, _MARK)
    try:
        fs.set_mtime(fd, now_ns)
        mark_ns = fs.stat_fd(fd).st_ctime_ns
    finally:
        fs.close(fd)
    if abs(mark_ns - now_ns) < _SET_NS:  # else the times of the filesystem are those of another machine
        with journal.guard:  # not a transaction: those are counted as news
            journal.set_settled(bucket.address, json.dumps([now_ns, apart_ns, mark_ns]))


def before_ns(bucket: OpenBucket, journal: Journal) -> int:
    """The ctime before which a directory of a bucket's store has not changed since the journal had all of it; 0 where
    nothing is known of that. Raises OSError."""
    if not (text := journal.settled(bucket.address)):
        return 0
    try:
        noted_ns, apart_ns, mark_ns = map(int, json_text.loads(text))
        is_same = bucket.fs.stat(bucket.meta, _MARK).st_ctime_ns == mark_ns
    except (FileNotFoundError, ValueError, TypeError):
        return 0
    return noted_ns - _SLACK_NS if is_same and abs(_apart_ns() - apart_ns) < _SET_NS else 0


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


def _apart_ns() -> int:
    """The difference of the time of day and that since the boot: constant for as long as the clock is not set."""
    return time.time_ns() - time.clock_gettime_ns(_SINCE_BOOT)
