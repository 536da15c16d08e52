"""The barrier of `fsrepl wait`: all changes from before the call are captured, and then delivered or failed.

A sentinel is created in each bucket's .fsrepl/tmp, on the same inotify instance as all watches: events that the
watcher reads before the sentinel are from before the call. The sentinel begins an epoch. The wait covers changes of
earlier epochs, then the deliveries of every version that existed when the last of these was captured, and the
backfills that were accepted by then. Changes made during the wait do not prolong it. Waiting does not help with files
that cannot be read, directories that are not scanned, and views that cannot show their version: these are named.
Source: design.md, section 5.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.capture import barrier
from fsrepl.commands import objects
from fsrepl.commands.backfills import unfinished
from fsrepl.daemon import requests
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.worker import Worker
from fsrepl.errors import FsreplError, Refused
from fsrepl.model import keys
from fsrepl.model.address import Address, region_of
from fsrepl.model.version import Status, Version, Versioning
from fsrepl.region.bucket_state import NAMES, BucketState, Phase
from fsrepl.region.scan_queue import is_below
from fsrepl.storage import unversioned, versions

_SENTINEL_S = 5.0
_CAPTURE_LOOK_S = 0.02
_PROBE_MAX_S = 60.0
_DELIVERY_LOOK_S = 0.25
_TOLD_MAX_S = 0.5
_SHOWN_MAX_S = 1.0
"""How long a view may take to show a delivered version. A longer delay may last for ever."""
_OVERDUE_MAX_S = 60.0
"""The longest wait for a view that is due now: the daemon gets little of the processor, or is stuck."""
_NAMED_MAX = 1000


class Scope(Struct, frozen=True):
    """The whole site, one bucket, or one key of a bucket.

    linked: the key's file has other names, which events may have named instead. names: the known ones of these.
    """

    addresses: tuple[str, ...]
    key: bytes = b""
    linked: bool = False
    names: frozenset[bytes] = frozenset()

    def takes(self, key: bytes) -> bool:
        return not self.key or key == self.key

    def is_written_through(self, key: bytes) -> bool:
        """Whether a change of a key may have changed a file in scope."""
        return self.takes(key) or key in self.names

    def reaches(self, directory: bytes) -> bool:
        """Whether a key in scope may lie below a directory."""
        return not self.key or is_below(self.key, directory)


class Waited(Struct):
    """The result of a wait. pending: deliveries that are not made yet, and one for each bucket not captured yet."""

    failures: list[str] = field(default_factory=list)
    """Deliveries that failed, of the newest version of a key, with the reason."""
    pending: int = 0
    opened: set[str] = field(default_factory=set)
    unruled: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Files and directories that cannot be read, and so cannot be captured, with the reason."""
    mounts: list[str] = field(default_factory=list)
    """Directories that are another mount: they are not scanned, and no file below them is captured."""
    unshown: list[str] = field(default_factory=list)
    """Files, at the source or at a destination, that do not show the delivered version, with the reason."""
    halted: list[str] = field(default_factory=list)
    """Buckets whose deletions are held until a person decides: neither failed nor pending."""
    trouble: list[str] = field(default_factory=list)
    """Why buckets are not captured."""
    away: list[str] = field(default_factory=list)
    """Why regions or buckets are not scanned: files dropped there since are not captured."""
    replicas_away: list[str] = field(default_factory=list)
    """Why buckets that only receive replicas are not scanned. Versions delivered to them are durable there."""

    @property
    def failed(self) -> int:
        return len(self.failures)

    @property
    def left_out(self) -> tuple[list[str], ...]:
        """Files that are not safe, and will not be by waiting."""
        return self.unreadable, self.mounts, self.unshown

    def document(self) -> dict[str, object]:
        """The JSON, with the first names of each list, and how many more there are."""
        return {
            "failed": self.failed,
            "failures": self.failures[:_NAMED_MAX],
            "pending": self.pending,
            "open": sorted(self.opened)[:_NAMED_MAX],
            "unruled": self.unruled,
            "unreadable": self.unreadable[:_NAMED_MAX],
            "mounts": self.mounts[:_NAMED_MAX],
            "unshown": self.unshown[:_NAMED_MAX],
            "more": sum(max(0, len(names) - _NAMED_MAX) for names in (self.failures, self.opened, *self.left_out)),
            "halted": self.halted,
            "trouble": self.trouble,
            "away": self.away,
            "replicas_away": self.replicas_away,
        }


