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
from fsrepl.model.version import Delivery, Result, Status, Version
from fsrepl.region import deliveries
from fsrepl.region.bucket_state import Damaged, Place
from fsrepl.region.mailbox import Acknowledged
from fsrepl.region.region import Region
from fsrepl.region.reporter import result_of
from fsrepl.region.runtime import Runtime
from fsrepl.replicate import decide, thresholds
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Owed, Word, owed_of

log = logging.getLogger("fsrepl")


def settle_due(region: Region) -> bool:
    """Write down what was said of this region's deliveries; whether any of it could be."""
    words = region.words.take(time.monotonic())
    by_source: dict[str, list[Word]] = {}
    for word in words:
        by_source.setdefault(word.owed.source, []).append(word)
    late: list[Word] = []
    for source, group in by_source.items():
        if (place := region.places.get(source)) is not None:  # else it left the site
            region.worked_for.add(source)
            late += _settle_group(region, place, group)
    region.words.put_off(late)
    return len(late) < len(words)


def _settle_group(region: Region, place: Place, words: Sequence[Word]) -> list[Word]:
    """Write down words of one source; those that could not be now. One that fails is set apart from the others.

    While the source is away they are dropped: without them the deliveries are found done when they are asked again.
    """
    try:
        settle(region, place, words)
    except sqlite3.Error:  # it is the journal's, and of no word
        raise
    except Exception as error:
        if isinstance(error, (Unavailable, BucketMissing)) or not place.up:
            return list(words) if place.up else []
        if len(words) > 1:
            return [late for word in words for late in _settle_group(region, place, [word])]
        key = keys.shown(words[0].owed.key)
        if not isinstance(error, StoreDamaged):
            foreseen = isinstance(error, (FsreplError, OSError))
            why = reason(error) if foreseen else UNFORESEEN
            level = logging.DEBUG if region.words.is_patient else logging.WARNING
            told = 'not settled bucket=%s key="%s": %s'
            log.log(level, told, place.bucket.address, key, why, exc_info=None if foreseen else error)
            return list(words)
        log.error('damaged bucket=%s key="%s": %s', place.bucket.address, key, error)
        settle_unread(region, words[0])
        owed = words[0].owed
        place.damaged.append(Damaged(place.bucket.address, owed.key, owed.id, owed.marker))
    _acknowledge(region, words)
    return []


def _acknowledge(region: Region, words: Sequence[Word]) -> None:
    """What became of these is written down: the journal no longer says otherwise."""
    by_way: dict[tuple[str, str], list[Owed]] = {}
    for word in words:
        if word.owed.batch:
            by_way.setdefault((word.owed.source, word.owed.destination), []).append(word.owed)
    for (source, destination), owed in by_way.items():
        if (other := region.regions.get(region_of(destination))) is not None:
            other.post(Acknowledged(source, destination, owed))


# -- one batch of them


def is_owed(version: Version, owed: Owed) -> bool:
    """Whether a version's record agrees with the index that a delivery is pending, and for whom."""
    delivery = version.deliveries.get(owed.destination)
    return delivery is not None and not delivery.settled and delivery.batch == owed.batch


class Meaning(enum.Enum):
    """What a word means, held against what the source has recorded by now."""

    SETTLED = "it is written down"
    AGAIN = "the version was edited while it travelled, or nothing was done"
    STALE = "the record says more than the index: it was said already, cancelled, or asked for by somebody else"
    GONE = "the version is not there any more"


def meaning(word: Word, version: Version | None) -> Meaning:
    """What to make of a word. That a replica is there is true whatever happened meanwhile, a failure may not be."""
    owed, completed = word.owed, word.status is Status.COMPLETED
    delivery = version.deliveries.get(owed.destination) if version else None
    if version is None or (delivery is None and not owed.batch):
        return Meaning.GONE
    if delivery is None:  # its job was cancelled
        return Meaning.SETTLED if completed else Meaning.STALE
    if not is_owed(version, owed):
        return Meaning.SETTLED if completed and delivery.status is Status.FAILED else Meaning.STALE
    edited = completed and word.sent is not None and not metadata.same(version, word.sent)
    return Meaning.AGAIN if edited or word.status is Status.PENDING else Meaning.SETTLED


