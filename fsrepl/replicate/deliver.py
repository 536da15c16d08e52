"""Deliveries into one bucket: staged, durable, visible, and only then COMPLETED, a batch at a time.

Deliveries run in the destination's region. Their outcomes go back to the source's region, which records
them on the versions there (settle).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Sequence

from fsrepl.errors import UNEXPECTED, BucketMissing, Unavailable
from fsrepl.model.address import region_of
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region
from fsrepl.replicate import decide, large
from fsrepl.replicate.group import STEP_S, DeliveryGroup
from fsrepl.replicate.sending import SourceLeft
from fsrepl.replicate.source import Opener
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")


def carry(region: Region, state: BucketState, deliveries: Sequence[Delivery], open_source: Opener) -> None:
    """Advance deliveries from one source into one bucket as far as possible now.

    A delivery that met an unexpected error is carried alone, so that the error affects no other delivery.
    """
    single = [each for each in deliveries if state.replicas.singly or each.key in state.replicas.undelivered]
    if len(single) < len(deliveries):
        _carry(
            region, state, [each for each in deliveries if each not in single] if single else deliveries, open_source
        )
    for each in single:
        state.replicas.undelivered.pop(each.key, None)
        try:
            _carry(region, state, [each], open_source)
        except sqlite3.Error:
            raise
        except Exception:
            state.replicas.undelivered[each.key] = f"from {each.source}: {UNEXPECTED}"
            region.set_aside(each)
    state.replicas.singly = False


def _carry(region: Region, state: BucketState, deliveries: Sequence[Delivery], open_source: Opener) -> None:
    """Carry one batch of deliveries. Read this first.

    Staging before publishing is bounded in time as well as in number; the rest of the batch waits for the
    next round.
    """
    until_s = time.monotonic() + STEP_S
    source_name = deliveries[0].source
    engine = region.engine
    if region.is_stuck(source_name) and region_of(source_name) != region.name:
        region.try_later(
            deliveries, f"region {region_of(source_name)} hangs; it is not touched from here until it moves", whole=True
        )
        return
    with contextlib.ExitStack() as opened:
        try:
            to_bucket = opened.enter_context(state.bucket.open())
        except Unavailable as error:
            region.try_later(deliveries, str(error), whole=True)
            return
        except BucketMissing:
            settle_all(region, deliveries, decide.decide(decide.Facts(destination_missing=True)))
            return
        try:
            source = opened.enter_context(open_source(source_name, to_bucket))
        except SourceLeft:
            return  # its deliveries left the journal with it
        except (Unavailable, BucketMissing) as error:
            region.try_later(deliveries, str(error), whole=True)
            return
        batch = DeliveryGroup(region, state, source, to_bucket, len(deliveries))
        batch.known = engine.journal.versions.look_up(state.bucket.address, [each.key for each in deliveries])
        left: Sequence[Delivery] = []
        for number, delivery in enumerate(deliveries):
            if batch.is_full or (number and time.monotonic() > until_s):
                left = deliveries[number:]
                break
            batch.prepare(delivery)
            while batch.large:
                large.send_in_background(region, state, batch.large.pop(), open_source)
        batch.publish()
        region.queue(source_name, state.bucket.address).give_back([*batch.left, *left])


def settle_all(region: Receiver, deliveries: Sequence[Delivery], action: decide.Action) -> None:
    assert isinstance(action, decide.Settle)
    region.report_outcomes([Outcome(each, action.status, action.why, None) for each in deliveries])
