"""Large objects: copied and hashed by background workers, published by the region's thread."""

from __future__ import annotations

import logging
import sqlite3

from fsrepl.errors import UNEXPECTED, Failed, FsreplError
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.version import Status, Version
from fsrepl.region import limits
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.replicate import group, transfer
from fsrepl.replicate.destination import LocalTree, StagedReplica
from fsrepl.replicate.group import DeliveryGroup
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")


def send_in_background(region: Region, state: BucketState, item: transfer.Item) -> None:
    """Stage a large object in the background, with progress; publish it in the region's thread when it is done."""
    delivery, version = item.delivery, item.version
    assert version is not None
    progress = limits.Progress(delivery.key, delivery.id, delivery.source, delivery.destination, version.size)

    def copy() -> StagedReplica | Version:
        with (
            region.engine.progress(progress),
            region.engine.site.bucket(delivery.source).open() as source,
            state.bucket.open() as destination,
        ):
            tree = LocalTree(destination)
            return group.whole_replica(state, tree, item) or group.stage(region, source, tree, item, progress)

    def finish(staged: StagedReplica | Version | Exception) -> None:
        if isinstance(staged, Exception):
            _background_failed(region, delivery, staged)
            return
        try:
            with state.bucket.open() as destination, region.engine.site.bucket(delivery.source).open() as source:
                group = DeliveryGroup(region, state, source, destination)
                group.finish(item, staged)
                group.publish()
        except (FsreplError, OSError) as error:
            region.try_later([delivery], error)
        except sqlite3.Error:
            raise
        except Exception:
            log.exception(
                'set aside bucket=%s key="%s": an unexpected error', delivery.source, keys.shown(delivery.key)
            )
            region.try_later([delivery], UNEXPECTED)

    way = region_of(delivery.source), region.name
    whose = delivery.source, delivery.destination
    region.in_background(copy, finish, pool=("deliver", *way), whose=whose, size_bytes=version.size)


def _background_failed(region: Region, delivery: Delivery, error: Exception) -> None:
    if isinstance(error, Failed):
        region.report_outcomes([Outcome(delivery, Status.FAILED, error.reason, None)])
    elif isinstance(error, PermissionError):
        region.report_outcomes([Outcome(delivery, Status.FAILED, "DstPutObjectNotPermitted", None)])
    else:
        region.try_later([delivery], error)
