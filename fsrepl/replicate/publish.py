"""Staged replicas become visible: durable, published in the store, shown, recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence, Set

from fsrepl.errors import reason
from fsrepl.model import keys
from fsrepl.model.version import Status, Version
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.replicate import in_stager
from fsrepl.replicate.destination import Destination
from fsrepl.replicate.draft import StagedReplica
from fsrepl.replicate.source import Source
from fsrepl.replicate.transfer import Item
from fsrepl.storage import staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Intended, Intent, intend
from fsrepl.storage.journal.rows import Outcome
from fsrepl.views import (
    directories,
    link_groups,
    narrowing,
    obstacles,
    overwritten,
    relinking,
    resting,
    rotten,
    shared_record,
    show,
    stale,
)

Seen = list[tuple[Version, View | None]]
"""Versions that their views show now, and how those views look."""


def publish(
    region: Region, state: BucketState, source: Source, bucket: OpenBucket, tree: Destination, items: Sequence[Item]
) -> list[Outcome]:
    """Make staged replicas visible. A version that is older than the key's newest is added to the store alone.

    Each step (staged, published, shown, synced, recorded) is done for the whole batch before the next begins.
    """
    rotted = _rotten(region, state, bucket, items)
    again = state.replicas.unsynced | rotted.keys()
    newest = _newest(items, again)
    views = {
        key: rotted.get((key, item.delivery.id), item.known.view if item.known else None)
        for key, item in newest.items()
    }
    intended = _staged(
        region, bucket, tree, items, [Intent(key, newest[key].delivery.id, view) for key, view in views.items()]
    )
    if intended is None:
        return []
    with intended:
        done = _published(region, tree, items)
        current = _newest(done, again)  # where the newest of a key failed, the version before it is shown
        narrower = narrowing.Narrower(region.engine, bucket, {source.address: source.order})
        links = None
        if bucket.bucket.trees:
            links = link_groups.LinkGroups(region.engine.journal, bucket, region.engine.syncer, region.engine.recent)
        follower = directories.Follower(bucket, {source.address: source.rights}, narrower)
        seen = _shown(region, state, bucket, list(current.values()), views, follower, narrower, links)
        shown = {(version.key, version.id) for version, _ in seen}
        _without_views(bucket, [item for item in done if (item.delivery.key, item.delivery.id) not in shown])
        fault = _synced(bucket)
        # Recorded even where the sync failed: these views are shown, and are not their users' writes.
        _recorded(region, state, bucket, done, seen)
        if links is not None:
            links.refresh()
            state.views.await_names(links.lacking)
        ids = [(item.delivery.key, item.delivery.id) for item in done]
        if fault is not None:
            state.replicas.unsynced.update(ids)
            region.try_later([item.delivery for item in done], fault)
            intended.keep()
            return []
        state.replicas.unsynced.difference_update(ids)
        stale.mark_all_fresh(region, state, bucket, [version.key for version, _ in seen])
        if not all(state.views.stale[key].intent for key in current if key in state.views.stale):
            intended.keep()
        _link_late_names(region, state, bucket, current, seen)
        return [Outcome(item.delivery, Status.COMPLETED, "", item.version, item.crossed_bytes) for item in done]


def _link_late_names(
    region: Region, state: BucketState, bucket: OpenBucket, current: Mapping[bytes, Item], seen: Seen
) -> None:
    """Link the names that came later than others of their files, since their deliveries were requested again."""
    for version, view in seen if bucket.bucket.trees else ():
        delivery = current[version.key].delivery
        if view is not None and delivery.since_ns > delivery.created_ns:
            relinking.relink(region, state, bucket, version)


def _staged(
    region: Region, bucket: OpenBucket, tree: Destination, items: Sequence[Item], intents: Sequence[Intent]
) -> Intended | None:
    """Make staged files and the intents of the views durable; None where that failed and is tried later."""
    tmp = bucket.tmp
    files = [(tmp, i.staged.stored.name) for i in items if i.staged]
    files += [(tmp, i.staged.view) for i in items if i.staged and i.staged.view]
    try:
        return intend(region.engine.syncer, bucket, intents, files)
    except OSError as error:
        for item in items:
            if item.staged:
                tree.discard(item.staged)
        region.try_later([i.delivery for i in items], error)
        return None


def _published(region: Region, tree: Destination, items: Sequence[Item]) -> list[Item]:
    """Rename staged versions into the store; the items in the store now. The others are tried later."""
    done: list[Item] = []
    for item in items:
        assert item.staged is not None
        try:
            tree.publish(item.staged, is_first=item.known is None)
            done.append(item)
        except OSError as error:
            tree.discard(item.staged)
            region.try_later([item.delivery], error)
    return done


def _rotten(
    region: Region, state: BucketState, bucket: OpenBucket, items: Sequence[Item]
) -> dict[tuple[bytes, str], View]:
    """The views that rotted with a stored version that is made again, by key and id."""
    found = {}
    for item in items:
        if item.known is not None and item.replica is not None and item.known.order == item.replica.order:
            view = rotten.rotten_view(region, state, bucket, item.replica, item.known.view)
            if view is not None:
                found[item.replica.key, item.replica.id] = view
    return found


def _newest(items: Sequence[Item], again: Set[tuple[bytes, str]]) -> dict[bytes, Item]:
    """By key, the replica that its view must show: newer than the current one, or made again since it is in doubt."""
    newest: dict[bytes, Item] = {}
    for item in items:
        assert item.replica is not None
        key, order = item.replica.key, item.replica.order
        known, rival = item.known, newest.get(key)
        if known and (order < known.order or (order == known.order and (key, item.delivery.id) not in again)):
            continue
        if rival is None or rival.replica is None or order > rival.replica.order:
            newest[key] = item
    return newest


def _shown(
    region: Region, state: BucketState, bucket: OpenBucket, items: Sequence[Item], views: dict[bytes, View | None],
    follower: directories.Follower, narrower: narrowing.Narrower,
    links: link_groups.LinkGroups | None,
) -> Seen:  # fmt: skip
    """Update views to their new versions. A view that cannot change yet becomes stale; its delivery is COMPLETED."""
    seen: Seen = []
    emptied: set[bytes] = set()
    all_left: list[tuple[bytes, str, Version | None]] = []
    all_overwritten: list[overwritten.At] = []
    ordered = _in_order(items)
    removing, removed = _share_of_stager(ordered, views) if links is None else {}, dict[bytes, show.Shown]()
    order: in_stager.Removing | None = None
    for item in ordered:
        assert item.replica is not None
        assert item.staged is not None
        key = item.replica.key
        directory, is_directory = keys.place(key)[0], keys.is_directory(key)
        try:
            if not item.delivery.marker:
                follower.before_showing(directory)
            elif is_directory:
                _leave(bucket, emptied)
            elif order is None:  # new views are there by now: a rename is no gap
                order = in_stager.Removing(region.engine.stager, bucket, list(removing.items()))
            if key in removing and order is not None:
                removed, removing = order.result(), {}
            outcome = removed.get(key) or _show(bucket, item.replica, item.staged, views[key], links, emptied)
            if key in removed:
                emptied.add(directory)
        except OSError as error:
            outcome = show.NotShown(reason(error))
        match outcome:
            case show.Shown(view, left, record):
                if outcome.is_overwritten:
                    all_overwritten.append((key, left))
                elif left:
                    all_left.append((key, left, record))
                seen.append((item.replica, view))
                if view is not None and is_directory:
                    resting.note_shown(state, item.replica)
                    narrower.show(item.replica)
                if item.replica.marker:
                    stale.retry_blocked(region, state)
            case show.NotShown(why, conflict):
                stale.mark_stale(region, state, key, why, conflict=conflict, bucket=bucket, was=views[key])
            case show.UserChanged():
                stale.mark_stale(
                    region, state, key, "its file has content that is not recorded yet", bucket=bucket, was=views[key]
                )
                stale.recapture(region, state, key)
    _leave(bucket, emptied)
    shared_record.repair_all_left(region.engine, state, bucket, all_left)
    overwritten.note(region.engine.syncer, state, bucket, all_overwritten)
    if links is not None:  # a view that another one was linked to may be a file of its own since
        return links.latest_of(seen)
    return seen


def _share_of_stager(ordered: Sequence[Item], views: Mapping[bytes, View | None]) -> dict[bytes, View]:
    """The views of files that the stager removes for their markers, if it is there: three quarters of them, the later
    ones, since the daemon has other work too, as for the region that captures more removals meanwhile."""
    found = [
        (item.delivery.key, view)
        for item in ordered
        if item.delivery.marker and (view := views[item.delivery.key]) is not None
        if not keys.is_directory(item.delivery.key)
    ]
    return dict(found[len(found) // 4 :])


def _leave(bucket: OpenBucket, emptied: set[bytes]) -> None:
    """Remove the directories that replication made and from which the last file was removed."""
    while emptied:
        obstacles.remove_made_directories(bucket, emptied.pop())


def _show(
    bucket: OpenBucket, version: Version, staged: StagedReplica, was: View | None,
    links: link_groups.LinkGroups | None, emptied: set[bytes],
) -> show.ShowResult:  # fmt: skip
    """Show a staged replica; in a tree bucket in the file of another view, where it is one with that."""
    if links is None:
        return show.show(bucket, version, was, staged.view, emptied=emptied)
    return links.show(version, was, staged.view, emptied=emptied)


def _in_order(items: Iterable[Item]) -> list[Item]:
    """Directories before their entries, a file before other names of it, and markers last: a directory's after those of
    its entries."""
    of: dict[tuple[bool, bool], list[Item]] = {(m, d): [] for m in (False, True) for d in (False, True)}
    for item in items:
        of[item.delivery.marker, keys.is_directory(item.delivery.key)].append(item)
    made, removed = (sorted(of[marker, True], key=lambda item: item.delivery.key) for marker in (False, True))
    files = sorted(of[False, False], key=lambda item: bool(item.replica and item.replica.link))
    return [*made, *files, *of[True, False], *reversed(removed)]


def _without_views(bucket: OpenBucket, items: Sequence[Item]) -> None:
    """Clean up for versions that no view shows: remove the staged view, or make the stored file private."""
    for item in items:
        if item.staged and item.staged.view:
            with contextlib.suppress(OSError):  # a file that remains is swept at the next start
                staging.unstage(bucket, item.staged.view)
        elif item.replica and not item.replica.marker:
            versions.make_private(bucket, item.replica.key, item.replica.id)


def _synced(bucket: OpenBucket) -> OSError | None:
    """Make names in the store and views durable; the error, if there was one."""
    try:
        bucket.sync()
    except OSError as error:
        return error
    return None


def _recorded(region: Region, state: BucketState, bucket: OpenBucket, done: Sequence[Item], seen: Seen) -> None:
    journal = region.engine.journal
    with journal.transaction():
        journal.versions.add_shown(bucket.address, seen)
        now_shown = {(version.key, version.id) for version, _ in seen}
        for item in done:
            assert item.replica is not None
            state.bucket.ids.saw(item.replica.id, item.replica.created_ns)
            if (item.replica.key, item.replica.id) not in now_shown:
                journal.versions.add(bucket.address, item.replica)
    state.ask_to_place(item.replica.key for item in done if item.replica and item.replica.storage_class)