def answer(engine: Engine, request: requests.Wait, given_up: Callable[[], bool]) -> dict[str, object]:
    """The answer to a request to wait. Raises Usage for an unknown region, Refused for an unknown bucket."""
    return wait(engine, scope_of(engine, request.scope), request.timeout_s, given_up).document()


def scope_of(engine: Engine, address: Address | None) -> Scope:
    """The scope of an address, or the whole site. Raises Usage for an unknown region, Refused for an unknown bucket."""
    if address is None:
        return Scope(tuple(sorted(engine.site.buckets)))
    return Scope((engine.site.bucket(address.bucket).address,), address.key)


def wait(engine: Engine, scope: Scope, timeout_s: float | None, given_up: Callable[[], bool]) -> Waited:
    """Wait until all in scope from before this call is captured, and delivered or failed; or until the timeout.

    given_up: whether the caller has gone.
    """
    until_s = None if timeout_s is None else time.monotonic() + timeout_s
    waited = Waited()
    scope = _with_names(engine, scope, until_s)
    late = _capture(engine, scope, until_s, waited.opened, given_up)
    newest = {address: _newest_ns(engine, address) for address in scope.addresses}
    backfills = {address: unfinished(engine, address, scope.key) for address in scope.addresses}
    while True:
        held = {address: _held(engine, address, newest[address], scope) for address in scope.addresses}
        pending = sum(engine.journal.deliveries.count_pending(a, newest[a], scope.key or None) for a in scope.addresses)
        pending -= sum(held.values())
        pending += sum(len(backfills[a] & unfinished(engine, a, scope.key)) for a in scope.addresses)
        if not pending or _is_over(until_s) or given_up():
            break
        with engine.changed:
            engine.changed.wait(_left(until_s, _DELIVERY_LOOK_S))
    if not pending:
        _let_views_show(engine, scope, until_s, given_up)
        _let_views_tell(engine, scope, until_s)
    waited.pending = pending + len(late)
    waited.halted = [each.describe(a) for a, n in held.items() if n and (each := engine.site.buckets[a].halt)]
    waited.trouble = [trouble for address in late if (trouble := _trouble(engine, address, scope))]
    for address in scope.addresses:
        waited.failures += _failures(engine, address, scope)
        waited.unreadable += _unreadable(engine, address, scope)
        waited.mounts += _mounts(engine, address, scope)
        if address not in late and (why := _away(engine, address)):
            (waited.replicas_away if _is_replica_only(engine, address) else waited.away).append(why)
    if not scope.key and len(scope.addresses) == len(engine.site.buckets):
        waited.away += engine.site.unattached(elsewhere=False)
    waited.unshown = _unshown(engine, scope)
    if scope.key and not (waited.opened or late or waited.away or any(waited.left_out)):
        waited.unruled = _unruled(engine, scope.addresses[0], scope.key)
    return waited


def _newest_ns(engine: Engine, address: str) -> int:
    """The creation time of a bucket's newest version, if possible without a search of the whole journal."""
    state = engine.region_of(address).states.get(address)
    return (
        state.bucket.ids.newest_ns if state is not None and state.is_up else engine.journal.versions.newest(address)[1]
    )


def _held(engine: Engine, address: str, newest_ns: int, scope: Scope) -> int:
    """How many deliveries of a bucket that is HALTED wait for a person and for nothing else."""
    if engine.site.buckets[address].halt is None:
        return 0
    return engine.journal.deliveries.count_held(address, newest_ns, scope.key or None)


