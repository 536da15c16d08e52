"""Carries out lifecycle actions that are due, a batch at a time: makes markers, removes versions for good, and writes
storage classes.

A crash after any call leaves a complete state. A view is removed as by a replica's marker: an intent is written, then
the marker is stored, then the view is taken out, compared, and put back where it differs from its record. A key whose
file differs from its record expires only after that file has become a version. A permanent removal is announced, then
noted in removed.jsonl, then done; a marker is stored before it is announced.

A version's own record permits an action on it, or the journal and a record that names that version and its time.
Source: s3-semantics, 5.2, 5.4 and 5.5.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.lifecycle.judge import Due, Judge
from fsrepl.model import keys
from fsrepl.model.lifecycle import Lifecycle
from fsrepl.model.version import NULL, Origin, Version, Versioning
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.lifecycle_state import LifecycleRun
from fsrepl.region.region import Region
from fsrepl.s3 import due, events
from fsrepl.s3.due import Action, Kind
from fsrepl.storage import publishing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE, NO_FILE, FileType
from fsrepl.storage.intents import Act, Intent, intend, read_intents
from fsrepl.storage.journal.rows import Object, traits_of
from fsrepl.views import null_view, shared_record, show, stale, unrecorded

log = logging.getLogger("fsrepl")


class NotBegun(Unavailable):
    """An action cannot begin now, has changed nothing, and is tried again later."""


class _Ready(NamedTuple):
    """An action that may be done now: its version, and the key by the journal.

    has_sidecar: whether the record is a sidecar, or may be one.
    """

    action: Action
    version: Version
    known: Object | None
    has_sidecar: bool

    @property
    def view(self) -> View | None:
        return self.known.view if self.known else None


_OUTCOMES: Mapping[Kind, str] = {
    Kind.EXPIRE: "expired", Kind.TRANSITION: "moved", Kind.TRANSITION_NONCURRENT: "moved",
    Kind.REMOVE_VERSION: "removed", Kind.REMOVE_MARKER: "removed",
}  # fmt: skip
"""The first word of a log line."""


_REMOVALS = frozenset({Kind.REMOVE_VERSION, Kind.REMOVE_MARKER})


class ActionGroup:
    """Actions in one bucket that share their syncs. Runs in the region's thread.

    Raises NotBegun where it can be tried later. Any other error leaves things half done, and
    the bucket must come up again, which finishes them.
    """

    def __init__(self, region: Region, state: BucketState, bucket: OpenBucket, judge: Judge, run: LifecycleRun) -> None:
        self.region, self.state, self.bucket, self.judge, self.run = region, state, bucket, judge, run
        self.engine, self.journal = region.engine, region.engine.journal

    def carry_out(self, found: Sequence[Due]) -> None:
        """Do what is due, as far as nothing keeps it."""
        known = self.journal.versions.look_up(self.bucket.address, dict.fromkeys(each.key for each in found))
        ready = [ready for each in found if (ready := self._ready(each, known.get(each.key))) is not None]
        self._expire([each for each in ready if each.action.kind is Kind.EXPIRE])
        self._remove([each for each in ready if each.action.kind in _REMOVALS])
        self._move([(each.action, each.version) for each in ready if each.action.storage_class])

    # -- may it be done

    def _ready(self, wanted: Due, known: Object | None) -> _Ready | None:
        """An action with its version, where it may be done now. known: the key, by the journal."""
        key = wanted.key
        if wanted.action.blocked_by:
            self.run.blocked += 1
            return None
        try:
            found = self._glance(wanted) or self._look(wanted)
        except StoreDamaged:
            self.state.damaged.append(Damaged(self.bucket.address, key, wanted.action.version_id))
            return None
        if found is None:
            return None
        if found.is_locked:
            self.run.blocked += 1
            log.info(
                'kept bucket=%s key="%s" version=%s: nobody may remove its file (chattr +i)',
                self.bucket.address, keys.shown(key), wanted.action.version_id,
            )  # fmt: skip
            return None
        ready = self._if_at_rest(_Ready(wanted.action, found.version, known, found.has_sidecar))
        if ready is None:
            self.run.again[key] = None
        return ready

    def _glance(self, wanted: Due) -> versions.Looked | None:
        """The version of an action of which the journal knows all but its BLAKE3; None where its record is needed.

        A record is written before the journal: only while a backfill requests deliveries may it say PENDING of a
        version of which the journal does not, if a crash came between the two.
        """
        facts, kind, key = wanted.facts, wanted.action.kind, wanted.key
        if (
            facts is None or facts.tags is None or facts.storage_class is None
            or facts.status is not None or facts.in_tier
            or wanted.action.storage_class or facts.id == NULL or self.state.backfills.jobs
        ):  # fmt: skip
            return None
        try:
            found = versions.glance_at(
                self.bucket, key, facts.id, facts.created_ns, marker=facts.marker, asks_lock=kind in _REMOVALS
            )
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        if found is None:
            return None
        version = Version(
            key, facts.id, facts.created_ns, facts.marker, facts.size, found.digest,
            storage_class=facts.storage_class, tags=facts.tags,
        )  # fmt: skip
        return versions.Looked(version, has_sidecar=True, is_locked=found.is_locked)

    def _look(self, wanted: Due) -> versions.Looked | None:
        """The version of an action by its whole record; None where that does not permit it, or there is none."""
        found = versions.look_at(
            self.bucket, wanted.key, wanted.action.version_id, marker=wanted.marker,
            asks_lock=wanted.action.kind in _REMOVALS,
        )  # fmt: skip
        confirmed = self.judge.confirmed(wanted, versions.ensure_whole(found.version)) if found else None
        if confirmed is not None and confirmed.blocked_by:
            self.run.blocked += 1
            return None
        return found if confirmed is not None else None

    def _if_at_rest(self, ready: _Ready) -> _Ready | None:
        """An action that meets nothing that is going on just now. A noncurrent version may go while its key changes,
        and changes again: what is current is another one."""
        match ready.action.kind:
            case Kind.REMOVE_VERSION:
                view = ready.view
                return ready if view is None or view.shown != ready.version.id else None
            case Kind.REMOVE_MARKER:
                return None if self._is_in_hand(ready.version.key) else ready
            case Kind.EXPIRE:
                return None if self._is_in_hand(ready.version.key) else self._if_as_recorded(ready)
            case _:
                return ready

    def _is_in_hand(self, key: bytes) -> bool:
        """Whether something of a key waits to be captured or shown: then what is current may change just now."""
        held = self.state.views.stale.get(key)
        if held is not None and not held.conflict:
            return True
        if key in self.state.captures.deferred or key in self.state.captures.copying:
            return True
        return self.region.changes.is_queued(self.bucket.address, key)

    def _if_as_recorded(self, ready: _Ready) -> _Ready | None:
        """An expiration whose key's file is the one on record, and written by no program. Else the file is captured."""
        key, view = ready.version.key, ready.view
        looks, is_written = unrecorded.look_closely(self.bucket, key, view)
        if looks is not unrecorded.Look.RECORDED:
            self.region.look_at(self.bucket.address, [key])
            return None
        if view is None:
            return ready
        if is_written:
            return None
        if not view.racy:
            return ready
        if not null_view.has_its_content(self.journal, self.bucket, key, view):
            self.region.look_at(self.bucket.address, [key])
            return None
        known = self.journal.versions.object(self.bucket.address, key)
        return ready._replace(known=known) if known and known.view and not known.view.racy else None

    # -- markers

    def _expire(self, expired: Sequence[_Ready]) -> None:
        """Put a marker on each, and show that. Markers that lifecycle made have no deliveries."""
        if not expired:
            return
        now_ns = self.engine.site.now()
        markers, was = [], {}
        for each in expired:
            version = each.version
            null_ns = version.created_ns if version.id == NULL else -1
            is_null = self.state.bucket.versioning is Versioning.SUSPENDED
            version_id, created_ns = self.state.bucket.ids.next(now_ns, null_ns, is_null=is_null)
            markers.append(Version(version.key, version_id, created_ns, marker=True, origin=Origin.LIFECYCLE))
            was[version.key] = self._view(each)
        staged: list[versions.Staged] = []
        try:
            for marker in markers:
                staged.append(versions.stage_marker(self.bucket, marker))
            intents = [Intent(marker.key, marker.id, was[marker.key]) for marker in markers]
            intended = intend(
                self.engine.syncer, self.bucket, intents, [(self.bucket.tmp, each.name) for each in staged]
            )
        except OSError as error:
            for each_staged in staged:
                with contextlib.suppress(OSError):  # what stays is swept at the next start
                    versions.discard(self.bucket, each_staged)
            raise NotBegun(reason(error)) from error
        with intended:
            publishing.publish_durable(self.bucket, staged)
            self._tell(events.Name.MARKED, markers)
            self._show(markers, was)
            if not all(self.state.views.stale[m.key].intent for m in markers if m.key in self.state.views.stale):
                intended.keep()
        self._note(
            [(Kind.EXPIRE, each.version, f" marker={marker.id}") for each, marker in zip(expired, markers, strict=True)]
        )
        stale.retry_blocked(self.region, self.state)

    def _view(self, expired: _Ready) -> View | None:
        """How the view of an expiring version is known."""
        if self.state.bucket.versioning is Versioning.SUSPENDED:
            return null_view.before_replacing(self.journal, self.bucket, expired.version.key, expired.known)
        return expired.view

    def _show(self, markers: Sequence[Version], was: Mapping[bytes, View | None]) -> None:
        """Remove the views of keys that have markers now, and record both. What cannot be removed like that, since it
        has just changed or is linked with others, is shown as any other view.

        A crash before the record is written leaves the intent, which says the same.
        """
        address, is_plain = self.bucket.address, not self.bucket.bucket.trees
        views = {m.key: v for m in markers if is_plain and m.key not in self.state.views.stale and (v := was[m.key])}
        gone = show.take_out_all(self.bucket, views)
        with self.journal.transaction():
            left = ((m, None if m.key in gone else _without(was[m.key], m)) for m in markers)
            self.journal.versions.add_shown(address, list(left))
        for marker in markers:
            self.engine.recent.put(address, marker)
            self.state.labels.drop(marker.key)
            if (hidden := gone.get(marker.key)) is None:
                stale.show_current(self.region, self.state, self.bucket, marker.key)
            elif hidden.left:
                shared_record.repair_left(self.engine, self.state, self.bucket, marker.key, hidden.left, hidden.record)

    # -- removal for good

    def _remove(self, gone: Sequence[_Ready]) -> None:
        """Remove noncurrent versions, and markers of which no version is left. No view changes by that."""
        if not gone:
            return
        noncurrent = [each.version for each in gone if each.action.kind is Kind.REMOVE_VERSION]
        markers = [each for each in gone if each.action.kind is Kind.REMOVE_MARKER]
        intents = [Intent(key, "", None, Act.REMOVE) for key in dict.fromkeys(version.key for version in noncurrent)]
        intents += [Intent(each.version.key, "", each.view) for each in markers]
        try:
            intended = intend(self.engine.syncer, self.bucket, intents)
        except OSError as error:
            raise NotBegun(reason(error)) from error
        address, removed = self.bucket.address, [each.version for each in gone]
        with intended:
            self._tell(events.Name.EXPIRED, removed)
            versions.remember_removed(self.bucket, *removed)
            versions.remove_all(self.bucket, removed, [each.version for each in gone if not each.has_sidecar])
            self.bucket.sync()
            with self.journal.transaction():
                self.journal.versions.remove_noncurrent(address, [(v.key, v.id) for v in noncurrent])
                self.journal.versions.remove_last(address, [(e.version.key, e.version.id) for e in markers])
        self.engine.recent.forget_all(address, [(version.key, version.id) for version in removed])
        self._note([(each.action.kind, each.version, "") for each in gone])

    # -- classes

    def _move(self, moved: Sequence[tuple[Action, Version]]) -> None:
        """Write the new storage class on the record of each. lifecycle/tiers.py then moves the content."""
        if not moved:
            return
        address, now_s = self.bucket.address, time.monotonic()
        self._tell(events.Name.MOVED, [_in_class(version, action) for action, version in moved])
        # until the records are written the journal does not know their classes: a crash may leave it behind them
        self.journal.versions.set_traits(address, [(version.key, version.id, None) for _, version in moved])
        after: list[Version] = []
        for action, before in moved:
            version = _in_class(before, action)
            self.engine.recent.forget(address, version.key, version.id)
            try:
                versions.write_record(self.bucket, version)
            except (OSError, StoreDamaged) as error:
                log.warning('not moved bucket=%s key="%s": %s', address, keys.shown(version.key), reason(error))
                self.run.again[version.key] = None
                continue
            after.append(version)
            if action.kind is Kind.TRANSITION:  # where it is the view too, that looks different now
                self.state.labels.add(version, now_s)
        with self.journal.transaction():
            self.journal.versions.set_traits(address, [(v.key, v.id, traits_of(v)) for v in after])
        self.state.ask_to_place(version.key for version in after)
        kinds = {(version.key, version.id): action.kind for action, version in moved}
        self._note([(kinds[version.key, version.id], version, f" class={version.storage_class}") for version in after])

    # -- telling

    def _tell(self, name: events.Name, of: Sequence[Version]) -> None:
        now_ns = self.engine.site.now()
        records = [events.of_lifecycle(name, self.bucket.address, version, now_ns) for version in of]
        self.engine.reporter.announce_lifecycle(records)

    def _note(self, done: Sequence[tuple[Kind, Version, str]]) -> None:
        """Count what was done, and log it: a line a batch, and at DEBUG each version. The events tell of each."""
        for kind in dict.fromkeys(kind for kind, _, _ in done):
            of_kind = [version for each, version, _ in done if each is kind]
            self.run.done[str(kind)] = self.run.done.get(str(kind), 0) + len(of_kind)
            log.info(
                "%s bucket=%s versions=%d size_bytes=%d by=%s",
                _OUTCOMES[kind], self.bucket.address, len(of_kind), sum(version.size for version in of_kind), kind,
            )  # fmt: skip
        if log.isEnabledFor(logging.DEBUG):
            for kind, version, more in done:
                log.debug(
                    '%s bucket=%s key="%s" version=%s size_bytes=%d by=%s%s',
                    _OUTCOMES[kind], self.bucket.address, keys.shown(version.key), version.id, version.size, kind, more,
                )  # fmt: skip


