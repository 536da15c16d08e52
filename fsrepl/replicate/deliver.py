"""Deliveries into one bucket: staged, durable, visible, and only then COMPLETED, a batch at a time.

Runs in the destination's region. What became of each goes back to the source's region, which
writes the word of it on the version there (settle).
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Sequence

from fsrepl.errors import UNFORESEEN, BucketMissing, Unavailable
from fsrepl.model import keys
from fsrepl.region.bucket_state import Place
from fsrepl.region.region import Region
from fsrepl.replicate import decide, large
from fsrepl.replicate.group import Batch
from fsrepl.storage.journal.rows import Owed, Word

log = logging.getLogger("fsrepl")


STEP_S = 0.1
"""So long deliveries are staged before those that are staged become durable and visible."""


def carry(region: Region, place: Place, owed: Sequence[Owed]) -> None:
    """Take deliveries from one source into one bucket as far as they can go now.

    One that met an unforeseen fault is carried alone, so that it keeps that to itself.
    """
    single = [each for each in owed if place.carries_singly or each.key in place.undelivered]
    if len(single) < len(owed):
        _carry(region, place, [each for each in owed if each not in single] if single else owed)
    for each in single:
        place.undelivered.pop(each.key, None)
        try:
            _carry(region, place, [each])
        except sqlite3.Error:
            raise
        except Exception:
            log.exception('set aside bucket=%s key="%s": what nobody foresaw', each.source, keys.shown(each.key))
            place.undelivered[each.key] = f"from {each.source}: {UNFORESEEN}"
            region.try_later([each], UNFORESEEN)
    place.carries_singly = False


def _carry(region: Region, place: Place, owed: Sequence[Owed]) -> None:
    """The same for a batch. Read this first.

    What is staged before it becomes durable and visible is bounded in time as well as in number; the rest waits for
    the next turn.
    """
    until_s = time.monotonic() + STEP_S
    source_name = owed[0].source
    engine = region.engine
    source = engine.site.buckets.get(source_name)
    if source is None:
        return  # the source left the site; its deliveries left the journal with it
    if region.is_stuck(source_name) and source.region != region.name:
        region.try_later(owed, f"region {source.region} hangs; it is not touched from here until it moves", whole=True)
        return
    try:
        from_bucket = source.open()
    except (Unavailable, BucketMissing) as error:
        region.try_later(owed, str(error), whole=True)
        return
    with from_bucket:
        try:
            to_bucket = place.bucket.open()
        except Unavailable as error:
            region.try_later(owed, str(error), whole=True)
            return
        except BucketMissing:
            settle_all(region, owed, decide.decide(decide.Facts(destination_missing=True)))
            return
        with to_bucket:
            try:
                batch = Batch(region, place, from_bucket, to_bucket)
            except Unavailable as error:
                region.try_later(owed, str(error), whole=True)
                return
            batch.known = engine.journal.versions.look_up(place.bucket.address, [each.key for each in owed])
            done = 0
            while done < len(owed) and not (done and time.monotonic() > until_s):
                batch.prepare(owed[done])
                while batch.large:
                    large.send_in_lane(region, place, batch.large.pop())
                done += 1
            batch.publish()
            region.queue(source_name, place.bucket.address).give_back(owed[done:])


def settle_all(region: Region, owed: Sequence[Owed], action: decide.Action) -> None:
    assert isinstance(action, decide.Settle)
    region.send_words([Word(each, action.status, action.why, None) for each in owed])