def _let_views_show(engine: Engine, scope: Scope, until_s: float | None, given_up: Callable[[], bool]) -> None:
    """Wait a moment for views that do not show their version yet: most delays are short. On a busy machine the moment
    is longer: as long as any of them is to be tried now."""
    moment_s, most_s = (time.monotonic() + _left(until_s, each) for each in (_SHOWN_MAX_S, _OVERDUE_MAX_S))
    while unshown := list(_unshown_views(engine, scope)):
        is_over = _is_over(moment_s) and not any(_is_under_way(*view) for view in unshown)
        if is_over or _is_over(most_s) or given_up():
            return
        with engine.changed:
            engine.changed.wait(_left(most_s, _CAPTURE_LOOK_S))


def _is_under_way(region: Worker, state: BucketState, key: bytes) -> bool:
    """Whether a view is to be tried now, or its file to be captured for that."""
    stale_view = state.views.stale.get(key)
    if stale_view is None or stale_view.conflict:
        return False
    later = state.captures.deferred.get(key)
    return (
        stale_view.due_s <= time.monotonic()
        or (state.views.retries_blocked and keys.is_directory(key))
        or region.changes.is_queued(state.bucket.address, key)
        or key in state.captures.copying
        or (later is not None and not later.opened and later.due_s <= time.monotonic())
    )


def _let_views_tell(engine: Engine, scope: Scope, until_s: float | None) -> None:
    """Wait a moment for labels, which the caller may read next. Where there are very many, some are written later."""
    told_s = time.monotonic() + _left(until_s, _TOLD_MAX_S)
    for address in scope.addresses:
        state = engine.region_of(address).states.get(address)
        while state is not None and state.is_up and state.labels.is_behind(scope.key) and not _is_over(told_s):
            with engine.changed:
                engine.changed.wait(_left(told_s, _CAPTURE_LOOK_S))


def _trouble(engine: Engine, address: str, scope: Scope) -> str:
    """Why a bucket, or a file in scope, is not captured yet, for people; empty where only time was short."""
    state = engine.region_of(address).states.get(address)
    why = (state.why if state.phase is Phase.SUSPENDED else state.captures.paused) if state else ""
    if state and not why:
        waiting = [each for each in NAMES["waiting"](state) if scope.is_written_through(each[0])]
        if waiting:
            key, of_file = min(waiting, key=lambda each: (each[0] not in state.captures.faults, each[0]))
            others = f", and {len(waiting) - 1:,} more" if len(waiting) > 1 else ""
            return f"{address}/{keys.shown(key)}{others}: {of_file}"
    return engine.site.buckets[address].trouble or (f"{address}: {why}" if why else "")


def _away(engine: Engine, address: str) -> str:
    """Why a bucket was skipped: it is away, and had no work under way when it went offline. Empty otherwise."""
    state = engine.region_of(address).states.get(address)
    bucket = engine.site.buckets[address]
    return bucket.trouble if state is not None and not state.is_up and bucket.away else ""


def _is_replica_only(engine: Engine, address: str) -> bool:
    """Whether a bucket has no rule, and is the destination of another bucket's rule."""
    if engine.replication_of(address) is not None:
        return False
    configured = filter(None, map(engine.replication_of, engine.site.buckets))
    return any(rule.destination == address for replication in configured for rule in replication.rules)


def _with_names(engine: Engine, scope: Scope, until_s: float | None) -> Scope:
    """The scope with the other names of its key's file: a write through one name changes all."""
    if not scope.key:
        return scope
    (address,) = scope.addresses

    def look() -> Scope:
        known = engine.journal.versions.object(address, scope.key)
        if known is None or known.view is None:
            return scope
        with engine.site.bucket(address).open() as bucket:
            directory, name = keys.split(scope.key)
            found = bucket.fs.stat(bucket.views.get(directory), name)
            version = Version(scope.key, known.view.shown or known.id, known.created_ns)
            if found.st_nlink == 1 + versions.is_file_of(bucket, version, found):
                return scope
        return replace(scope, linked=True, names=frozenset(engine.journal.views.names_of(address, found.st_ino)))

    with contextlib.suppress(FsreplError, TimeoutError, OSError, sqlite3.Error):
        return engine.region_of(address).ask(look, _left(until_s, _PROBE_MAX_S))
    return scope


