"""What versions owe is handed over to the regions that it goes to. Runs in the thread of the source's region."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from fsrepl.model.address import region_of
from fsrepl.model.version import Delivery, Status, Version
from fsrepl.region.bucket_state import Place
from fsrepl.region.mailbox import TakeOver, WakeBacklog
from fsrepl.region.region import Region
from fsrepl.s3 import rules
from fsrepl.storage import records
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Owed, Word, owed_of


def owe(region: Region, address: str, versions: Iterable[Version], only: str = "") -> None:
    """Hand over what versions of one bucket owe: all that is pending, or that to one destination."""
    owed: list[Owed] = []
    for version in versions:
        for destination, delivery in version.deliveries.items():
            if delivery.status is not Status.PENDING or only not in ("", destination):
                continue
            if delivery.batch:
                wake_backlog(region, address, destination)
            else:
                owed.append(owed_of(address, version, destination, delivery))
    hand_over(region, owed)


def hand_over(region: Region, owed: Iterable[Owed]) -> None:
    """Give deliveries of buckets here to their destinations. What no rule stands for any more, and no region, has
    failed.
    """
    by_region: dict[Region, list[Owed]] = {}
    for each in owed:
        other = region.regions.get(region_of(each.destination))
        refusal = rules.lapsed(region.engine.site.buckets[each.source].replication, each.rule, each.destination)
        if refusal or other is None:
            region.hear([Word(each, Status.FAILED, refusal or "DstBucketNotFound", None)])
        else:
            by_region.setdefault(other, []).append(each)
    for other, group in by_region.items():
        other.post(TakeOver(group))


def owe_again(region: Region, bucket: OpenBucket, version: Version, deliveries: Mapping[str, Delivery]) -> None:
    """Make deliveries of a stored version pending (again), from now on."""
    now_ns = region.engine.site.now()
    asked = {
        name: each if each.settled or each == version.deliveries.get(name) else replace(each, since_ns=now_ns)
        for name, each in deliveries.items()
    }
    version = replace(version, deliveries=asked)
    # The journal first: what is pending on the record alone would be sent by nobody.
    with region.engine.journal.transaction():
        region.engine.journal.deliveries.put(bucket.address, version)
    records.write_deliveries(bucket, version)
    region.engine.recent.put(bucket.address, version)
    place = region.places.get(bucket.address)
    if place is not None and not version.marker:
        place.unmarked.add(version, time.monotonic())
    owe(region, bucket.address, [version])
    region.engine.notify()


def owe_all(region: Region, place: Place) -> None:
    """Queue everything a source owes, as the journal has it."""
    hand_over(region, region.engine.journal.deliveries.select(place.bucket.address, status=Status.PENDING, live=True))
    _owe_backlog(region, place)


def _owe_backlog(region: Region, place: Place) -> None:
    """After a look at a source's rules, or when a region left the site: have its backlog sent, as far as a rule stands
    for it. The rest fails, a slice at a time; with what live replication owes, that is done at once."""
    place.lapsed.clear()
    for destination, rule_id in region.engine.journal.backlog.ways(place.bucket.address):
        why = rules.lapsed(place.bucket.replication, rule_id, destination)
        if region_of(destination) not in region.regions:
            why = "DstBucketInvalidRegion"
        if why:
            place.lapsed[destination, rule_id] = why
        else:
            wake_backlog(region, place.bucket.address, destination)


def wake_backlog(region: Region, source: str, destination: str, *, start_over: bool = False) -> None:
    """Backfills of a source here owe something to a destination."""
    other = region.regions.get(region_of(destination))
    if other is None:
        _owe_backlog(region, region.places[source])
    else:
        other.post(WakeBacklog(source, destination, start_over))
