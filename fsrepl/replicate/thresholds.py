"""Replication Time Control, which is measurement: who is late is told once, and copied no faster for it.

Late is a live delivery of a version, not of a marker, that is not done 15 minutes after it was asked
for. The journal has the moment of each, as long as nobody was told; so a look costs one question to an
index, and a restart forgets nothing. Source: s3-semantics, 3.4 and 3.6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fsrepl.model.version import Result, Status, Tracking
from fsrepl.region.reporter import result_of
from fsrepl.region.runtime import Runtime
from fsrepl.s3 import events
from fsrepl.storage.journal.rows import Delivery

BATCH = 512


def check(engine: Runtime) -> bool:
    """Tell of what has become late since the last look; whether there is more of it."""
    late = engine.journal.deliveries.late(engine.site.now(), BATCH)
    if not late:
        return False
    results = [_pending(engine, delivery) for delivery in late]
    results = [result for result in results if events.is_timed(result)]  # the rule may no longer ask for it
    if not engine.reporter.announce(results):
        return False
    with engine.journal.transaction():
        engine.journal.deliveries.announced(late)
    engine.reporter.settled(results)
    return len(late) == BATCH


def news(engine: Runtime, delivery: Delivery, result: Result) -> Iterator[Result]:
    """What there is to tell of a delivery that ended: before a late end, that it was late, if nobody was told yet."""
    if (
        result.status is Status.COMPLETED
        and events.is_timed(result)
        and engine.journal.deliveries.is_unannounced(delivery)
    ):
        yield replace(result, status=Status.PENDING)
    yield result


def untrack(engine: Runtime, source: str) -> None:
    """After a look at a bucket's rules: tell which pending deliveries their metrics no longer follow."""
    bucket = engine.site.buckets.get(source)
    for rule in bucket.replication.rules if bucket and bucket.replication else ():
        if rule.tracking is not Tracking.NONE:
            continue
        left = [
            delivery
            for delivery in engine.journal.deliveries.tracked(source, rule.id)
            if delivery.destination == rule.destination
        ]
        if left and engine.reporter.announce_untracked([_pending(engine, delivery) for delivery in left]):
            with engine.journal.transaction():
                engine.journal.deliveries.untrack(left)


def _pending(engine: Runtime, delivery: Delivery) -> Result:
    bucket = engine.site.buckets.get(delivery.source)
    return result_of(delivery, Status.PENDING, "", bucket.replication if bucket else None)
