"""Outcomes of deliveries, recorded on the versions of their source.

Threads of other regions report outcomes, and the source's own thread records them a batch at a time. An outcome that
cannot be recorded now is tried again. A record that cannot be written delays no other.
"""

from __future__ import annotations

import enum
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import UNEXPECTED, BucketMissing, FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.model import attributes, keys, metadata
from fsrepl.model.address import region_of
from fsrepl.model.version import DeliveryRecord, Result, Status, Version
from fsrepl.model.view import View
from fsrepl.region import deliveries
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.mailbox import Acknowledged
from fsrepl.region.recent import Written
from fsrepl.region.region import Region
from fsrepl.region.reporter import result_of, rules_of
from fsrepl.region.runtime import Runtime
from fsrepl.region.stager import is_text
from fsrepl.replicate import decide, in_stager, thresholds
from fsrepl.s3 import rules
from fsrepl.storage import records, sharing, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery, Outcome, delivery_of
from fsrepl.views import overwritten

log = logging.getLogger("fsrepl")


def settle_due(region: Region) -> bool:
    """Record the reported outcomes of this region's deliveries; whether any could be recorded."""
    outcomes = region.outcomes.take(time.monotonic())
    by_source: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_source.setdefault(outcome.delivery.source, []).append(outcome)
    late: list[Outcome] = []
    for source, group in by_source.items():
        if (state := region.states.get(source)) is not None:  # else the source left the site
            region.worked_for.add(source)
            late += _settle_group(region, state, group)
    region.outcomes.put_off(late)
    deliveries.hand_over_held(region)
    return len(late) < len(outcomes)


