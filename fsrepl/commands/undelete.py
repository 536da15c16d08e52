"""After a mass deletion: let it cross, or bring back what was deleted.

A key is brought back as `restore` does it, as a new version with the content and metadata of the newest that is no
marker, but a batch at a time: one intent file, one sync before the versions get their names and one after, one
transaction of the journal.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.commands.file_names import FileNames
from fsrepl.commands.objects import as_new_version
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import Acknowledge, Undelete
from fsrepl.daemon.worker import Worker
from fsrepl.errors import ContentDamaged, FsreplError, Refused, Unavailable, reason
from fsrepl.model import clock, keys
from fsrepl.model.version import Origin, Version, Versioning
from fsrepl.model.view import View
from fsrepl.region import halting
from fsrepl.region.bucket_state import BucketState
from fsrepl.replicate import in_stager
from fsrepl.storage import copying, publishing, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Intent, intend
from fsrepl.storage.journal.rows import Object
from fsrepl.views import following, link_groups, shared_record, show, stage, stale

_BATCH = 512
_BATCH_BYTES = 256 << 20
_STAGING_S = 2.0
"""The time that the stager has for a part of a batch. What is left then is staged here."""
FIRST = 20
"""How many keys a preview names."""


def acknowledge(engine: Engine, request: Acknowledge) -> dict[str, object]:
    """Let the held deletions of a bucket cross. A bucket that is not HALTED has none, and the answer says so."""
    address = engine.site.bucket(str(request.bucket)).address
    region = engine.region_of(address)
    state = region.ready(address)
    if state.bucket.halt is None:
        return {"Bucket": address, "Halted": False, "Released": 0}
    held = engine.journal.deliveries.count_held(address)
    with state.bucket.open() as bucket:
        halting.acknowledge(region, state, bucket)
    return {"Bucket": address, "Halted": True, "Released": held}


class _Wanted(Struct, frozen=True):
    """A key to bring back: its marker, and the version whose content it gets."""

    key: bytes
    known: Object
    version: Version


class _Staged(Struct, frozen=True):
    """A version that lies staged, and the file that becomes its view; empty where that is to be a hard link."""

    wanted: _Wanted
    stored: versions.Staged
    view: bytes


def undelete(engine: Engine, request: Undelete) -> dict[str, object]:
    """Bring back one batch of keys, or count it; "After" is the last key looked at, null when there are no more.

    What users deleted since then counts, and neither what lifecycle nor what a replica's marker deleted.
    """
    address, prefix = engine.site.bucket(request.address.bucket).address, request.address.key
    try:
        since_ns = clock.within(clock.parse(request.since))
    except ValueError as error:
        raise Refused("InvalidRequest", str(error)) from error
    region = engine.region_of(address)
    state = region.ready(address) if request.after else region.flush(address)
    if state.bucket.versioning is Versioning.OFF:
        raise Refused("InvalidRequest", f"{address} was never versioned, so there is nothing to bring back")
    with state.bucket.open() as bucket:
        found, after, lost = _next(region, bucket, prefix, since_ns, request.after)
        answer: dict[str, object] = {"After": os.fsdecode(after) if after is not None else None}
        if request.count:
            size = sum(each.version.size for each in found)
            first = [keys.key_document(each.key) for each in found[:FIRST]]
            return answer | {"Keys": len(found), "Bytes": size, "First": first}
        restored, left = _restore(region, state, bucket, found)
        if after is None:
            with region.at_work(state):
                _lift(region, state, bucket)
    return answer | {
        "Restored": restored,
        "Left": [keys.key_document(key) | {"Why": why} for key, why in (*lost, *left)],
        "Halted": state.bucket.halt is not None,
    }


_Next = tuple[list[_Wanted], bytes | None, list[tuple[bytes, str]]]


def _next(region: Worker, bucket: OpenBucket, prefix: bytes, since_ns: int, after: bytes) -> _Next:
    """The next keys to bring back, the last key looked at (None at the end), and those of which nothing is left.

    One page of the journal: the region has other work to do.
    """
    journal, at = region.engine.journal, keys.split(after) if after else None
    rows = journal.versions.deleted_since(bucket.address, since_ns, at, _BATCH)
    objects = journal.versions.look_up(bucket.address, [keys.join(d, n) for d, n, _ in rows])
    found: list[_Wanted] = []
    lost: list[tuple[bytes, str]] = []
    size = 0
    for directory, name, marker_id in rows:
        key = keys.join(directory, name)
        if not key.startswith(prefix):
            continue
        try:
            wanted = _wanted(region, bucket, key, marker_id, objects[key])
        except FsreplError as error:
            lost.append((key, str(error)))
            continue
        if wanted is not None:
            found.append(wanted)
            size += wanted.version.size
            if size >= _BATCH_BYTES:
                return found, key, lost
    return found, keys.join(*rows[-1][:2]) if len(rows) == _BATCH else None, lost


def _wanted(region: Worker, bucket: OpenBucket, key: bytes, marker_id: str, known: Object) -> _Wanted | None:
    """The version to bring back; None where no user deleted the key. Raises FsreplError where there is none."""
    if not _is_users(bucket, key, marker_id, known):
        return None
    for version_id, _, is_marker in region.engine.journal.versions.versions_of(bucket.address, key):
        if not is_marker and (version := versions.read(bucket, key, version_id, marker=False)) is not None:
            return _Wanted(key, known, versions.ensure_whole(version))
    raise Refused("NoSuchVersion", f"{keys.shown(key)} has no version left")


def _is_users(bucket: OpenBucket, key: bytes, marker_id: str, known: Object) -> bool:
    """Whether a user made a marker. Raises FsreplError."""
    with contextlib.suppress(OSError):
        glance = versions.glance_at(bucket, key, marker_id, known.created_ns, marker=True, asks_lock=False)
        if glance is not None:
            return glance.origin == Origin.USER
    marker = versions.read(bucket, key, marker_id, marker=True)
    return marker is not None and marker.origin is Origin.USER


def _restore(
    region: Worker, state: BucketState, bucket: OpenBucket, wanted: list[_Wanted]
) -> tuple[int, list[tuple[bytes, str]]]:
    """Make a batch current again; the number, and the keys that could not be, with the reason."""
    left: list[tuple[bytes, str]] = []
    names = FileNames(region.engine.journal, bucket, [each.version for each in wanted])
    staged = _stage_together(region, state, bucket, wanted, names)
    done = {each.wanted.key for each in staged}
    others = [each for each in wanted if each.key not in done]
    try:
        for each in sorted(others, key=lambda each: each.version.link is not None):  # the first name of a file first
            try:
                staged.append(_stage(region, state, bucket, each, names))
                names.came_back(each.version, staged[-1].stored.version)
            except FsreplError as error:
                left.append((each.key, str(error)))
        intents = [Intent(each.wanted.key, each.stored.version.id, each.wanted.known.view) for each in staged]
        files = [(bucket.tmp, name) for each in staged for name in (each.stored.name, each.view) if name]
        intended = intend(region.engine.syncer, bucket, intents, files)
    except OSError:
        _discard(bucket, staged)
        raise
    try:
        with intended:
            publishing.publish_durable(bucket, [each.stored for each in staged])
            _show(region, state, bucket, staged)
            if not all(state.views.stale[e.wanted.key].intent for e in staged if e.wanted.key in state.views.stale):
                intended.keep()
    except (OSError, FsreplError) as error:
        with region.at_work(state):  # it comes up again with what store and intent say: that is the rest of the batch
            raise
        why = f"not everything in {bucket.address} was brought back: {reason(error)}"
        raise Unavailable(f"{why}; give the command again") from error
    return len(staged), left


def _stage_together(
    region: Worker, state: BucketState, bucket: OpenBucket, wanted: list[_Wanted], names: FileNames
) -> list[_Staged]:
    """Have the stager stage small files, if they are so many that it is worth it; those that it has staged."""
    stager = region.engine.stager
    if stager is None or not stager.is_wanted(len(wanted)):
        return []
    stager.tidy(bucket)
    orders: list[tuple[list[_Wanted], in_stager.Staging]] = []
    for at in range(0, len(wanted), in_stager.CHUNK):
        given: list[_Wanted] = []
        new: list[Version] = []
        for each in wanted[at : at + in_stager.CHUNK]:
            if each.version.place is not None or not in_stager.takes(each.version):
                continue
            version = as_new_version(state, each.version, region.engine.site.now(), each.known, names)
            if version.link is None and not sharing.is_linked(bucket, version.posix):
                given.append(each)
                new.append(version)
        contents = [each.version.id for each in given]
        orders.append((given, in_stager.Staging(stager, bucket, bucket, new, _STAGING_S, contents)))
    return [
        _Staged(each, staged.stored, staged.view)
        for given, staging in orders
        for each, staged in zip(given, staging.result(), strict=False)
        if staged is not None
    ]


def _stage(region: Worker, state: BucketState, bucket: OpenBucket, wanted: _Wanted, names: FileNames) -> _Staged:
    """Copy a version into staging, twice where its view has a file of its own for sure. Raises FsreplError, OSError."""
    version = wanted.version
    fd, name, view = versions.open_content(bucket, version), staging.token(), b""
    try:
        if copying.copy_aside(bucket, fd, name) != version.digest:
            raise ContentDamaged(f"version {version.id} no longer matches its BLAKE3", version.id)
        new = as_new_version(state, version, region.engine.site.now(), wanted.known, names)
        if names.of(version) is None and not sharing.is_linked(bucket, new.posix):
            view, shortfall = stage.stage_view(bucket, new, fd)
            new = replace(new, shortfall=shortfall)
        return _Staged(wanted, versions.stage_copy(bucket, name, new), view)
    except (OSError, FsreplError):
        for each in (name, view):
            with contextlib.suppress(OSError):  # what stays is swept at the next start
                staging.unstage(bucket, each)
        raise
    finally:
        bucket.fs.close(fd)


def _discard(bucket: OpenBucket, staged: list[_Staged]) -> None:
    for each in staged:
        with contextlib.suppress(OSError):  # what stays is swept at the next start
            versions.discard(bucket, each.stored)
            if each.view:
                staging.unstage(bucket, each.view)


def _show(region: Worker, state: BucketState, bucket: OpenBucket, staged: list[_Staged]) -> None:
    """Show published versions, make that durable, record all of it at once, and hand over their deliveries."""
    engine, address = region.engine, bucket.address
    following.look_before_showing(region, state, bucket, [each.wanted.key for each in staged])
    shown: list[tuple[Version, View | None]] = []
    behind: list[Version] = []
    links = link_groups.LinkGroups(engine.journal, bucket, engine.syncer, engine.recent)
    for each, outcome in ((each, _show_one(each, links)) for each in staged):
        version, was = each.stored.version, each.wanted.known.view
        match outcome:
            case show.Shown(view, left):
                if left:
                    shared_record.repair_left(engine, state, bucket, version.key, left)
                shown.append((version, view))
            case show.NotShown(why, conflict):
                stale.mark_stale(region, state, version.key, why, conflict=conflict, bucket=bucket, was=was)
                behind.append(version)
            case show.UserChanged():
                why = "its file has content that is not recorded yet"
                stale.mark_stale(region, state, version.key, why, bucket=bucket, was=was)
                stale.recapture(region, state, version.key)
                behind.append(version)
    bucket.sync()
    with engine.journal.transaction():
        # a view that another one was linked to looks otherwise since
        engine.journal.versions.add_shown(address, links.latest_of(shown))
        for version in behind:
            engine.journal.versions.add(address, version)
        links.refresh()
    state.views.await_names(links.lacking)
    now_s = time.monotonic()
    for version, _ in shown:
        stale.mark_fresh(region, state, bucket, version.key)
        state.labels.add(version, now_s)
    for each in staged:
        engine.recent.put(address, each.stored.version)
    halting.enqueue_new(region, state, [(each.stored.version, each.wanted.known) for each in staged])
    engine.notify()


def _show_one(each: _Staged, links: link_groups.LinkGroups) -> show.ShowResult:
    try:
        return links.show(each.stored.version, each.wanted.known.view, each.view, stages=True)
    except (FsreplError, OSError) as error:
        return show.NotShown(reason(error))


def _lift(region: Worker, state: BucketState, bucket: OpenBucket) -> None:
    """A bucket goes on where every key whose marker is held is there again: the markers cross, as history."""
    if state.bucket.halt is not None and not any(_held_keys(region, bucket)):
        halting.acknowledge(region, state, bucket)


def _held_keys(region: Worker, bucket: OpenBucket) -> Iterator[bool]:
    """Of each held marker, whether its key is deleted still."""
    journal = region.engine.journal
    held = journal.deliveries.keys_of_markers(bucket.address)
    for start in range(0, len(held), _BATCH):
        for known in journal.versions.look_up(bucket.address, held[start : start + _BATCH]).values():
            yield known.marker