def _is_over(until_s: float | None) -> bool:
    return until_s is not None and time.monotonic() >= until_s


def _left(until_s: float | None, most_s: float) -> float:
    return most_s if until_s is None else max(0.0, min(most_s, until_s - time.monotonic()))


def _capture(
    engine: Engine, scope: Scope, until_s: float | None, opened: set[str], given_up: Callable[[], bool]
) -> list[str]:
    """Wait until all changes from before now are captured; the buckets where the time did not suffice.

    All buckets are checked in turn, so that a slow bucket delays no other.
    """
    epochs: dict[str, int | None] = dict.fromkeys(scope.addresses)
    for address in epochs:
        _probe_buckets(engine, engine.region_of(address), address, until_s)
    while epochs and not given_up():
        for address in list(epochs):
            if _is_captured(engine, address, scope, epochs, until_s, opened):
                del epochs[address]
        if not epochs or _is_over(until_s):
            break
        with engine.changed:
            engine.changed.wait(_left(until_s, _CAPTURE_LOOK_S))
    return list(epochs)


def _is_captured(
    engine: Engine, address: str, scope: Scope, epochs: dict[str, int | None], until_s: float | None, opened: set[str]
) -> bool:
    """Whether a bucket's changes from before the wait are captured. epochs: the epoch of each sentinel, once read."""
    region = engine.region_of(address)
    state = region.states.get(address)
    if state is not None and not _is_followed(state):
        return True
    if state is None or not state.is_up:
        epochs[address] = None  # when the bucket is back, a scan finds the changes
        return False
    if (epoch := epochs[address]) is None:
        epoch = epochs[address] = _begin(engine, region, state, until_s)
    if epoch is None or not state.is_scanned or state.attachment.is_rereading:
        return False
    busy, still_open = _in_hand(region, state, scope, epoch)
    if not busy:
        opened |= still_open
    return not busy


def _probe_buckets(engine: Engine, region: Worker, address: str, until_s: float | None) -> None:
    """Probe a bucket that was away: it may have come back since the last probe, with new files."""
    state = region.states.get(address)
    if state is None or not state.is_up:
        with contextlib.suppress(TimeoutError, sqlite3.Error):
            region.ask(region.probe_now, _left(until_s, _PROBE_MAX_S))


def _is_followed(state: BucketState) -> bool:
    """Whether captures are waited for: not without versioning, nor in an outage, unless changes were left to capture
    when it began. Files dropped during the outage, or before a start, are unknown: see `away`.
    """
    bucket = state.bucket
    return (
        state.is_up
        or state.attachment.unsettled
        or not (bucket.away or (bucket.versioning is Versioning.OFF and not bucket.trouble))
    )


def _begin(engine: Engine, region: Worker, state: BucketState, until_s: float | None) -> int | None:
    """Create the sentinel; the epoch that it begins, None where the sentinel was not read."""

    def begin() -> int:
        return barrier.pass_barrier(region, state, _left(until_s, _SENTINEL_S))

    try:
        return region.ask(begin, _left(until_s, _PROBE_MAX_S)) or None
    except (FsreplError, TimeoutError, OSError, sqlite3.Error):
        return None


def _in_hand(region: Worker, state: BucketState, scope: Scope, epoch: int) -> tuple[bool, set[str]]:
    """Whether changes from before the epoch are still to be captured; and which files are open for writing."""
    address, changes = state.bucket.address, region.changes
    opened: set[str] = set()
    # In the order in which changes move from one to the next, so that none is missed while it moves.
    if changes.is_lost(address, epoch) or any(
        e.epoch < epoch and e.address == address for e in list(changes.directories)
    ):
        return True, opened
    moves = region.moves
    if state.scans.is_pending(epoch) or changes.is_waiting(address, epoch, b"" if scope.linked else scope.key):
        return True, opened
    for key, later in list(state.captures.deferred.items()):
        if not scope.is_written_through(key) or key in state.captures.set_aside:
            continue
        if later.opened and later.looked >= epoch:
            opened.add(f"{address}/{keys.shown(key)}")
        elif later.change.epoch < epoch:
            return True, opened
    copying = list(state.captures.copying.values())
    if any(change.epoch < epoch and scope.is_written_through(change.key) for change in copying):
        return True, opened
    return region.moves != moves, opened  # a change may have moved back to a queue that was already checked


