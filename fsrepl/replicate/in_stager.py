"""Deliveries in the stager: it writes, reads back and compares replicas, removes views, and records outcomes. See
region/stager.py.

It takes small files and markers alone, from bucket to bucket of this machine. Contents are mostly in its memory, since
it has just read them for their capture; else it reads the stored versions. It removes views for markers alone, under an
intent, and where they are as recorded. Every error is left to the daemon, which stages that replica, shows that
marker, or records that outcome, itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import zip_longest

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model import keys
from fsrepl.model.version import Kind, Shortfall, Version
from fsrepl.model.view import View
from fsrepl.region.recent import Contents
from fsrepl.region.stager import Pending, Stager, is_text
from fsrepl.replicate import transfer
from fsrepl.replicate.draft import NewFile, StagedReplica
from fsrepl.replicate.sending import StoredContent
from fsrepl.storage import records, sharing, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.hashing import SMALL_BYTES
from fsrepl.views import show, view_attributes

STAGE, REMOVE, RECORD = "stage replicas", "remove views", "record outcomes"


class Stage(Struct, frozen=True, array_like=True):
    """To stage replicas, within_s; the rest is left to the daemon. links_views: see sharing.

    contents: where versions of the bucket come back as new ones, the ids of those whose content they get, in the same
    order; else empty.
    """

    replicas: list[Version]
    links_views: bool
    within_s: float
    contents: list[str]


class Staged(Struct, frozen=True, array_like=True):
    """A staged replica: see StagedReplica. shortfall: None where it is as asked."""

    name: bytes
    sidecar: bool
    view: bytes
    shortfall: Shortfall | None


class Remove(Struct, frozen=True, array_like=True):
    """To remove the views of files, by key, as they are recorded."""

    views: list[tuple[bytes, View]]


class Removed(Struct, frozen=True, array_like=True):
    """A view that is gone. left, record, is_overwritten: see show.Shown."""

    left: str
    record: Version | None
    is_overwritten: bool = False


class Settled(Struct, frozen=True, array_like=True):
    """A version as its deliveries are to be recorded on its stored file, whose record is plain: see recent.Written.

    view: then it gets the labels of that version, while it looks so; None: it gets none.
    """

    version: Version
    view: View | None


class Record(Struct, frozen=True, array_like=True):
    """To record outcomes at their source."""

    settled: list[Settled]


class Recorded(Struct, frozen=True, array_like=True):
    """The result for one outcome. view: as it looks with its labels; None where it has not got them."""

    is_recorded: bool
    view: View | None


# -- the daemon's side


def takes(replica: Version) -> bool:
    """Whether a replica is for the stager."""
    return replica.marker or (
        replica.size < SMALL_BYTES
        and replica.kind is Kind.FILE
        and replica.place is None
        and replica.link is None
        and is_text(replica.attrs, replica.tags)
    )


CHUNK = 128
"""Replicas that the stager gets at once: it stages them while the next ones are prepared."""


class Staging:
    """Replicas that the stager stages."""

    def __init__(
        self, stager: Stager, source: OpenBucket, destination: OpenBucket, replicas: Sequence[Version], within_s: float,
        contents: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._replicas = replicas
        order = Stage(list(replicas), sharing.links_views(destination), within_s, list(contents))
        self._pending = stager.begin(STAGE, order, [destination, source], len(replicas))

    def result(self) -> list[StagedReplica | None]:
        """The first of the replicas, staged, as many as there was time for; None for what was not staged. Waits for
        them."""
        answer = self._pending.result() if self._pending is not None else None
        if answer is None:
            return [None] * len(self._replicas)
        return [
            _replica(replica, staged) if staged is not None else None
            for replica, staged in zip(self._replicas, _answers.decode(answer), strict=False)
        ]


def _replica(replica: Version, staged: Staged) -> StagedReplica:
    if staged.shortfall is not None:
        replica = replace(replica, shortfall=staged.shortfall)
    return StagedReplica(versions.Staged(replica, staged.name, staged.sidecar), staged.view)


class Removing:
    """Views that the stager removes for markers, if they are so many that it is worth it, while the daemon removes
    others."""

    def __init__(self, stager: Stager | None, bucket: OpenBucket, views: Sequence[tuple[bytes, View]]) -> None:
        self._views = views
        self._pending: Pending | None = None
        if stager is not None and stager.is_wanted(len(views)):
            self._pending = stager.begin(REMOVE, Remove(list(views)), [bucket], len(views))
            # to be synced; also where it is lost, since it may have removed some
            bucket.views.changed.update(keys.split(key)[0] for key, _ in views)

    def result(self) -> dict[bytes, show.Shown]:
        """The views that it has removed, by key; waits for it."""
        answer = self._pending.result() if self._pending is not None else None
        if answer is None:
            return {}
        return {
            key: show.Shown(None, each.left, each.record, each.is_overwritten)
            for (key, _), each in zip(self._views, _removed.decode(answer), strict=True)
            if each is not None
        }


def record(stager: Stager | None, bucket: OpenBucket, settled: Sequence[Settled]) -> list[Recorded]:
    """Have outcomes recorded, if they are so many that it is worth it; for each what became of it."""
    orders: list[tuple[Sequence[Settled], Pending | None]] = []
    for at in range(0, len(settled), _SETTLED_MAX) if stager is not None and stager.is_wanted(len(settled)) else ():
        some = settled[at : at + _SETTLED_MAX]
        orders.append((some, stager.begin(RECORD, Record(list(some)), [bucket], len(settled)) if stager else None))
    recorded: list[Recorded] = []
    for some, pending in orders:
        answer = pending.result() if pending is not None else None
        recorded += [_NOT_RECORDED] * len(some) if answer is None else _recorded.decode(answer)
    return recorded or [_NOT_RECORDED] * len(settled)


_SETTLED_MAX = 512
_NOT_RECORDED = Recorded(is_recorded=False, view=None)
_answers = msgspec.msgpack.Decoder(list[Staged | None])
_removed = msgspec.msgpack.Decoder(list[Removed | None])
_recorded = msgspec.msgpack.Decoder(list[Recorded])


# -- the stager's side


def carry_out_stage(order: bytes, buckets: Sequence[OpenBucket], held: Contents) -> bytes:
    """See Stage: for each replica how it is staged, or none; fewer where there was no more time."""
    wanted, (destination, source) = _orders.decode(order), buckets
    until_s = time.monotonic() + wanted.within_s
    answer: list[Staged | None] = []
    for replica, content_id in zip_longest(wanted.replicas, wanted.contents):
        if answer and time.monotonic() > until_s:
            break
        content = StoredContent(
            source, replace(replica, id=content_id) if content_id else replica, None, held.get(replica.digest)
        )
        answer.append(_stage(content, destination, replica, links_views=wanted.links_views))
    return msgspec.msgpack.encode(answer)


def _stage(content: StoredContent, destination: OpenBucket, replica: Version, *, links_views: bool) -> Staged | None:
    linked = links_views and sharing.may_be_view(replica.posix)
    try:
        if replica.marker:
            marker = versions.stage_marker(destination, replica)
            return Staged(marker.name, marker.sidecar, b"", None)
        with NewFile(destination, replica, linked=linked) as draft, content:
            staged = transfer.stage_content(content, draft, None)
    except Exception:  # the daemon tries again, and deals with what it meets
        return None
    stored = staged.stored
    shortfall = stored.version.shortfall
    return Staged(stored.name, stored.sidecar, staged.view, None if shortfall == replica.shortfall else shortfall)


def carry_out_remove(order: bytes, buckets: Sequence[OpenBucket], held: Contents) -> bytes:
    """See Remove: for each view whether it is gone."""
    (bucket,) = buckets
    return msgspec.msgpack.encode([_remove(bucket, *each) for each in _remove_orders.decode(order).views])


def _remove(bucket: OpenBucket, key: bytes, view: View) -> Removed | None:
    try:
        outcome = show.remove(bucket, key, view)
    except Exception:  # the daemon tries again, and deals with what it meets
        return None
    if not isinstance(outcome, show.Shown):
        return None
    record = outcome.record
    record = record if record is not None and is_text(record.attrs, record.tags) else None
    return Removed(outcome.left, record, outcome.is_overwritten)


def carry_out_record(order: bytes, buckets: Sequence[OpenBucket], held: Contents) -> bytes:
    """See Record: for each outcome what became of it."""
    (bucket,) = buckets
    return msgspec.msgpack.encode([_record(bucket, each) for each in _record_orders.decode(order).settled])


def _record(bucket: OpenBucket, settled: Settled) -> Recorded:
    version, view = settled.version, settled.view
    try:
        if not records.write_deliveries_in_place(bucket, version):
            return _NOT_RECORDED
    except Exception:  # the daemon tries again, and deals with what it meets
        return _NOT_RECORDED
    try:
        return Recorded(True, view_attributes.label_view(bucket, version, view) if view is not None else None)
    except Exception:
        return Recorded(is_recorded=True, view=None)


_orders = msgspec.msgpack.Decoder(Stage)
_remove_orders = msgspec.msgpack.Decoder(Remove)
_record_orders = msgspec.msgpack.Decoder(Record)
