"""Large objects beside everything else: copied and hashed in a lane of their own, published by the region's thread."""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import TYPE_CHECKING

from fsrepl import capture, deliver, intake, keys, transfer
from fsrepl.errors import UNFORESEEN, Failed, FsreplError
from fsrepl.fs import reason
from fsrepl.marks import Mark
from fsrepl.model import Status, Version
from fsrepl.place import Place
from fsrepl.rows import Owed, Word

if TYPE_CHECKING:
    from fsrepl.region import Region

log = logging.getLogger("fsrepl")


def look_in_lane(region: Region, place: Place, mark: Mark) -> None:
    """A large file: copy and hash it beside everything else."""
    place.lanes[mark.key] = mark
    began_s = 0.0

    def copy() -> capture.Seen:
        nonlocal began_s
        began_s = time.monotonic()
        with place.bucket.open() as bucket:
            known = region.engine.journal.object(mark.address, mark.key)
            open_for_s = began_s - mark.since_s
            return capture.look(
                bucket, mark, known, region.patience, time.time_ns(), open_for_s=open_for_s, in_lane=True
            )

    def finish(seen: capture.Seen | Exception) -> None:
        _rest(region, place, mark.key, time.monotonic() - began_s)
        with region.moving():
            try:
                if not place.up:
                    pass  # a scan follows when it is back
                elif isinstance(seen, Exception):
                    intake.put_off(region, place, mark, seen)
                else:
                    with region.at_work(place):
                        intake.finish_large(region, place, mark, seen)
                        place.stumbles = 0
            finally:
                del place.lanes[mark.key]
        region.engine.notify()

    region.in_lane(copy, finish, lane=("capture", region.name), whose=mark.address)


def send_in_lane(region: Region, place: Place, item: deliver.Item) -> None:
    """A large object: stage it beside everything else, with progress; publish it here when it is done."""
    owed, version = item.owed, item.version
    assert version is not None
    progress = transfer.Progress(owed.key, owed.id, owed.source, owed.destination, version.size)

    def copy() -> transfer.StagedReplica | Version:
        with (
            region.engine.progress(progress),
            region.engine.site.bucket(owed.source).open() as source,
            place.bucket.open() as destination,
        ):
            there = deliver.whole_replica(place, destination, item)
            return there or deliver.stage(region, source, destination, item, progress)

    def finish(staged: transfer.StagedReplica | Version | Exception) -> None:
        if isinstance(staged, Exception):
            _lane_failed(region, owed, staged)
            return
        try:
            with place.bucket.open() as destination, region.engine.site.bucket(owed.source).open() as source:
                group = deliver.Batch(region, place, source, destination)
                group.finish(item, staged)
                group.publish()
        except (FsreplError, OSError) as error:
            region.try_later([owed], reason(error) if isinstance(error, OSError) else str(error))
        except sqlite3.Error:
            raise
        except Exception:
            log.exception('set aside bucket=%s key="%s": what nobody foresaw', owed.source, keys.shown(owed.key))
            region.try_later([owed], UNFORESEEN)

    way = owed.source.partition("/")[0], region.name
    region.in_lane(copy, finish, lane=("deliver", *way), whose=(owed.source, owed.destination))


def _rest(region: Region, place: Place, key: bytes, took_s: float) -> None:
    """A key that keeps changing waits five times as long as its last capture took. Source: design.md, section 7."""
    now_s = time.monotonic()
    place.rests_until_s = {k: until_s for k, until_s in place.rests_until_s.items() if until_s > now_s}
    place.rests_until_s[key] = now_s + min(5 * took_s, region.engine.settings.capture.open_max_s)


def _lane_failed(region: Region, owed: Owed, error: Exception) -> None:
    if isinstance(error, Failed):
        region.send_words([Word(owed, Status.FAILED, error.reason, None)])
    elif isinstance(error, PermissionError):
        region.send_words([Word(owed, Status.FAILED, "DstPutObjectNotPermitted", None)])
    else:
        region.try_later([owed], reason(error) if isinstance(error, OSError) else str(error))
