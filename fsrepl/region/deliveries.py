"""Pending deliveries are handed to the destinations' regions. Runs in the thread of the source's region."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import keys
from fsrepl.model.address import region_of
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.mailbox import StartOver, TakeMore, TakeOver, WakeBacklog
from fsrepl.region.overflow import LIVE_MAX, PAGE, UNRECORDED_MAX
from fsrepl.region.receiver import Receiver
from fsrepl.region.region import Region
from fsrepl.s3 import rules
from fsrepl.storage import records
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery, Outcome, delivery_of
from fsrepl.storage.versions import read_whole

log = logging.getLogger("fsrepl")


def enqueue(region: Region, address: str, versions: Iterable[Version], only: str = "") -> None:
    """Hand over the pending deliveries of versions of one bucket, or only those to one destination."""
    deliveries: list[Delivery] = []
    for version in versions:
        for destination, recorded in version.deliveries.items():
            if recorded.status is not Status.PENDING or only not in ("", destination):
                continue
            if recorded.job:
                wake_backlog(region, address, destination)
            else:
                deliveries.append(delivery_of(address, version, destination, recorded))
    hand_over(region, deliveries)


def hand_over(region: Region, deliveries: Iterable[Delivery]) -> None:
    """Pass deliveries of buckets here to their destinations. Without a rule or a region, a delivery fails.

    A marker of a bucket that is HALTED stays PENDING and is not passed on, and so does one of which it is not
    decided yet whether it will be: see region/halting.py. A marker that a backfill sends was asked for, and goes.
    """
    for other, group in _by_region(region, deliveries).items():
        if not other.pulse.is_stuck:
            other.post(TakeOver(group))
            continue
        for at in {(each.source, each.destination) for each in group}:  # it reads no messages: they would pile up
            other.post(StartOver(*at))


def _by_region(region: Region, deliveries: Iterable[Delivery]) -> Mapping[Receiver, list[Delivery]]:
    by_region: dict[Receiver, list[Delivery]] = {}
    by_rule: dict[tuple[str, str, str], tuple[Receiver | None, str]] = {}
    for each in deliveries:
        rule = each.source, each.rule, each.destination
        if rule not in by_rule:
            refusal = rules.orphaned(region.engine.site.buckets[each.source].replication, each.rule, each.destination)
            by_rule[rule] = region.receivers.get(region_of(each.destination)), refusal
        other, refusal = by_rule[rule]
        if refusal or other is None:
            region.receive([Outcome(each, Status.FAILED, refusal or "DstBucketNotFound", None)])
        elif not (each.marker and _is_held(region, each)):
            by_region.setdefault(other, []).append(each)
    return by_region


def _is_held(region: Region, delivery: Delivery) -> bool:
    """Whether a marker is not passed on."""
    if delivery.job:
        return False
    state = region.states.get(delivery.source)
    is_halted = region.engine.site.buckets[delivery.source].halt is not None
    return is_halted or (state is not None and state.withheld.has(delivery))


def redeliver(region: Region, bucket: OpenBucket, version: Version, deliveries: Mapping[str, DeliveryRecord]) -> None:
    """Make deliveries of a stored version pending (again), from now on."""
    now_ns = region.engine.site.now()
    asked = {
        name: each if each.settled or each == version.deliveries.get(name) else replace(each, since_ns=now_ns)
        for name, each in deliveries.items()
    }
    version = replace(version, deliveries=asked)
    # The journal first: a delivery that is pending on the record alone would be sent by no region.
    with region.engine.journal.transaction():
        region.engine.journal.deliveries.put(bucket.address, version)
    records.write_deliveries(bucket, version)
    region.engine.recent.put(bucket.address, version)
    state = region.states.get(bucket.address)
    if state is not None and not version.marker:
        state.labels.add(version, time.monotonic())
    enqueue(region, bucket.address, [version])
    region.engine.notify()


def deliver_again(region: Region, source: str, destination: str, lost: Sequence[tuple[bytes, str]]) -> None:
    """Make deliveries of versions that are destroyed at a destination pending again. lost: their keys and ids."""
    state = region.states.get(source)
    if state is None or not state.is_up:
        return
    with region.at_work(state), state.bucket.open() as bucket:
        for key, version_id in lost:
            with contextlib.suppress(StoreDamaged, OSError):
                version = read_whole(bucket, key, version_id, marker=False)
                recorded = version.deliveries.get(destination) if version is not None else None
                if version is not None and recorded is not None and recorded.status is Status.COMPLETED:
                    log.warning(
                        'sent again bucket=%s key="%s" to=%s: it is destroyed there',
                        source,
                        keys.shown(key),
                        destination,
                    )
                    again = replace(rules.renewed(recorded), edit=False)
                    redeliver(region, bucket, version, {**version.deliveries, destination: again})


def enqueue_all(region: Region, state: BucketState, *, new_rules: bool = False) -> None:
    """Queue every pending delivery of a source, as the journal has it; where they are many, the rest follows.

    new_rules: what no rule sends any more fails at once, also where its turn would come later.
    """
    found = region.engine.journal.deliveries.pending_destinations(state.bucket.address)
    enqueue_pending(region, state, found, new_rules=new_rules)
    _send_backlog(region, state)


def enqueue_pending(
    region: Region, state: BucketState, destinations: Iterable[str], *, new_rules: bool = False
) -> None:
    """Queue the pending deliveries of a source to some destinations, but those that backfills asked for."""
    address = state.bucket.address
    for destination in destinations:
        other = region.receivers.get(region_of(destination))
        failed = _fail_orphaned(region, state, destination) if other is None or new_rules else frozenset()
        first = _page(region, address, destination, None, LIVE_MAX)
        hand_over(region, [each for each in first if each.rule not in failed])
        if len(first) == LIVE_MAX and other is not None:
            other.post(StartOver(address, destination))


def _page(region: Region, source: str, destination: str, after: Delivery | None, limit: int) -> list[Delivery]:
    """The next pending deliveries; without those that a HALTED bucket holds, which may be a million."""
    journal = region.engine.journal.deliveries
    is_halted = region.engine.site.buckets[source].halt is not None
    return (journal.unheld_after if is_halted else journal.pending_after)(source, destination, after, limit)


def _fail_orphaned(region: Region, state: BucketState, destination: str) -> frozenset[str]:
    """Fail the deliveries to a destination that no rule sends any more, or no region takes; the rules they were by."""
    address, journal = state.bucket.address, region.engine.journal.deliveries
    gone = region_of(destination) not in region.receivers
    failed = frozenset(
        rule_id
        for rule_id in journal.pending_rules(address, destination)
        if gone or rules.orphaned(state.bucket.replication, rule_id, destination)
    )
    after = None
    while failed and (page := journal.pending_after(address, destination, after, PAGE)):
        hand_over(region, [each for each in page if each.rule in failed])
        after = page[-1]
    return failed


def hand_over_more(region: Region, source: str, destination: str, after: Delivery | None) -> None:
    """Hand over the next page of a source's pending deliveries to a destination, which has room for them again.

    An outcome that is not recorded yet is pending in the journal still, and is not delivered again. Where there are
    many of these, the page waits until they are recorded: destinations may be faster than their source.
    """
    if region.outcomes.count(source) > UNRECORDED_MAX:
        region.pages_held[source, destination] = after
        return
    other = region.receivers.get(region_of(destination))
    if other is None or source not in region.engine.site.buckets:
        return  # nothing waits there any more
    try:
        page = _page(region, source, destination, after, PAGE)
    except Exception:
        other.post(StartOver(source, destination))  # else the queue would wait for this page for ever
        raise
    reported = region.outcomes.versions(source, destination)
    wanted = [each for each in page if (each.key, each.id) not in reported]
    group = _by_region(region, wanted).get(other, [])
    other.post(TakeMore(source, destination, group, page[-1] if len(page) == PAGE else None))


def hand_over_held(region: Region) -> None:
    """Hand over the pages that waited for outcomes to be recorded, where these are few now."""
    for (source, destination), after in list(region.pages_held.items()):
        if region.outcomes.count(source) <= UNRECORDED_MAX:
            del region.pages_held[source, destination]
            hand_over_more(region, source, destination, after)


def _send_backlog(region: Region, state: BucketState) -> None:
    """Have a source's backlog sent as far as a rule covers it, after its rules changed or a region left the site.

    The rest fails, a slice at a time; live deliveries fail at once."""
    state.backfills.orphaned.clear()
    address, journal = state.bucket.address, region.engine.journal
    for destination in journal.deliveries.pending_destinations(address):
        for rule_id in journal.backlog.rules(address, destination):
            why = rules.orphaned(state.bucket.replication, rule_id, destination)
            if region_of(destination) not in region.receivers:
                why = "DstBucketInvalidRegion"
            if why:
                state.backfills.orphaned[destination, rule_id] = why
            else:
                wake_backlog(region, address, destination)


def wake_backlog(region: Region, source: str, destination: str, *, start_over: bool = False) -> None:
    """Announce pending backfill deliveries from a source here to the destination's region."""
    other = region.receivers.get(region_of(destination))
    if other is None:
        _send_backlog(region, region.states[source])
    else:
        other.post(WakeBacklog(source, destination, start_over))
