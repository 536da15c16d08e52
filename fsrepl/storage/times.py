"""Reliability of a file's times: pure except for one probe.

A view that looks as recorded is assumed to have the recorded content. That holds only if any later change leaves other
times. It fails where times are coarse: before Linux 6.13 they change with the clock's tick, up to 10 ms; with ext4
inodes of 128 bytes, ext3, HFS+ and some servers they are whole seconds, on FAT even ones. Their clock may also be one
tick behind the clock that a program reads. A view recorded within that span after a change is therefore racy: a scan
reads its content instead of trusting its times. Source: design.md, section 7, Capture.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from fsrepl.storage.fs import Fs

SECOND_NS = 1_000_000_000
TICKS_NS = 20_000_000
"""Two ticks of the slowest clock: the granularity of times that change with it, and their delay behind it."""
WHOLE_NS = 2 * SECOND_NS + TICKS_NS
"""Granularity of whole seconds, or of even ones, including a clock's delay."""
_STEPS_NS = (100, 1_000, 1_000_000, 10_000_000, SECOND_NS, 2 * SECOND_NS)
"""Filesystems that keep less than nanoseconds drop what is between two such steps."""


def coarse_ns(fs: Fs, at: int) -> int:
    """The longest interval between two changes below an open directory that may leave equal times, found by a probe.

    Times of files on another machine are seen here with delay, whatever a probe shows.
    """
    if fs.is_remote(at):
        return WHOLE_NS
    try:
        return of_changes(fs.change_times(at))
    except OSError:  # no support for unnamed files, or no space
        return TICKS_NS


def of_changes(ctimes_ns: Sequence[int]) -> int:
    """The granularity of times, from the ctimes of successive changes that were each read before the next."""
    if all(each % SECOND_NS == 0 for each in ctimes_ns):
        return WHOLE_NS
    return 0 if all(a != b for a, b in itertools.pairwise(ctimes_ns)) else TICKS_NS


def is_as_given(found_ns: int, given_ns: int) -> bool:
    """Whether a file has the time that it was given, as far as its filesystem keeps it."""
    return found_ns == given_ns or any(given_ns - given_ns % step == found_ns for step in _STEPS_NS)


def is_racy(ctime_ns: int, now_ns: int, coarse_ns: int) -> bool:
    """Whether a change after now may leave this same ctime.

    A ctime without a fraction of a second counts as coarse on any filesystem, since old inodes may have no room for
    one.
    """
    if ctime_ns % SECOND_NS == 0:
        coarse_ns = max(coarse_ns, WHOLE_NS)
    return now_ns - ctime_ns < coarse_ns


def may_hide_a_write(found: os.stat_result, now_ns: int, coarse_ns: int) -> bool:
    """Whether a write after now may leave all of a file's times unchanged.

    A write sets mtime to the same time as ctime. Where these differ, the write shows, however recent a ctime caused by
    fsrepl's attributes is.
    """
    apart_ns = abs(found.st_ctime_ns - found.st_mtime_ns)
    whole = found.st_ctime_ns % SECOND_NS == 0
    return apart_ns < max(coarse_ns, WHOLE_NS if whole else 0) and is_racy(found.st_ctime_ns, now_ns, coarse_ns)
