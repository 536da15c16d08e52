"""At the source: what destinations say of its deliveries becomes the record of its versions.

Words come from the threads of other regions, and are written down a batch at a time by the source's own. What
cannot be written down now is tried again, and one record that cannot take it holds up no other.
"""

from __future__ import annotations

import enum
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fsrepl.errors import UNFORESEEN, BucketMissing, FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.model import attributes, keys, metadata
from fsrepl.model.address import region_of
from fsrepl.model.version import DeliveryRecord, Result, Status, Version
from fsrepl.region import deliveries
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.mailbox import Acknowledged
from fsrepl.region.region import Region
from fsrepl.region.reporter import result_of
from fsrepl.region.runtime import Runtime
from fsrepl.replicate import decide, thresholds
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery, Outcome, delivery_of

log = logging.getLogger("fsrepl")


def settle_due(region: Region) -> bool:
    """Write down what was said of this region's deliveries; whether any of it could be."""
    outcomes = region.outcomes.take(time.monotonic())
    by_source: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_source.setdefault(outcome.delivery.source, []).append(outcome)
    late: list[Outcome] = []
    for source, group in by_source.items():
        if (state := region.states.get(source)) is not None:  # else it left the site
            region.worked_for.add(source)
            late += _settle_group(region, state, group)
    region.outcomes.put_off(late)
    return len(late) < len(outcomes)


