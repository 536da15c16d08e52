"""Replication Time Control: late deliveries are reported once. They are not copied faster for it.

A live delivery of a version, not of a marker, is late when it is not done 15 minutes after it was
requested. The journal keeps that moment until lateness has been reported: a check costs one query
of an index, and a restart loses nothing. Source: s3-semantics, 3.4 and 3.6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec.structs import replace

from fsrepl.model.version import Result, Status, Tracking
from fsrepl.region.reporter import result_of, rules_of
from fsrepl.region.runtime import Runtime
from fsrepl.s3 import events
from fsrepl.storage.journal.rows import Delivery, Outcome

BATCH = 512


def check(engine: Runtime) -> bool:
    """Report deliveries that became late since the last check; whether there are more."""
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


def next_s(engine: Runtime) -> float:
    """How many seconds to wait until the next pending delivery misses its threshold; infinite where none does."""
    due_ns = engine.journal.deliveries.next_late_ns()
    return math.inf if due_ns is None else max(0.0, (due_ns - engine.site.now()) / 1e9)


def news(engine: Runtime, delivery: Delivery, result: Result) -> Sequence[Result]:
    """The results to report of a delivery that ended: before a late end, its lateness, if not reported yet."""
    if (
        result.status is Status.COMPLETED
        and events.is_timed(result)
        and engine.journal.deliveries.is_unannounced(delivery)
    ):
        return replace(result, status=Status.PENDING), result
    return (result,)


def untrack(engine: Runtime, source: str) -> None:
    """Report the pending deliveries that the metrics of their rule no longer follow; called after reading the rules."""
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
    rules = rules_of(bucket.replication if bucket else None)
    outcome = Outcome(delivery, Status.PENDING, "", None)
    return result_of(delivery, outcome, rules.get((delivery.rule, delivery.destination)))
