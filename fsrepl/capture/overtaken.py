"""Files in .fsrepl/displaced that a later change of their view overtook: each becomes a version before that
change does, as if it had been captured in its place.

The later change is captured afterwards, and stays current. Putting the earlier file back into its place instead would
replace what its user saved last. Source: views/displaced.py, which finds these files.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from fsrepl.capture import apply, copy, ingest
from fsrepl.errors import FsreplError, SourceMoved, Unavailable, reason
from fsrepl.model import keys
from fsrepl.model.version import Kind
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.change_queue import ARRIVED, Change
from fsrepl.region.region import Region
from fsrepl.storage import records
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.view_file import open_entry
from fsrepl.views import stale
from fsrepl.views.displaced import Overtaken

log = logging.getLogger("fsrepl")


def record_all(region: Region, state: BucketState, bucket: OpenBucket, found: Iterable[Overtaken]) -> None:
    """Make each of these files a version, and remove it; a file that cannot be recorded now stays for the next look."""
    for each in found:
        try:
            _record(region, state, bucket, each)
        except (OSError, FsreplError) as error:
            shown = keys.shown(each.key)
            log.warning('displaced bucket=%s key="%s": left in place: %s', bucket.address, shown, reason(error))


def _record(region: Region, state: BucketState, bucket: OpenBucket, overtaken: Overtaken) -> None:
    journal, key = region.engine.journal, overtaken.key
    if why := apply.no_room(region, bucket):
        raise Unavailable(why)
    taken = _take(bucket, overtaken.aside)
    if taken is None:
        return  # a program writes into it: the next look finds what it has become
    change = Change(bucket.address, key, ARRIVED, region.engine.epoch, time.monotonic())
    known = journal.versions.object(bucket.address, key)
    new = apply.new_version(region, state, bucket, change, known, taken)
    # a crash from here on finds a displaced file that is recorded, and a view that is not
    if ingest.publish(region, state, bucket, [new]):
        bucket.fs.unlink(bucket.displaced, overtaken.aside)
        stale.recapture(region, state, key)


def _take(bucket: OpenBucket, aside: bytes) -> copy.Taken | None:
    """A copy of a displaced file; None where it changes meanwhile. Raises OSError, Unavailable."""
    now_ns = time.time_ns()
    try:
        with open_entry(bucket, bucket.displaced, aside) as entry:
            if entry.kind is Kind.LINK:
                return copy.take_link(bucket, entry.fd, entry.found, now_ns)
            return _copy(bucket, aside, entry.fd, now_ns)
    except PermissionError:
        fd = records.open_file(bucket, bucket.displaced, aside)  # a mode that denies the daemon, its owner
    except SourceMoved:
        return None
    try:
        return _copy(bucket, aside, fd, now_ns)
    except SourceMoved:
        return None
    finally:
        bucket.fs.close(fd)


def _copy(bucket: OpenBucket, aside: bytes, fd: int, now_ns: int) -> copy.Taken:
    found = bucket.fs.stat_fd(fd)
    return copy.take_copy(
        bucket, bucket.displaced, aside, fd, found, None, now_ns, same=b"", held_open=False, wait_exceeded=False
    )