def _without(view: View | None, marker: Version) -> View | None:
    """A view that could not be removed yet; it shows no version any more where its null version was replaced."""
    is_replaced = view is not None and marker.id == view.shown == NULL
    return replace(view, shown="") if view is not None and is_replaced else view


def _in_class(version: Version, action: Action) -> Version:
    return replace(version, storage_class=action.storage_class)


def tell_again(region: Region, bucket: OpenBucket) -> None:
    """A bucket comes up: what a crash kept from being told of markers that are in the store. Before intents are
    carried out, since these say which markers were being made. Twice it is no second event.
    """
    records = []
    for _, group in read_intents(bucket):
        for intent in group:
            with contextlib.suppress(StoreDamaged):
                version = versions.read(bucket, intent.key, intent.version, marker=True) if intent.version else None
                if version is not None and version.origin is Origin.LIFECYCLE:
                    now_ns = region.engine.site.now()
                    records.append(events.of_lifecycle(events.Name.MARKED, bucket.address, version, now_ns))
    if records:
        region.engine.reporter.announce_lifecycle(records)


def give_up_staged(bucket: OpenBucket, lifecycle: Lifecycle, now_ns: int) -> int:
    """Remove what lies in staging, in tiers too, for so long that rules give it up, such as unfinished copies of large
    content; how much there was. By ctime: the other times may be those of the object.
    """
    if not any(rule.abort_days for rule in lifecycle.rules):
        return 0
    folders = [bucket.tmp]
    for tier in bucket.bucket.root.settings.classes:
        with contextlib.suppress(OSError, FsreplError):  # one that is away is looked into by a later run
            folders.append(bucket.tier(tier).tmp)
    number = 0
    for at in folders:
        for name, kind in list(bucket.fs.entries(at)):
            with contextlib.suppress(OSError):  # it is gone by now, or goes with the next run
                began_ns = bucket.fs.stat(at, name).st_ctime_ns
                if kind is FileType.REGULAR and due.is_abandoned(lifecycle, began_ns, now_ns):
                    bucket.fs.unlink(at, name)
                    number += 1
    if number:
        log.info("given up bucket=%s staged=%d by=AbortIncompleteMultipartUpload", bucket.address, number)
    return number