def _failures(engine: Engine, address: str, scope: Scope) -> list[str]:
    """The deliveries that failed whose version is the newest of its key, with the reason."""
    journal = engine.journal
    return [
        f"{address}/{keys.shown(delivery.key)} to {delivery.destination}: {delivery.reason}"
        for delivery in journal.deliveries.select(address, status=Status.FAILED, key=scope.key or None)
        for known in (journal.versions.object(address, delivery.key),)
        if known is not None and known.id == delivery.id
    ]


def _unreadable(engine: Engine, address: str, scope: Scope) -> list[str]:
    """Files and directories in scope that cannot be read, with the reason."""
    state = engine.region_of(address).states.get(address)
    if state is None or not state.is_up:
        return []
    closed = [*list(state.captures.unreadable.items()), *list(state.captures.set_aside.items())]
    found = [(keys.shown(key), why) for key, why in closed if scope.takes(key)]
    blind = list(state.trouble.unreadable.items())
    found += [(keys.shown(path) + "/", why) for path, why in blind if scope.reaches(path)]
    return [f"{address}/{name}: {why}" for name, why in sorted(found)]


def _mounts(engine: Engine, address: str, scope: Scope) -> list[str]:
    """Directories in scope that are another mount."""
    state = engine.region_of(address).states.get(address)
    if state is None or not state.is_up:
        return []
    return [f"{address}/{keys.shown(path)}/" for path in sorted(state.trouble.mounts.copy()) if scope.reaches(path)]


def _unshown(engine: Engine, scope: Scope) -> list[str]:
    """Views in scope, and views of their replicas, that do not show their version, with the reason."""
    found = set()
    for _, state, key in _unshown_views(engine, scope):
        if (stale_view := state.views.stale.get(key)) is not None:
            found.add(f"{state.bucket.address}/{keys.shown(key)}: {stale_view.why}")
    return sorted(found)


def _unshown_views(engine: Engine, scope: Scope) -> Iterator[tuple[Worker, BucketState, bytes]]:
    """The views that do not show their current version, as regions, buckets and keys."""
    for address in scope.addresses:
        replication = engine.site.buckets[address].replication
        destinations = {rule.destination for rule in replication.rules} if replication else set()
        for shows in {address} | destinations:
            region = engine.regions.get(region_of(shows))
            state = region.states.get(shows) if region else None
            if region is None or state is None or not state.is_up:
                continue
            for key in list(state.views.stale):
                if scope.takes(key) and (shows == address or _is_replica(engine, shows, address, key)):
                    yield region, state, key


def _is_replica(engine: Engine, destination: str, source: str, key: bytes) -> bool:
    """Whether a key's current version at a destination is that of the source."""
    there, here = engine.journal.versions.object(destination, key), engine.journal.versions.object(source, key)
    return there is not None and here is not None and there.id == here.id


def _unruled(engine: Engine, address: str, key: bytes) -> list[str]:
    """The key in scope if no rule chose it, since the caller may expect more. Raises Refused(NoSuchKey)."""
    bucket = engine.site.bucket(address)
    if bucket.versioning is Versioning.OFF:
        with bucket.open() as opened:
            if unversioned.has(opened, key):
                return [f"{address}/{keys.shown(key)}"]
    known = engine.journal.versions.object(address, key)
    if known is None:
        meant = objects.like_known(engine.journal, address, key)
        raise Refused("NoSuchKey", f"{address} has no {keys.shown(key)}{meant}")
    chosen = any(delivery.id == known.id for delivery in engine.journal.deliveries.select(address, key=key))
    return [] if chosen else [f"{address}/{keys.shown(key)}"]
