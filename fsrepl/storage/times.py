"""How far a file's times can be believed: pure but for the one probe.

A view that looks as it was recorded is believed to have the content that was recorded. That holds only if any
later change leaves other times. It does not where times are coarse: before Linux 6.13 they move with the tick of
the clock, up to 10 ms; with ext4 inodes of 128 bytes, ext3, HFS+ and some servers they are whole seconds, on FAT
even ones. The clock that they come from may also lie a tick behind the clock that a program reads. So a view
that was recorded within that span of its own change is racy: a scan reads it before it believes it.
Source: design.md, section 7, Capture.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from fsrepl.storage.fs import Fs

SECOND_NS = 1_000_000_000
TICKS_NS = 20_000_000
"""Two ticks of the slowest clock there is: times that move with it, and lag behind it."""
WHOLE_NS = 2 * SECOND_NS + TICKS_NS
"""Whole seconds, also where only every other one is used, and a clock that lags."""


def coarse_ns(fs: Fs, at: int) -> int:
    """How far apart two changes may be, below an open directory, and still leave equal times: asked by a probe.

    Where files live on another machine, ours sees their times late, whatever a probe says.
    """
    if fs.is_remote(at):
        return WHOLE_NS
    try:
        return of_changes(fs.change_times(at))
    except OSError:  # no unnamed files here, or no room for one
        return TICKS_NS


def of_changes(ctimes_ns: Sequence[int]) -> int:
    """The same, from the times that changes left which followed each other at once and were looked at one by one."""
    if all(each % SECOND_NS == 0 for each in ctimes_ns):
        return WHOLE_NS
    return 0 if all(a != b for a, b in itertools.pairwise(ctimes_ns)) else TICKS_NS


def is_racy(ctime_ns: int, now_ns: int, coarse_ns: int) -> bool:
    """Whether a change after now may leave this same ctime.

    One without a fraction of a second is taken for coarse on any filesystem: old inodes may have no room for it.
    """
    if ctime_ns % SECOND_NS == 0:
        coarse_ns = max(coarse_ns, WHOLE_NS)
    return now_ns - ctime_ns < coarse_ns


def may_hide_a_write(found: os.stat_result, now_ns: int, coarse_ns: int) -> bool:
    """Whether content that is written after now may leave all of a file's times as they are.

    A write sets mtime to the same time as ctime: where these lie apart, it shows, however fresh the ctime is that
    our own attributes left.
    """
    apart_ns = abs(found.st_ctime_ns - found.st_mtime_ns)
    whole = found.st_ctime_ns % SECOND_NS == 0
    return apart_ns < max(coarse_ns, WHOLE_NS if whole else 0) and is_racy(found.st_ctime_ns, now_ns, coarse_ns)
