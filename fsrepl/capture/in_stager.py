"""Captures in the stager: it reads changed files, and stages those that became versions. See region/stager.py.

It reads small files alone, and keeps their contents until they are staged. It stages markers too. What it saw of any
other key, and every error, is left to the daemon, which looks at that key itself.
"""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fsrepl.capture import copy, look
from fsrepl.capture.apply import NewVersion
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.version import Kind, Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.change_queue import CLOSED, FOUND, GONE, Change, WriterWait, temporary_pattern
from fsrepl.region.recent import Contents
from fsrepl.region.region import Region
from fsrepl.region.stager import Pending, is_text
from fsrepl.storage import staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.hashing import SMALL_BYTES
from fsrepl.storage.journal.rows import Object

READ, STAGE = "read", "stage versions"
_BYTES_MAX = 4 << 20
"""Limit of the contents of one order."""
HELD_BYTES = 2 * _BYTES_MAX
"""Limit of the contents that the stager keeps."""


class Asked(Struct, frozen=True, array_like=True):
    """A changed key, and what is recorded of it: see Change."""

    key: bytes
    flags: int
    since_s: float
    known: Object | None


class Read(Struct, frozen=True, array_like=True):
    """To look at keys. open_quiet_s, open_max_s: see WriterWait. temporary: patterns of names, see settings. with_data:
    the daemon needs the contents too. within_s: then the rest is left to the daemon."""

    asked: list[Asked]
    open_quiet_s: float
    open_max_s: float
    temporary: tuple[str, ...]
    with_data: bool
    within_s: float


Times = tuple[int, int, int]
"""The numbers of a stat result beside its ten positions: mtime_ns, ctime_ns, and how many blocks."""
Answer = tuple[copy.Taken, Times] | None
"""A small file that was read; None where the daemon looks itself."""


class Stage(Struct, frozen=True, array_like=True):
    """To stage versions whose contents were just read, and markers."""

    versions: list[Version]


# -- the daemon's side

CHUNK = 256
"""Keys that the stager gets at once: it reads the next ones while these become versions."""


class Reading:
    """Changed keys that the stager reads, those that are worth it: new contents of files, most of a burst."""

    def __init__(
        self, region: Region, state: BucketState, bucket: OpenBucket, changes: Sequence[Change],
        objects: Mapping[bytes, Object], within_s: float,
    ) -> None:  # fmt: skip
        self._region, self._is_tree = region, bucket.bucket.trees
        self._asked: list[Asked] = []
        self._pending: Pending | None = None
        stager = region.engine.stager
        if stager is None or bucket.bucket.sharing == "link":
            return  # a linked view is not copied
        asked = _plain(state, changes, objects)
        if not stager.is_wanted(len(asked)):
            return
        self._asked = asked[: stager.pace(READ)]
        order = Read(self._asked, *_settings(region, bucket), within_s)
        self._pending = stager.begin(READ, order, [bucket], len(self._asked))

    @property
    def is_begun(self) -> bool:
        """Whether the stager has got an order."""
        return self._pending is not None

    def result(self) -> dict[bytes, copy.Taken]:
        """Files that were read, by key; waits for them."""
        stager, answer = self._region.engine.stager, self._pending.result() if self._pending is not None else None
        if stager is None or answer is None:
            return {}
        found = _read.decode(answer)
        stager.note_pace(READ, len(self._asked), len(found))
        return {
            each.key: _unpacked(*read)
            for each, read in zip(self._asked, found, strict=False)
            if read is not None and not (self._is_tree and read[0].found.st_nlink > 1)  # which name is first matters
        }


def _settings(region: Region, bucket: OpenBucket) -> tuple[float, float, tuple[str, ...], bool]:
    """The fields of Read that are alike for all keys of a bucket."""
    wait, replication = region.writer_wait, bucket.bucket.replication
    rules = replication.rules if replication is not None else ()
    with_data = any(region_of(rule.destination) not in region.regions for rule in rules)
    return wait.open_quiet_s, wait.open_max_s, tuple(region.engine.settings.capture.temporary), with_data


def _plain(state: BucketState, changes: Sequence[Change], objects: Mapping[bytes, Object]) -> list[Asked]:
    """The keys of files that are to be looked at for their content, and for nothing else."""
    captures, views = state.captures, state.views
    if captures.singly:
        return []
    queues = captures.deferred, views.stale, captures.copying, views.unapplied, captures.set_aside, captures.faults
    waits = [each for each in queues if each]  # mostly none
    plain = []
    for _, key, flags, _, since_s in changes:
        if (
            flags == GONE
            or (waits and any(key in each for each in waits))
            or keys.is_directory(key)
            or not keys.is_key(key)
        ):
            continue
        known = objects.get(key)
        if known is not None and known.view is not None and not flags & (CLOSED | FOUND):
            continue  # it may be as recorded
        plain.append(Asked(key, flags, since_s, known))
    return plain


