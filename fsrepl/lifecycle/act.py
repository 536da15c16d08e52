"""Carries out lifecycle actions that are due, a batch at a time: makes markers, removes versions for good, and writes
storage classes.

A crash after any call leaves a complete state. A view is removed as by a replica's marker: an intent is written, then
the marker is stored, then the view is taken out, compared, and put back where it differs from its record. A key whose
file differs from its record expires only after that file has become a version. A permanent removal is announced, then
noted in removed.jsonl, then done; a marker is stored before it is announced.

Only a version's own record permits an action on it. Source: s3-semantics, 5.2, 5.4 and 5.5.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged, Unavailable, reason
from fsrepl.lifecycle.judge import Due, Judge
from fsrepl.model import keys
from fsrepl.model.lifecycle import Lifecycle
from fsrepl.model.version import NULL, Origin, Version, Versioning
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState, Damaged, LifecycleRun
from fsrepl.region.region import Region
from fsrepl.s3 import due, events
from fsrepl.s3.due import Action, Kind
from fsrepl.storage import publishing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE, FileType
from fsrepl.storage.intents import Intent, intend, read_intents
from fsrepl.storage.journal.rows import traits_of
from fsrepl.views import null_view, show, stale, unrecorded

log = logging.getLogger("fsrepl")


class NotBegun(Unavailable):
    """An action cannot begin now, has changed nothing, and is tried again later."""


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
        ready = [(each, version) for each in found if (version := self._ready(each)) is not None]
        self._expire([version for each, version in ready if each.action.kind is Kind.EXPIRE])
        removals = (Kind.REMOVE_VERSION, Kind.REMOVE_MARKER)
        self._remove([(each.action.kind, version) for each, version in ready if each.action.kind in removals])
        self._move([(each.action, version) for each, version in ready if each.action.storage_class])

    # -- may it be done

    def _ready(self, wanted: Due) -> Version | None:
        """The record of the version, where it may be acted on now."""
        key, kind = wanted.key, wanted.action.kind
        if wanted.action.blocked_by:
            self.run.blocked += 1
            return None
        try:
            version = versions.read(self.bucket, key, wanted.action.version_id)
            version = versions.ensure_whole(version) if version else None
        except StoreDamaged:
            self.state.damaged.append(Damaged(self.bucket.address, key, wanted.action.version_id))
            return None
        confirmed = self.judge.confirmed(wanted, version) if version else None
        if version is None or confirmed is None:
            return None
        if confirmed.blocked_by:
            self.run.blocked += 1
            return None
        if not self._may_go(key, kind, version):
            self.run.again[key] = None
            return None
        return version

    def _may_go(self, key: bytes, kind: Kind, version: Version) -> bool:
        """Whether an action meets nothing that is going on just now. A noncurrent version may go while its key changes,
        and changes again: what is current is another one."""
        if kind is Kind.REMOVE_VERSION:
            known = self.journal.versions.object(self.bucket.address, key)
            return known is None or known.view is None or known.view.shown != version.id
        if kind in (Kind.EXPIRE, Kind.REMOVE_MARKER):
            return not self._is_in_hand(key) and (kind is Kind.REMOVE_MARKER or self._is_as_recorded(key))
        return True

    def _is_in_hand(self, key: bytes) -> bool:
        """Whether something of a key waits to be captured or shown: then what is current may change just now."""
        held = self.state.stale.get(key)
        if held is not None and not held.conflict:
            return True
        if key in self.state.deferred or key in self.state.copying:
            return True
        return self.region.changes.is_queued(self.bucket.address, key)

    def _is_as_recorded(self, key: bytes) -> bool:
        """Whether the file that people see is the one on record, and no program writes into it. Else it is captured."""
        known = self.journal.versions.object(self.bucket.address, key)
        view = known.view if known else None
        if unrecorded.look(self.bucket, key, view) is not unrecorded.Look.RECORDED:
            self.region.look_at(self.bucket.address, [key])
            return False
        if view is None:
            return True
        directory, name = keys.split(key)
        if show.is_written(self.bucket, self.bucket.views.get(directory), name):
            return False
        if not view.racy:
            return True
        if not null_view.has_its_content(self.journal, self.bucket, key, view):
            self.region.look_at(self.bucket.address, [key])
            return False
        known = self.journal.versions.object(self.bucket.address, key)
        return known is not None and known.view is not None and not known.view.racy

    # -- markers

    def _expire(self, expired: Sequence[Version]) -> None:
        """Put a marker on each, and show that. Markers that lifecycle made have no deliveries."""
        if not expired:
            return
        address, now_ns = self.bucket.address, self.engine.site.now()
        markers, was = [], {}
        for version in expired:
            null_ns = version.created_ns if version.id == NULL else -1
            version_id, created_ns = self.state.bucket.ids.next(now_ns, null_ns)
            if self.state.bucket.versioning is Versioning.SUSPENDED:
                version_id = NULL
            markers.append(Version(version.key, version_id, created_ns, marker=True, origin=Origin.LIFECYCLE))
            was[version.key] = self._view(version.key)
        staged: list[versions.Staged] = []
        try:
            for marker in markers:
                staged.append(versions.stage_marker(self.bucket, marker))
            intents = [Intent(marker.key, marker.id, was[marker.key]) for marker in markers]
            intended = intend(
                self.engine.syncer, self.bucket, intents, [(self.bucket.tmp, each.name) for each in staged]
            )
        except OSError as error:
            for each in staged:
                with contextlib.suppress(OSError):  # what stays is swept at the next start
                    versions.discard(self.bucket, each)
            raise NotBegun(reason(error)) from error
        with intended:
            publishing.publish_durable(self.bucket, staged)
            self._tell(events.Name.MARKED, markers)
            with self.journal.transaction():
                for marker in markers:
                    self.journal.versions.add(address, marker)
            for marker in markers:
                self.engine.recent.put(address, marker)
                self.state.labels.drop(marker.key)
                stale.show_current(self.region, self.state, self.bucket, marker.key)
            if not all(self.state.stale[m.key].intent for m in markers if m.key in self.state.stale):
                intended.keep()
        for version, marker in zip(expired, markers, strict=True):
            self._note(Kind.EXPIRE, version, f"marker={marker.id}")
        stale.retry_blocked(self.region, self.state)

    def _view(self, key: bytes) -> View | None:
        """How the view of an expiring version is known."""
        known = self.journal.versions.object(self.bucket.address, key)
        if self.state.bucket.versioning is Versioning.SUSPENDED:
            return null_view.before_replacing(self.journal, self.bucket, key, known)
        return known.view if known else None

    # -- removal for good

    def _remove(self, gone: Sequence[tuple[Kind, Version]]) -> None:
        """Remove noncurrent versions, and markers of which no version is left. No view changes by that."""
        if not gone:
            return
        address = self.bucket.address
        by_key: dict[bytes, set[str]] = {}
        for _, version in gone:
            by_key.setdefault(version.key, set()).add(version.id)
        intents = []
        for key, ids in by_key.items():
            known = self.journal.versions.object(address, key)
            left = [i for i, _, _ in self.journal.versions.versions_of(address, key) if i not in ids]
            intents.append(Intent(key, left[0] if left else "", known.view if known else None))
        try:
            intended = intend(self.engine.syncer, self.bucket, intents)
        except OSError as error:
            raise NotBegun(reason(error)) from error
        with intended:
            self._tell(events.Name.EXPIRED, [version for _, version in gone])
            versions.remember_removed(self.bucket, *(version for _, version in gone))
            for _, version in gone:
                versions.remove(self.bucket, version)
            self.bucket.sync()
            with self.journal.transaction():
                for kind, version in gone:
                    if kind is Kind.REMOVE_MARKER:
                        self.journal.versions.remove(address, version.key, version.id, None)
                    else:
                        self.journal.versions.remove_noncurrent(address, version.key, version.id)
        for kind, version in gone:
            self.engine.recent.forget(address, version.key, version.id)
            self._note(kind, version)

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
                continue
            after.append(version)
            if action.kind is Kind.TRANSITION:  # where it is the view too, that looks different now
                self.state.labels.add(version, now_s)
            self._note(action.kind, version, f"class={version.storage_class}")
        with self.journal.transaction():
            self.journal.versions.set_traits(address, [(v.key, v.id, traits_of(v)) for v in after])
        self.state.ask_to_place(version.key for version in after)

    # -- telling

    def _tell(self, name: events.Name, of: Sequence[Version]) -> None:
        now_ns = self.engine.site.now()
        records = [events.of_lifecycle(name, self.bucket.address, version, now_ns) for version in of]
        self.engine.reporter.announce_lifecycle(records)

    def _note(self, kind: Kind, version: Version, more: str = "") -> None:
        self.run.done[str(kind)] = self.run.done.get(str(kind), 0) + 1
        outcome = {Kind.EXPIRE: "expired", Kind.TRANSITION: "moved", Kind.TRANSITION_NONCURRENT: "moved"}.get(
            kind, "removed"
        )
        log.info(
            '%s bucket=%s key="%s" version=%s size_bytes=%d by=%s%s',
            outcome, self.bucket.address, keys.shown(version.key), version.id, version.size, kind,
            f" {more}" if more else "",
        )  # fmt: skip


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
    """Remove what lies in staging for so long that rules give it up, as a fault that kept it from being removed leaves
    it; how much there was. By ctime: the other times may be those of the object.
    """
    number = 0
    for name, kind in list(bucket.fs.entries(bucket.tmp)):
        with contextlib.suppress(OSError):  # it is gone by now, or goes with the next run
            began_ns = bucket.fs.stat(bucket.tmp, name).st_ctime_ns
            if kind is FileType.REGULAR and due.is_abandoned(lifecycle, began_ns, now_ns):
                bucket.fs.unlink(bucket.tmp, name)
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