def _settle_group(region: Region, state: BucketState, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Write down words of one source; those that could not be now. One that fails is set apart from the others.

    While the source is away they are dropped: without them the deliveries are found done when they are asked again.
    """
    try:
        settle(region, state, outcomes)
    except sqlite3.Error:  # it is the journal's, and of no word
        raise
    except Exception as error:
        if isinstance(error, (Unavailable, BucketMissing)) or not state.is_up:
            return list(outcomes) if state.is_up else []
        if len(outcomes) > 1:
            return [late for outcome in outcomes for late in _settle_group(region, state, [outcome])]
        key = keys.shown(outcomes[0].delivery.key)
        if not isinstance(error, StoreDamaged):
            foreseen = isinstance(error, (FsreplError, OSError))
            why = reason(error) if foreseen else UNFORESEEN
            level = logging.DEBUG if region.outcomes.is_patient else logging.WARNING
            told = 'not settled bucket=%s key="%s": %s'
            log.log(level, told, state.bucket.address, key, why, exc_info=None if foreseen else error)
            return list(outcomes)
        log.error('damaged bucket=%s key="%s": %s', state.bucket.address, key, error)
        settle_unread(region, outcomes[0])
        delivery = outcomes[0].delivery
        state.damaged.append(Damaged(state.bucket.address, delivery.key, delivery.id, delivery.marker))
    _acknowledge(region, outcomes)
    return []


def _acknowledge(region: Region, outcomes: Sequence[Outcome]) -> None:
    """What became of these is written down: the journal no longer says otherwise."""
    by_way: dict[tuple[str, str], list[Delivery]] = {}
    for outcome in outcomes:
        if outcome.delivery.job:
            by_way.setdefault((outcome.delivery.source, outcome.delivery.destination), []).append(outcome.delivery)
    for (source, destination), done in by_way.items():
        if (other := region.regions.get(region_of(destination))) is not None:
            other.post(Acknowledged(source, destination, done))


# -- one batch of them


def is_pending(version: Version, delivery: Delivery) -> bool:
    """Whether a version's record agrees with the index that a delivery is pending, and for whom."""
    recorded = version.deliveries.get(delivery.destination)
    return recorded is not None and not recorded.settled and recorded.job == delivery.job


class Meaning(enum.Enum):
    """What a word means, held against what the source has recorded by now."""

    SETTLED = "it is written down"
    AGAIN = "the version was edited while it travelled, or nothing was done"
    STALE = "the record says more than the index: it was said already, cancelled, or asked for by somebody else"
    GONE = "the version is not there any more"


def meaning(outcome: Outcome, version: Version | None) -> Meaning:
    """What to make of a word. That a replica is there is true whatever happened meanwhile, a failure may not be."""
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
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settlement:
    """What words come to: what is written down of them, and what is told.

    changed: records, by key and version id, as they will be.
    confirmed: records that say more than the index, which is brought into line with them.
    gone: deliveries that the index loses.
    again: versions, each with a destination that is owed it once more.
    ended: deliveries that ended, each with the word of that.
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
    """What is to be done about words, by the records of their versions; None for a version that is not there.

    is_indexed: whether the index has a delivery still. One word sees what the words before it change.
    """
    changed: dict[tuple[bytes, str], Version] = {}
    confirmed: list[Version] = []
    gone: list[Delivery] = []
    again: list[tuple[Version, str]] = []
    ended: list[tuple[Delivery, Outcome]] = []
    for outcome in outcomes:
        delivery, at = outcome.delivery, (outcome.delivery.key, outcome.delivery.id)
        version = changed.get(at) or records[at]
        what = meaning(outcome, version)
        if version is None or what is Meaning.GONE:
            if is_indexed(delivery):  # else it was said already
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
                # a replica owes its original nothing but edits, and shows REPLICA again
                changed[at] = attributes.without_delivery(changed[at], delivery.destination)
                gone.append(delivery)
            if not recorded.settled:
                delivery = delivery_of(delivery.source, version, delivery.destination, recorded)
            ended.append((delivery, outcome))
    return Settlement(changed, confirmed, gone, again, ended)


def settle(region: Region, state: BucketState, outcomes: Sequence[Outcome]) -> None:
    """Write down on the source's versions what became of their deliveries. Raises FsreplError where it is away."""
    engine, address = region.engine, state.bucket.address
    with state.bucket.open() as bucket:
        found: dict[tuple[bytes, str], Version | None] = {}
        for delivery in (outcome.delivery for outcome in outcomes):
            if (delivery.key, delivery.id) not in found:
                found[delivery.key, delivery.id] = _record(engine, bucket, delivery)
        settlement = interpret(outcomes, found, engine.site.now(), engine.journal.deliveries.has)
        for version, destination in settlement.again:
            deliveries.enqueue(region, address, [version], only=destination)
        results = [
            (delivery, result_of(delivery, outcome.status, outcome.reason, state.bucket.replication))
            for delivery, outcome in settlement.ended
        ]
        engine.reporter.announce(
            [each for delivery, result in results for each in thresholds.news(engine, delivery, result)]
        )
        write(engine, state, bucket, settlement)
    _stop_copying(engine, [result for _, result in results])
    engine.reporter.settled([result for _, result in results])
    engine.notify()


def _record(engine: Runtime, bucket: OpenBucket, delivery: Delivery) -> Version | None:
    recent = engine.recent.version(bucket.address, delivery.key, delivery.id)
    return recent or versions.read_whole(bucket, delivery.key, delivery.id, marker=delivery.marker)


def write(engine: Runtime, state: BucketState, bucket: OpenBucket, settlement: Settlement) -> None:
    """Write a settlement down: the records first, then the index of them."""
    address, now_s = bucket.address, time.monotonic()
    for version in settlement.changed.values():
        try:
            plain = records.write_deliveries(bucket, version, plain=engine.recent.is_plain(address, version))
        except FileNotFoundError:
            continue
        engine.recent.put(address, version, plain=plain)
        if not version.marker:
            state.labels.add(version, now_s)
    with engine.journal.transaction():
        engine.journal.deliveries.put_all(address, [*settlement.confirmed, *settlement.changed.values()])
        for delivery in settlement.gone:
            engine.journal.deliveries.drop(delivery)


def _stop_copying(engine: Runtime, results: Sequence[Result]) -> None:
    """What has failed meanwhile, for want of its rule or its version, is not copied to the end: that may take hours."""
    failed = {(r.source, r.key, r.version, r.destination) for r in results if r.status is Status.FAILED}
    for each in list(engine.transfers) if failed else ():
        if (each.source, each.key, each.version, each.destination) in failed:
            each.stop = True


def settle_unread(region: Region, outcome: Outcome) -> None:
    """The record that the word belongs on cannot be read: the index alone says it, and `verify` names the record."""
    engine, delivery = region.engine, outcome.delivery
    result = result_of(delivery, outcome.status, outcome.reason, engine.site.buckets[delivery.source].replication)
    engine.reporter.announce(list(thresholds.news(engine, delivery, result)))
    with engine.journal.transaction():
        engine.journal.deliveries.note(delivery, outcome.status, outcome.reason, engine.site.now())
    engine.reporter.settled([result])
    engine.notify()


def settle_gone(region: Region, state: BucketState, deliveries: Sequence[Delivery], *, key_there: bool) -> None:
    """A version was removed before these were done: there is nothing left to show a status on, so it is only told."""
    action = decide.decide(decide.Facts(source_there=False, key_there=key_there))
    assert isinstance(action, decide.Settle)
    settle(region, state, [Outcome(each, action.status, action.why, None) for each in deliveries])