def _settle_group(region: Region, state: BucketState, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Record outcomes of one source; those that could not be recorded now. An outcome that fails is tried alone.

    While the source is away its outcomes are dropped: later tries of these deliveries find them done.
    """
    try:
        settle(region, state, outcomes)
    except sqlite3.Error:  # a fault of the journal, and of no outcome
        raise
    except Exception as error:
        if isinstance(error, (Unavailable, BucketMissing)) or not state.is_up:
            return list(outcomes) if state.is_up else []
        if len(outcomes) > 1:
            return [late for outcome in outcomes for late in _settle_group(region, state, [outcome])]
        key = keys.shown(outcomes[0].delivery.key)
        if not isinstance(error, StoreDamaged):
            is_expected = isinstance(error, (FsreplError, OSError))
            why = reason(error) if is_expected else UNEXPECTED
            level = logging.DEBUG if region.outcomes.is_patient else logging.WARNING
            message = 'not settled bucket=%s key="%s": %s'
            log.log(level, message, state.bucket.address, key, why, exc_info=None if is_expected else error)
            return list(outcomes)
        log.error('damaged bucket=%s key="%s": %s', state.bucket.address, key, error)
        settle_unread(region, outcomes[0])
        delivery = outcomes[0].delivery
        state.damaged.append(Damaged(state.bucket.address, delivery.key, delivery.id, delivery.marker))
    _acknowledge(region, outcomes)
    return []


def _acknowledge(region: Region, outcomes: Sequence[Outcome]) -> None:
    """Report recorded outcomes to the regions of their destinations: the journal agrees with them now."""
    by_way: dict[tuple[str, str], list[Delivery]] = {}
    for outcome in outcomes:
        if outcome.delivery.job:
            by_way.setdefault((outcome.delivery.source, outcome.delivery.destination), []).append(outcome.delivery)
    for (source, destination), done in by_way.items():
        if (other := region.receivers.get(region_of(destination))) is not None:
            other.post(Acknowledged(source, destination, done))


# -- one batch of outcomes


def is_pending(version: Version, delivery: Delivery) -> bool:
    """Whether a version's record agrees with the journal that a delivery is pending, and for which job."""
    recorded = version.deliveries.get(delivery.destination)
    return recorded is not None and recorded.status is Status.PENDING and recorded.job == delivery.job


class Meaning(enum.Enum):
    """The meaning of an outcome, compared with the source's present record."""

    SETTLED = "recorded"
    AGAIN = "the version was edited while it travelled, or nothing was done"
    STALE = "the record is newer than the journal: reported already, cancelled, or requested again"
    GONE = "the version no longer exists"


def meaning(outcome: Outcome, version: Version | None) -> Meaning:
    """The meaning of an outcome. A replica stays a fact, whatever happened later; a failure may be out of date."""
    delivery, completed = outcome.delivery, outcome.status is Status.COMPLETED
    recorded = version.deliveries.get(delivery.destination) if version else None
    if version is None or (recorded is None and not delivery.job):
        return Meaning.GONE
    if recorded is None:  # its job was cancelled
        return Meaning.SETTLED if completed else Meaning.STALE
    if not is_pending(version, delivery):
        return Meaning.SETTLED if completed and recorded.status is Status.FAILED else Meaning.STALE
    edited = completed and outcome.sent is not None and not metadata.same(version, outcome.sent)
    return Meaning.AGAIN if edited or outcome.status is Status.PENDING else Meaning.SETTLED


def _settled(recorded: DeliveryRecord, outcome: Outcome, now_ns: int) -> DeliveryRecord:
    completed = outcome.status is Status.COMPLETED
    return replace(
        recorded, status=outcome.status, reason=outcome.reason, since_ns=0 if completed else now_ns,
        edit=recorded.edit and not completed, before=None,
        crossed_bytes=recorded.crossed_bytes if outcome.crossed_bytes is None else outcome.crossed_bytes,
    )  # fmt: skip


class Settlement(Struct, frozen=True):
    """The effect of outcomes: what is recorded, and what is reported.

    changed: records, by key and version id, as they will be.
    confirmed: records that are newer than the journal, which is updated from them.
    gone: deliveries that the journal loses.
    again: versions, each with a destination that it must be delivered to once more.
    ended: deliveries that ended, each with its outcome.
    """

    changed: Mapping[tuple[bytes, str], Version] = field(default_factory=dict)
    confirmed: Sequence[Version] = ()
    gone: Sequence[Delivery] = ()
    again: Sequence[tuple[Version, str]] = ()
    ended: Sequence[tuple[Delivery, Outcome]] = ()


def interpret(
    outcomes: Iterable[Outcome], records: Mapping[tuple[bytes, str], Version | None], now_ns: int,
    is_indexed: Callable[[Delivery], bool],
) -> Settlement:  # fmt: skip
    """The settlement of outcomes, by the records of their versions; None for a version that is not there.

    is_indexed: whether the journal still has a delivery. Each outcome sees the changes of those before it.
    """
    changed: dict[tuple[bytes, str], Version] = {}
    confirmed: list[Version] = []
    gone: list[Delivery] = []
    again: list[tuple[Version, str]] = []
    ended: list[tuple[Delivery, Outcome]] = []
    for outcome in outcomes:
        delivery, at = outcome.delivery, (outcome.delivery.key, outcome.delivery.id)
        version = changed[at] if at in changed else records[at]
        what = meaning(outcome, version)
        if version is None or what is Meaning.GONE:
            if is_indexed(delivery):  # else it was reported already
                gone.append(delivery)
                ended.append((delivery, outcome))
        elif what is Meaning.AGAIN:
            again.append((version, delivery.destination))
        elif what is Meaning.STALE:
            confirmed.append(version)
            if delivery.destination not in version.deliveries:
                gone.append(delivery)
        else:
            recorded = version.deliveries.get(delivery.destination) or DeliveryRecord(
                delivery.rule, Status.PENDING, job=delivery.job
            )
            changed[at] = attributes.with_delivery(version, delivery.destination, _settled(recorded, outcome, now_ns))
            if recorded.edit and outcome.status is Status.COMPLETED and delivery.destination == version.source:
                # a replica delivers nothing but edits to its original, and shows REPLICA again
                changed[at] = attributes.without_delivery(changed[at], delivery.destination)
                gone.append(delivery)
            if recorded.status is Status.PENDING:
                delivery = delivery_of(delivery.source, version, delivery.destination, recorded)
            ended.append((delivery, outcome))
    return Settlement(changed, confirmed, gone, again, ended)


def settle(region: Region, state: BucketState, outcomes: Sequence[Outcome]) -> None:
    """Record the outcomes of deliveries on the source's versions. Raises FsreplError where the source is away."""
    engine, address = region.engine, state.bucket.address
    with state.bucket.open() as bucket:
        found: dict[tuple[bytes, str], Version | None] = {}
        for delivery in (outcome.delivery for outcome in outcomes):
            if (delivery.key, delivery.id) not in found:
                found[delivery.key, delivery.id] = _record(engine, bucket, delivery)
        settlement = interpret(outcomes, found, engine.site.now(), engine.journal.deliveries.has)
        for version, destination in settlement.again:
            deliveries.enqueue(region, address, [version], only=destination)
        by_way = rules_of(state.bucket.replication)
        results = [
            (delivery, result_of(delivery, outcome, by_way.get((delivery.rule, delivery.destination))))
            for delivery, outcome in settlement.ended
        ]
        tracked = [(delivery, result) for delivery, result in results if result.tracking]  # no other is an event
        engine.reporter.announce(
            [each for delivery, result in tracked for each in thresholds.news(engine, delivery, result)]
        )
        overwritten.note(engine.syncer, state, bucket, _destroyed(bucket, settlement))
        write(engine, state, bucket, settlement)
    _stop_copying(engine, [result for _, result in results])
    engine.reporter.settled([result for _, result in results])
    engine.notify()


def _destroyed(bucket: OpenBucket, settlement: Settlement) -> list[overwritten.At]:
    """The versions whose deliveries failed since they are damaged, where users may have written into them: once they
    are whole again, these deliveries are renewed. Damage of the disk is left to the scrub, and to `verify`."""
    failed = {(each.key, each.id) for each, outcome in settlement.ended if outcome.reason in rules.BY_DAMAGE}
    if not failed or not sharing.links_views(bucket):
        return []
    return [
        at
        for at, version in settlement.changed.items()
        if at in failed and not version.marker
        if any(rules.has_failed_by_damage(bucket.bucket.replication, version, to) for to in version.deliveries)
    ]


def _record(engine: Runtime, bucket: OpenBucket, delivery: Delivery) -> Version | None:
    recent = engine.recent.version(bucket.address, delivery.key, delivery.id)
    return recent or versions.read_whole(bucket, delivery.key, delivery.id, marker=delivery.marker)


def write(engine: Runtime, state: BucketState, bucket: OpenBucket, settlement: Settlement) -> None:
    """Write a settlement: first the records, then the journal."""
    address, now_s = bucket.address, time.monotonic()
    written: list[Written] = []
    labelled: list[tuple[bytes, View, View]] = []
    recorded = _recorded_together(engine, state, bucket, settlement.changed)
    try:
        for at, version in settlement.changed.items():
            if at in recorded:
                written.append(Written(version, is_plain=True))
                continue
            try:
                is_plain = records.write_deliveries(bucket, version, plain=engine.recent.is_plain(address, version))
            except FileNotFoundError:
                continue
            written.append(Written(version, is_plain=is_plain))
    finally:  # also what was written before an error
        engine.recent.put_all(address, written)
        for version in (each.version for each in written):
            views = recorded.get((version.key, version.id)) if recorded else None
            if views is not None and views[0] is not None and views[1] is not None:
                labelled.append((version.key, views[0], views[1]))
                state.labels.drop(version.key)
            elif not version.marker:
                state.labels.add(version, now_s)
    with engine.journal.transaction():
        engine.journal.views.see_labelled(address, labelled)
        engine.journal.deliveries.put_all(address, [*settlement.confirmed, *settlement.changed.values()])
        for delivery in settlement.gone:
            engine.journal.deliveries.drop(delivery)
        for delivery, outcome in settlement.ended:
            if outcome.crossed_bytes is not None:  # of large objects alone
                to = delivery.destination, delivery.rule
                engine.journal.add_crossed(address, *to, delivery.size, outcome.crossed_bytes)


def _recorded_together(
    engine: Runtime, state: BucketState, bucket: OpenBucket, changed: Mapping[tuple[bytes, str], Version]
) -> dict[tuple[bytes, str], tuple[View | None, View | None]]:
    """The versions whose deliveries the stager has recorded, each with its view before and after it was labelled."""
    if engine.stager is None or not engine.stager.is_wanted(len(changed)):
        return {}
    settled = {
        at: in_stager.Settled(version, None if version.status is Status.PENDING else state.labels.captured(version))
        for at, version in changed.items()
        if version.deliveries
        and engine.recent.is_plain(bucket.address, version)
        and is_text(version.attrs, version.tags)
    }
    found = in_stager.record(engine.stager, bucket, list(settled.values()))
    return {
        at: (each.view, done.view) for (at, each), done in zip(settled.items(), found, strict=True) if done.is_recorded
    }


def _stop_copying(engine: Runtime, results: Sequence[Result]) -> None:
    """Stop copies whose deliveries have failed since, for want of rule or version: a copy may take hours."""
    failed = {(r.source, r.key, r.version, r.destination) for r in results if r.status is Status.FAILED}
    for each in list(engine.transfers) if failed else ():
        if (each.source, each.key, each.version, each.destination) in failed:
            each.stop = each.unwanted = True


def settle_unread(region: Region, outcome: Outcome) -> None:
    """Settle a delivery whose record cannot be read: in the journal alone; `verify` names the record."""
    engine, delivery = region.engine, outcome.delivery
    by_way = rules_of(engine.site.buckets[delivery.source].replication)
    result = result_of(delivery, outcome, by_way.get((delivery.rule, delivery.destination)))
    engine.reporter.announce(list(thresholds.news(engine, delivery, result)))
    with engine.journal.transaction():
        engine.journal.deliveries.note(delivery, outcome.status, outcome.reason, engine.site.now())
    engine.reporter.settled([result])
    engine.notify()


def settle_gone(region: Region, state: BucketState, deliveries: Sequence[Delivery], *, key_there: bool) -> None:
    """Settle deliveries of a removed version: no status can be shown, so the outcome is only reported."""
    action = decide.decide(decide.Facts(source_there=False, key_there=key_there))
    assert isinstance(action, decide.Settle)
    settle(region, state, [Outcome(each, action.status, action.why, None) for each in deliveries])
