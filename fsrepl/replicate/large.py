"""Large objects beside everything else: copied and hashed in a lane of their own, published by the region's thread."""

from __future__ import annotations

import logging
import sqlite3

from fsrepl.errors import UNFORESEEN, Failed, FsreplError
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.version import Status, Version
from fsrepl.region import limits
from fsrepl.region.bucket_state import Place
from fsrepl.region.region import Region
from fsrepl.replicate import group, transfer
from fsrepl.replicate.destination import LocalTree, StagedReplica
from fsrepl.replicate.group import Batch
from fsrepl.storage.journal.rows import Owed, Word

log = logging.getLogger("fsrepl")


def send_in_lane(region: Region, place: Place, item: transfer.Item) -> None:
    """A large object: stage it beside everything else, with progress; publish it here when it is done."""
    owed, version = item.owed, item.version
    assert version is not None
    progress = limits.Progress(owed.key, owed.id, owed.source, owed.destination, version.size)

    def copy() -> StagedReplica | Version:
        with (
            region.engine.progress(progress),
            region.engine.site.bucket(owed.source).open() as source,
            place.bucket.open() as destination,
        ):
            tree = LocalTree(destination)
            return group.whole_replica(place, tree, item) or group.stage(region, source, tree, item, progress)

    def finish(staged: StagedReplica | Version | Exception) -> None:
        if isinstance(staged, Exception):
            _lane_failed(region, owed, staged)
            return
        try:
            with place.bucket.open() as destination, region.engine.site.bucket(owed.source).open() as source:
                group = Batch(region, place, source, destination)
                group.finish(item, staged)
                group.publish()
        except (FsreplError, OSError) as error:
            region.try_later([owed], error)
        except sqlite3.Error:
            raise
        except Exception:
            log.exception('set aside bucket=%s key="%s": what nobody foresaw', owed.source, keys.shown(owed.key))
            region.try_later([owed], UNFORESEEN)

    way = region_of(owed.source), region.name
    whose = owed.source, owed.destination
    region.in_lane(copy, finish, lane=("deliver", *way), whose=whose, size_bytes=version.size)


def _lane_failed(region: Region, owed: Owed, error: Exception) -> None:
    if isinstance(error, Failed):
        region.send_words([Word(owed, Status.FAILED, error.reason, None)])
    elif isinstance(error, PermissionError):
        region.send_words([Word(owed, Status.FAILED, "DstPutObjectNotPermitted", None)])
    else:
        region.try_later([owed], error)
