"""Replicas in the stager: it writes, reads back and compares them. See region/stager.py.

It takes small files alone, from bucket to bucket of this machine. Their contents are mostly in its memory, since it has
just read them for their capture; else it reads the stored versions. Every error is left to the daemon, which stages
that replica itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model.version import Kind, Shortfall, Version
from fsrepl.region.recent import Contents
from fsrepl.region.stager import Stager, is_text
from fsrepl.replicate import transfer
from fsrepl.replicate.draft import NewFile, StagedReplica
from fsrepl.replicate.sending import StoredContent
from fsrepl.storage import sharing, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.hashing import SMALL_BYTES

STAGE = "stage replicas"


class Stage(Struct, frozen=True, array_like=True):
    """To stage replicas, within_s; the rest is left to the daemon. links_views: see sharing."""

    replicas: list[Version]
    links_views: bool
    within_s: float


class Staged(Struct, frozen=True, array_like=True):
    """A staged replica: see StagedReplica. shortfall: None where it is as asked."""

    name: bytes
    sidecar: bool
    view: bytes
    shortfall: Shortfall | None


# -- the daemon's side


def takes(replica: Version) -> bool:
    """Whether a replica is for the stager."""
    return (
        not replica.marker
        and replica.size < SMALL_BYTES
        and replica.kind is Kind.FILE
        and replica.place is None
        and replica.link is None
        and is_text(replica.attrs, replica.tags)
    )


def stage(
    stager: Stager, source: OpenBucket, destination: OpenBucket, replicas: Sequence[Version], within_s: float
) -> list[StagedReplica | None]:
    """The first of some replicas, staged, as many as there was time for; None for a replica that was not staged."""
    order = Stage(list(replicas), sharing.links_views(destination), within_s)
    pending = stager.begin(STAGE, order, [destination, source], len(replicas))
    answer = pending.result() if pending is not None else None
    if answer is None:
        return [None] * len(replicas)
    found = _answers.decode(answer)
    stager.note_pace(STAGE, len(replicas), len(found))
    return [
        _replica(replica, staged) if staged is not None else None
        for replica, staged in zip(replicas, found, strict=False)
    ]


def _replica(replica: Version, staged: Staged) -> StagedReplica:
    if staged.shortfall is not None:
        replica = replace(replica, shortfall=staged.shortfall)
    return StagedReplica(versions.Staged(replica, staged.name, staged.sidecar), staged.view)


_answers = msgspec.msgpack.Decoder(list[Staged | None])


# -- the stager's side


def carry_out_stage(order: bytes, buckets: Sequence[OpenBucket], held: Contents) -> bytes:
    """See Stage: for each replica how it is staged, or none; fewer where there was no more time."""
    wanted, (destination, source) = _orders.decode(order), buckets
    until_s = time.monotonic() + wanted.within_s
    answer: list[Staged | None] = []
    for replica in wanted.replicas:
        if answer and time.monotonic() > until_s:
            break
        answer.append(_stage(source, destination, replica, held.get(replica.digest), links_views=wanted.links_views))
    return msgspec.msgpack.encode(answer)


def _stage(
    source: OpenBucket, destination: OpenBucket, replica: Version, data: bytes | None, *, links_views: bool
) -> Staged | None:
    linked = links_views and sharing.may_be_view(replica.posix)
    try:
        with (
            NewFile(destination, replica, linked=linked) as draft,
            StoredContent(source, replica, None, data) as content,
        ):
            staged = transfer.stage_content(content, draft, None)
    except Exception:  # the daemon tries again, and deals with what it meets
        return None
    stored = staged.stored
    shortfall = stored.version.shortfall
    return Staged(stored.name, stored.sidecar, staged.view, None if shortfall == replica.shortfall else shortfall)


_orders = msgspec.msgpack.Decoder(Stage)