def _settled(delivery: Delivery, word: Word, now_ns: int) -> Delivery:
    completed = word.status is Status.COMPLETED
    return replace(
        delivery, status=word.status, reason=word.reason, since_ns=0 if completed else now_ns,
        edit=delivery.edit and not completed, before=None,
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
    gone: Sequence[Owed] = ()
    again: Sequence[tuple[Version, str]] = ()
    ended: Sequence[tuple[Owed, Word]] = ()


def interpret(
    words: Iterable[Word], records: Mapping[tuple[bytes, str], Version | None], now_ns: int,
    is_indexed: Callable[[Owed], bool],
) -> Settlement:  # fmt: skip
    """What is to be done about words, by the records of their versions; None for a version that is not there.

    is_indexed: whether the index has a delivery still. One word sees what the words before it change.
    """
    changed: dict[tuple[bytes, str], Version] = {}
    confirmed: list[Version] = []
    gone: list[Owed] = []
    again: list[tuple[Version, str]] = []
    ended: list[tuple[Owed, Word]] = []
    for word in words:
        owed, at = word.owed, (word.owed.key, word.owed.id)
        version = changed.get(at) or records[at]
        what = meaning(word, version)
        if version is None or what is Meaning.GONE:
            if is_indexed(owed):  # else it was said already
                gone.append(owed)
                ended.append((owed, word))
        elif what is Meaning.AGAIN:
            again.append((version, owed.destination))
        elif what is Meaning.STALE:
            confirmed.append(version)
            if owed.destination not in version.deliveries:
                gone.append(owed)
        else:
            delivery = version.deliveries.get(owed.destination) or Delivery(owed.rule, Status.PENDING, batch=owed.batch)
            changed[at] = attributes.with_delivery(version, owed.destination, _settled(delivery, word, now_ns))
            if delivery.edit and word.status is Status.COMPLETED and owed.destination == version.source:
                # a replica owes its original nothing but edits, and shows REPLICA again
                changed[at] = attributes.without_delivery(changed[at], owed.destination)
                gone.append(owed)
            if not delivery.settled:
                owed = owed_of(owed.source, version, owed.destination, delivery)
            ended.append((owed, word))
    return Settlement(changed, confirmed, gone, again, ended)


def settle(region: Region, place: Place, words: Sequence[Word]) -> None:
    """Write down on the source's versions what became of their deliveries. Raises FsreplError where it is away."""
    engine, address = region.engine, place.bucket.address
    with place.bucket.open() as bucket:
        found: dict[tuple[bytes, str], Version | None] = {}
        for owed in (word.owed for word in words):
            if (owed.key, owed.id) not in found:
                found[owed.key, owed.id] = _record(engine, bucket, owed)
        settlement = interpret(words, found, engine.site.now(), engine.journal.deliveries.has)
        for version, destination in settlement.again:
            deliveries.owe(region, address, [version], only=destination)
        results = [
            (owed, result_of(owed, word.status, word.reason, place.bucket.replication))
            for owed, word in settlement.ended
        ]
        engine.reporter.announce([each for owed, result in results for each in thresholds.news(engine, owed, result)])
        write(engine, place, bucket, settlement)
    _stop_copying(engine, [result for _, result in results])
    engine.reporter.settled([result for _, result in results])
    engine.notify()


def _record(engine: Runtime, bucket: OpenBucket, owed: Owed) -> Version | None:
    recent = engine.recent.version(bucket.address, owed.key, owed.id)
    return recent or versions.read_whole(bucket, owed.key, owed.id, marker=owed.marker)


def write(engine: Runtime, place: Place, bucket: OpenBucket, settlement: Settlement) -> None:
    """Write a settlement down: the records first, then the index of them."""
    address, now_s = bucket.address, time.monotonic()
    for version in settlement.changed.values():
        try:
            plain = records.write_deliveries(bucket, version, plain=engine.recent.is_plain(address, version))
        except FileNotFoundError:
            continue
        engine.recent.put(address, version, plain=plain)
        if not version.marker:
            place.unmarked.add(version, now_s)
    with engine.journal.transaction():
        engine.journal.deliveries.put_all(address, [*settlement.confirmed, *settlement.changed.values()])
        for owed in settlement.gone:
            engine.journal.deliveries.drop(owed)


def _stop_copying(engine: Runtime, results: Sequence[Result]) -> None:
    """What has failed meanwhile, for want of its rule or its version, is not copied to the end: that may take hours."""
    failed = {(r.source, r.key, r.version, r.destination) for r in results if r.status is Status.FAILED}
    for each in list(engine.transfers) if failed else ():
        if (each.source, each.key, each.version, each.destination) in failed:
            each.stop = True


def settle_unread(region: Region, word: Word) -> None:
    """The record that the word belongs on cannot be read: the index alone says it, and `verify` names the record."""
    engine, owed = region.engine, word.owed
    result = result_of(owed, word.status, word.reason, engine.site.buckets[owed.source].replication)
    engine.reporter.announce(list(thresholds.news(engine, owed, result)))
    with engine.journal.transaction():
        engine.journal.deliveries.note(owed, word.status, word.reason, engine.site.now())
    engine.reporter.settled([result])
    engine.notify()


def settle_gone(region: Region, place: Place, owed: Sequence[Owed], *, key_there: bool) -> None:
    """A version was removed before these were done: there is nothing left to show a status on, so it is only told."""
    action = decide.decide(decide.Facts(source_there=False, key_there=key_there))
    assert isinstance(action, decide.Settle)
    settle(region, place, [Word(each, action.status, action.why, None) for each in owed])