class Staging:
    """Versions that are staged by the stager: those whose contents it has, and markers, where they are many."""

    def __init__(self, region: Region, bucket: OpenBucket, batch: Sequence[NewVersion]) -> None:
        self._batch = batch
        self._pending: Pending | None = None
        stager = region.engine.stager
        if stager is None or not batch:
            return
        if stager.is_wanted(len(batch)) or any(each.taken is not None for each in batch):
            order = Stage([each.version for each in batch])
            self._pending = stager.begin(STAGE, order, [bucket], len(batch))

    def result(self) -> tuple[list[NewVersion], list[NewVersion]]:
        """Versions that are staged, or are markers, which the daemon can stage too; and those whose contents are lost.
        Waits for them."""
        answer = self._pending.result() if self._pending is not None else None
        names = _names.decode(answer) if answer is not None else [None] * len(self._batch)
        staged: list[NewVersion] = []
        left: list[NewVersion] = []
        for each, name in zip(self._batch, names, strict=True):
            if name is not None:
                each.staged = versions.Staged(each.version, *name)
            (staged if name is not None or each.taken is None else left).append(each)
        return staged, left


_read = msgspec.msgpack.Decoder(list[Answer], dec_hook=operator.call)  # a stat_result is made of its ten numbers
_names = msgspec.msgpack.Decoder(list[tuple[bytes, bool] | None])


def _unpacked(taken: copy.Taken, times: Times) -> copy.Taken:
    mtime_ns, ctime_ns, blocks = times
    nanoseconds = {"st_mtime_ns": mtime_ns, "st_ctime_ns": ctime_ns, "st_blocks": blocks}
    return replace(taken, found=os.stat_result(taken.found, nanoseconds))


# -- the stager's side


def carry_out_read(order: bytes, buckets: Sequence[OpenBucket], held: Contents) -> bytes:
    """See Read: for each key the file that was read, or None; fewer where time or room ran out."""
    wanted, (bucket,) = _reads.decode(order), buckets
    is_temporary = temporary_pattern(wanted.temporary).match
    writer_wait = WriterWait(wanted.open_quiet_s, wanted.open_max_s, SMALL_BYTES, is_temporary)
    until_s = time.monotonic() + wanted.within_s
    answer: list[Answer] = []
    size = 0
    for each in wanted.asked:
        began_s = time.monotonic()
        if size >= _BYTES_MAX or began_s > until_s:
            break
        taken = _look(bucket, each, writer_wait, began_s)
        if taken is not None and taken.data is not None:
            size += len(taken.data)
            held.put(taken.digest, taken.data, began_s)
        answer.append(_packed(taken, with_data=wanted.with_data) if taken is not None else None)
    return msgspec.msgpack.encode(answer)


def _look(bucket: OpenBucket, asked: Asked, writer_wait: WriterWait, now_s: float) -> copy.Taken | None:
    change = Change(bucket.address, asked.key, asked.flags, 0, asked.since_s)
    try:
        seen = look.look(bucket, change, asked.known, writer_wait, time.time_ns(), open_for_s=now_s - asked.since_s)
    except Exception:  # the daemon looks again, and deals with what it meets
        return None
    if not isinstance(seen, copy.Taken):
        return None
    if seen.staged:
        staging.unstage(bucket, seen.staged)
    is_plain = seen.kind is Kind.FILE and not seen.staged and not seen.is_placed
    return seen if is_plain and is_text(seen.attrs, seen.labels, seen.tags) else None


def _packed(taken: copy.Taken, *, with_data: bool) -> tuple[copy.Taken, Times]:
    found = taken.found
    times = found.st_mtime_ns, found.st_ctime_ns, found.st_blocks
    return replace(taken, data=taken.data if with_data else None, is_held=taken.data is not None), times


def carry_out_stage(order: bytes, buckets: Sequence[OpenBucket], held: Contents) -> bytes:
    """See Stage: for each version the name of its staged file, and whether it has a sidecar; or none."""
    (bucket,) = buckets
    return msgspec.msgpack.encode([_stage(bucket, each, held) for each in _stages.decode(order).versions])


def _stage(bucket: OpenBucket, version: Version, held: Contents) -> tuple[bytes, bool] | None:
    data = held.get(version.digest)
    if data is None and not version.marker:
        return None
    try:
        staged = versions.stage_marker(bucket, version) if data is None else copy.stage_content(bucket, version, data)
    except Exception:  # the daemon tries again, and deals with what it meets
        return None
    return staged.name, staged.sidecar


_reads, _stages = msgspec.msgpack.Decoder(Read), msgspec.msgpack.Decoder(Stage)
