"""The brake for mass deletion: deletions by users are counted before their deliveries are handed over, and held where
they are too many (region/brake.py decides). Runs in the thread of the source's region.

While the decision waits, the withheld markers are in memory only. After a crash the pending markers of the last minute,
where they are many, are withheld again until the first scan is over, and then counted together with the deletions that
it finds. Where a decision waits for longer, as while a million deletions are captured, the journal has the time of the
first of them: then all markers since that time are withheld again. Where the journal is lost too, those are that were
made in a row, up to the newest.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Collection, Iterable

from fsrepl.model.version import Origin, Status, Version
from fsrepl.region import brake, deletions, deliveries
from fsrepl.region.brake import Decision
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.deletions import Deleted, Deletions
from fsrepl.region.mailbox import WithdrawMarkers
from fsrepl.region.region import Region
from fsrepl.region.withheld import Withheld
from fsrepl.storage import halt
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Object, delivery_of

log = logging.getLogger("fsrepl")

NOTE_S = 10.0
"""After so long the journal gets the time since which markers are withheld. It is much less than the window in which
deletions count."""


def enqueue_new(
    region: Region, state: BucketState, made: Iterable[tuple[Version, Object | None]], found: Collection[bytes] = ()
) -> None:
    """Hand over the deliveries of versions that users made, each with the version that was current before; markers once
    `settle` has decided. found: the keys that a scan found.
    """
    address, at_once = state.bucket.address, []
    for version, before in made:
        if not version.marker:
            state.deletions.written(version.key, before.created_ns if before and before.marker else 0)
            at_once.append(version)
            continue
        pending = [
            delivery_of(address, version, destination, recorded)
            for destination, recorded in version.deliveries.items()
            if recorded.status is Status.PENDING
        ]
        is_counted = version.origin is Origin.USER and state.bucket.halt is None
        if is_counted and before is not None and not before.marker:
            deleted = Deleted(version.created_ns, before.digest, bool(pending))
            state.deletions.add(version.key, deleted, is_undecided=bool(state.withheld))
            state.deleted_s = time.monotonic()
        if pending:
            state.withheld.add(pending, found=version.key in found)
    deliveries.enqueue(region, address, at_once)


def settle(region: Region, state: BucketState) -> None:
    """Decide what becomes of the markers that are not handed over yet. Raises OSError where halt.json is not written.

    Then none of them is handed over.
    """
    if not state.withheld:
        return
    now_s = time.monotonic()
    state.withheld.since_s = state.withheld.since_s or now_s
    match Decision.RELEASE if state.bucket.halt else _decide(region, state, now_s):
        case Decision.RELEASE:
            _release(region, state)
        case Decision.HALT:
            with state.bucket.open() as bucket:
                _halt(region, state, bucket)
        case Decision.WAIT:
            if now_s - state.withheld.since_s >= NOTE_S and not state.withheld.is_noted:
                _note_since(region, state, state.deletions.since_ns)


def _decide(region: Region, state: BucketState, now_s: float) -> Decision:
    address, deleted = state.bucket.address, state.deletions
    coming = region.changes.removals(address)
    journal, share = region.engine.journal, region.engine.settings.safety.delete_share
    waited_s, quiet_s = now_s - state.withheld.since_s, now_s - state.deleted_s

    def has_enough_keys() -> bool:
        return journal.totals.has_more_keys(address, brake.KEYS_MIN)

    known = deleted.number + coming
    if known <= min(brake.KEYS_MIN, brake.BURST_KEYS):
        return brake.decide_first(waited_s, quiet_s, share, has_enough_keys)
    if not deleted.keys_before:
        deleted.count_keys(journal.totals.counts(address).objects)
    is_patient = waited_s < brake.BURST_MAX_S
    is_burst = known > brake.BURST_KEYS and quiet_s < brake.BURST_QUIET_S
    facts = brake.Facts(
        deleted.number - deleted.renamed, deleted.keys_before, share,
        coming=coming, arriving=region.changes.count(address) - coming, has_deliveries=deleted.has_deliveries,
        is_scanning=bool(state.scans) or region.changes.has_directories(address) or region.changes.is_lost(address),
        is_burst=is_patient and is_burst,
    )  # fmt: skip

    def renamed() -> int:
        before = deleted.renamed
        return deleted.count_renamed(journal.versions.arrived(address, deleted.since_ns)) - before

    return brake.decide(facts, renamed)


def _release(region: Region, state: BucketState) -> None:
    """Hand over what is withheld; what a scan found stays until that scan is over, and so is counted whole."""
    released, destinations = state.withheld.let_go(is_scanning=bool(state.scans) and state.bucket.halt is None)
    deliveries.hand_over(region, released)
    if state.bucket.halt is None:
        deliveries.enqueue_pending(region, state, destinations)
    if state.withheld.is_noted and not state.withheld:
        _note_since(region, state, 0)


def _note_since(region: Region, state: BucketState, since_ns: int) -> None:
    """Note when the first of the deletions was made that wait for a decision; 0: none waits any more."""
    with region.engine.journal.transaction():
        region.engine.journal.set_fact(_fact(state), str(since_ns or ""))
    state.withheld.is_noted = since_ns > 0


def _fact(state: BucketState) -> str:
    return f"withheld {state.bucket.address}"


def _halt(region: Region, state: BucketState, bucket: OpenBucket) -> None:
    deleted = state.deletions
    made = halt.Halt(deleted.since_ns, deleted.number - deleted.renamed, deleted.keys_before)
    # the event first, as with deliveries: the other way round a crash between the two would lose it
    region.engine.reporter.announce_halt(bucket.address, made.document())
    halt.write(bucket.fs, bucket.meta, made)
    bucket.bucket.halt = made
    log.warning("halted bucket=%s: %s", bucket.address, made.describe(bucket.address))
    deleted.clear()
    _release(region, state)  # into deliveries.hand_over, which holds them
    for other in region.receivers.values():
        other.post(WithdrawMarkers(bucket.address))
    region.engine.notify()


def resume(region: Region, state: BucketState, bucket: OpenBucket) -> None:
    """A bucket comes up: what is held stays so, and the markers of the last minute before it went are counted again."""
    state.bucket.halt = halt.read(bucket.fs, bucket.meta)
    journal, address = region.engine.journal, bucket.address
    noted_ns = int(journal.fact(_fact(state)) or 0)
    state.deletions, state.withheld = Deletions(), Withheld(is_noted=noted_ns > 0)
    if not noted_ns and state.bucket.halt is None and not journal.scanned_ns(address):
        # what was noted is lost with the journal: a decision may have waited for as long as they came in a row
        noted_ns = journal.deliveries.markers_in_a_row_since(address, int(NOTE_S * 1e9))
    if state.bucket.halt is not None:
        log.warning("halted bucket=%s: %s", bucket.address, state.bucket.halt.describe(bucket.address))
    else:
        _withhold_again(region, state, bucket.address, noted_ns)
    if noted_ns and not state.withheld:
        _note_since(region, state, 0)


def _withhold_again(region: Region, state: BucketState, address: str, noted_ns: int) -> None:
    recent = region.engine.journal.deliveries.newest_markers(address, deletions.WINDOW_NS, noted_ns)
    first = list(itertools.islice(recent, brake.BURST_KEYS + 1))
    for _, group in itertools.groupby(itertools.chain(first, recent), key=lambda each: (each.key, each.id)):
        pending = list(group)
        deleted = Deleted(pending[0].created_ns, b"", has_deliveries=True)
        state.deletions.add(pending[0].key, deleted, is_undecided=noted_ns > 0)
        if len(first) > brake.BURST_KEYS:
            state.withheld.add(pending, found=True)


def acknowledge(region: Region, state: BucketState, bucket: OpenBucket) -> None:
    """Let the held deletions cross. Raises OSError."""
    halt.remove(bucket.fs, bucket.meta)
    state.bucket.halt = None
    state.deletions.clear()
    log.info("acknowledged bucket=%s: its deletions cross", bucket.address)
    deliveries.enqueue_all(region, state)
    region.engine.notify()