# -- a bucket that was never versioned


def put_back_files(bucket: OpenBucket) -> None:
    """Put files back that a crash left displaced during their removal. They are judged again."""
    for aside in bucket.fs.names(bucket.displaced):
        key, _ = keys.displaced_key(aside)
        if key is not None:
            directory, name = keys.split(key)
            with contextlib.suppress(OSError):  # something is in its place, or its directory is gone
                bucket.fs.rename_new(bucket.displaced, aside, bucket.views.get(directory), name)


def remove_files(bucket: OpenBucket, run: LifecycleRun, found: Sequence[Due]) -> None:
    """Remove files for good, as S3 does where there are no versions. Raises NotBegun: those that are left are judged
    anew, and so is one that is half removed."""
    try:
        for each in found:
            _remove_file(bucket, run, each)
        bucket.sync()
    except OSError as error:
        raise NotBegun(reason(error)) from error


def _remove_file(bucket: OpenBucket, run: LifecycleRun, found: Due) -> None:
    """Remove a file for good, as S3 does where there are no versions; not one that changed since it was judged."""
    directory, name = keys.split(found.key)
    try:
        at = bucket.views.get(directory)
        status = bucket.fs.stat(at, name)
        if not bucket.fs.is_regular(status) or show.is_written(bucket, at, name):
            return
        aside = keys.displaced_name(staging.token(), found.key)
        bucket.fs.rename_new(at, name, bucket.displaced, aside)
    except PermissionError as error:  # an immutable file keeps no other
        log.warning('not removed bucket=%s key="%s": %s', bucket.address, keys.shown(found.key), reason(error))
        return
    except OSError as error:
        if error.errno in NO_FILE:
            return
        raise
    out = bucket.fs.stat(bucket.displaced, aside)
    same = (out.st_ino, out.st_size, out.st_mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)
    if not same or show.is_written(bucket, bucket.displaced, aside):
        with contextlib.suppress(FileExistsError):
            bucket.fs.rename_new(bucket.displaced, aside, at, name)
        return
    bucket.fs.unlink(bucket.displaced, aside)
    run.done[str(Kind.EXPIRE)] = run.done.get(str(Kind.EXPIRE), 0) + 1
    log.info('removed bucket=%s key="%s" by=%s', bucket.address, keys.shown(found.key), found.action.kind)
