"""Large objects: copied and hashed by background workers, published by the region's thread."""

from __future__ import annotations

import logging
import sqlite3

from fsrepl.errors import Failed, FsreplError
from fsrepl.model.address import region_of
from fsrepl.model.blockmap import BlockMap
from fsrepl.model.version import Status, Version
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.region import Region
from fsrepl.replicate import blockwise, early, group, transfer
from fsrepl.replicate.blockwise import Held, Sent
from fsrepl.replicate.destination import Destination, LocalTree
from fsrepl.replicate.draft import StagedReplica
from fsrepl.replicate.group import DeliveryGroup
from fsrepl.replicate.source import Opener, Source
from fsrepl.replicate.transfer import Item
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")

_OWN_VERSIONS_MAX, _ALIKE_MAX = 4, 16
"""The versions of the key itself, and of any key with the same size, that are searched for known content at most."""


def send_in_background(region: Region, state: BucketState, item: Item, open_source: Opener) -> None:
    """Stage a large object in the background, with progress; publish it in the region's thread when it is done."""
    delivery, version = item.delivery, item.version
    assert version is not None
    progress = limits.Progress(delivery.key, delivery.id, delivery.source, delivery.destination, version.size)

    def copy() -> Sent | StagedReplica | Version:
        with (
            region.engine.progress(progress),
            early.taken(state, delivery) as copied,
            state.bucket.open() as destination,
            open_source(delivery.source, destination) as source,
        ):
            tree = LocalTree(destination)
            if (there := group.whole_replica(state, source, tree, item)) is not None:
                return there
            if version.size < region.engine.settings.replication.large_file_bytes:
                return group.stage(source, tree, item, progress)
            staged = _stage_large(region, state, source, destination, tree, item, progress, copied)
            progress.bytes_crossed += copied.crossed_bytes if copied is not None else 0
            return staged

    def finish(staged: Sent | StagedReplica | Version | Exception) -> None:
        if isinstance(staged, Exception):
            _background_failed(region, delivery, staged)
            return
        if isinstance(staged, Sent):
            item.crossed_bytes = progress.bytes_crossed
            if staged.damaged is not None:
                state.damaged.append(Damaged(state.bucket.address, *staged.damaged))
            staged = staged.staged
        try:
            with state.bucket.open() as destination, open_source(delivery.source, destination) as source:
                group = DeliveryGroup(region, state, source, destination)
                group.finish(item, staged)
                group.publish()
        except (FsreplError, OSError) as error:
            region.try_later([delivery], error)
        except sqlite3.Error:
            raise
        except Exception:
            region.set_aside(delivery)

    way = region_of(delivery.source), region.name
    whose = delivery.source, delivery.destination
    region.in_background(copy, finish, pool=("deliver", *way), whose=whose, size_bytes=version.size)


def _stage_large(
    region: Region, state: BucketState, source: Source, bucket: OpenBucket, tree: Destination, item: Item,
    progress: limits.Progress, copied: EarlyCopy | None,
) -> Sent:  # fmt: skip
    """Stage a large object, of which only what the destination lacks crosses."""
    version, replica = item.version, item.replica
    assert version is not None
    assert replica is not None
    versions = region.engine.journal.versions
    held = [
        (version.key, version_id)
        for version_id, _, marker in versions.versions_of(bucket.address, version.key)[:_OWN_VERSIONS_MAX]
        if not marker and version_id != version.id
    ]
    held += [each for each in versions.of_size(bucket.address, version.size, _ALIKE_MAX) if each not in held]
    held = [each for each in held if each != (version.key, version.id)]

    before = (copied.key, copied.id) if copied is not None else None

    def others(blocks: BlockMap) -> list[Held]:
        """Versions of content that shares blocks with this one."""
        sizes = state.replicas.alike.sizes(bucket, blocks)
        return [each for size in sizes for each in versions.of_size(bucket.address, size, _OWN_VERSIONS_MAX)]

    with source.released(), source.content(version) as content:
        blocks = content.blocks()
        if blocks is None:
            raise transfer.damaged()
        with (
            blockwise.base_of(source, bucket, blocks, version, held, others, before) as base,
            tree.large_draft(replica, copied) as draft,
        ):
            return blockwise.stage(content, blocks, draft, version, base, progress)


def _background_failed(region: Region, delivery: Delivery, error: Exception) -> None:
    if isinstance(error, Failed):
        region.report_outcomes([Outcome(delivery, Status.FAILED, error.reason, None)])
    elif isinstance(error, PermissionError):
        region.report_outcomes([Outcome(delivery, Status.FAILED, "DstPutObjectNotPermitted", None)])
    else:
        region.try_later([delivery], error)
