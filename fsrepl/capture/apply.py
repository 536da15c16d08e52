"""Carries out the decision on a key: a version or marker is staged, an edit recorded, a view marked as stale.

capture/judge.py decides. capture/ingest.py publishes the staged versions, a batch at a
time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.capture import copy, judge, look, names
from fsrepl.capture.judge import (
    AddMarker,
    AddVersion,
    CopyInBackground,
    Defer,
    Detach,
    Edit,
    LeaveToContents,
    Left,
    MakeLeftPrivate,
    Nothing,
    ShowCurrent,
)
from fsrepl.errors import StoreDamaged, Unavailable
from fsrepl.model import attributes, keys, metadata
from fsrepl.model.version import TAKEN_CHANGING, TAKEN_OPEN, Kind, Origin, Version, Versioning
from fsrepl.model.view import View, view_of
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.change_queue import ARRIVED, CHANGED, CLOSED, FOUND, MOVED, WRITING, Change
from fsrepl.region.region import Region
from fsrepl.s3 import rules
from fsrepl.storage import placed, records, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.sharing import can_reflink
from fsrepl.views import directories, edits, hardlinks, obstacles, one_file, resting, shared_record, stale

log = logging.getLogger("fsrepl")


class NewVersion(Struct):
    """A version of this batch. taken is None for a marker. staged has no name yet where the stager has the content, and
    that of a marker until its batch is published."""

    change: Change
    known: Object | None
    version: Version
    taken: copy.Taken | None
    staged: versions.Staged


def no_room(region: Region, bucket: OpenBucket, size_bytes: int = 0) -> str:
    """Why there is no space for a copy of size_bytes; empty where there is."""
    free, total = bucket.fs.space(bucket.fd)
    needed = region.engine.settings.capture.keep_free.needed(total)
    if free - size_bytes >= needed:
        return ""
    copy = f", its copy takes {size_bytes >> 20} MiB" if size_bytes else ""
    return f"capture waits: {free >> 20} MiB are free{copy}, and keep_free leaves {needed >> 20} MiB to the user"


class _Evidence(Struct):
    """Answers to judge.Evidence, from the disk, for one inspection of a key.

    read: the version of a directory that was read for an answer.
    """

    region: Region
    bucket: OpenBucket
    key: bytes
    known: Object | None
    taken: copy.Taken | None
    is_stale: bool
    read: Version | None = None

    def shown(self) -> str:
        """An older version that the view still shows, or the current one."""
        known, taken = self.known, self.taken
        assert known is not None
        assert taken is not None
        shown = self._with_its_content()
        if not shown or not self.bucket.bucket.trees:
            return shown
        if names.is_linked_anew(self.region, self.bucket, self.key, known, taken):
            return ""
        # a file whose content is the target of the symlink that it replaced is another object
        version = versions.read(self.bucket, self.key, shown, marker=False)
        return shown if version is not None and version.kind is taken.kind else ""

    def _with_its_content(self) -> str:
        known, taken = self.known, self.taken
        assert known is not None
        assert taken is not None
        view = known.view
        if view and view.shown not in ("", known.id) and view.ino == taken.found.st_ino:
            behind = versions.read(self.bucket, self.key, view.shown, marker=False)
            if behind is not None and behind.digest == taken.digest:
                return view.shown
        if not known.marker and taken.digest == known.digest:
            return known.id
        return self._older_with_its_content() if view is None and self.is_stale else ""

    def _older_with_its_content(self) -> str:
        """An older version with the content of a view that is known to be behind, and of which nothing else is known.

        So it is where the journal was lost, and a newer replica arrives before the scan has come to the key.
        """
        assert self.taken is not None
        for version_id, _, marker in self.region.engine.journal.versions.versions_of(self.bucket.address, self.key):
            version = None if marker else versions.read(self.bucket, self.key, version_id, marker=False)
            if version is not None and version.digest == self.taken.digest:
                return version_id
        return ""

    def is_made(self) -> bool:
        return _may_be_made(self.taken) and directories.is_made(self.bucket, self.key[:-1])

    def is_made_and_edited(self) -> bool:
        return directories.is_edited(self.bucket, self.key[:-1])

    def is_made_since(self) -> bool:
        assert self.known is not None
        assert self.known.view is not None
        return _may_be_made(self.taken) and directories.is_made_since(self.bucket, self.key[:-1], self.known.view)

    def same_directory(self) -> str:
        known, taken = self.known, self.taken
        assert known is not None
        assert taken is not None
        shown = known.view.shown or known.id if known.view else known.id
        version = self.region.engine.recent.version(self.bucket.address, self.key, shown)
        self.read = version = version or versions.read(self.bucket, self.key, shown, marker=False)
        return "" if version is None or metadata.changed(version, _seen_directory(version, taken)) else shown

    def overwritten(self) -> Version | None:
        return hardlinks.overwritten_version(self.region, self.bucket, self.key, self.known, self.taken)

    def no_room(self, size_bytes: int) -> str:
        return no_room(self.region, self.bucket, 0 if _is_shared(self.bucket) else size_bytes)


def apply(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None, seen: look.Seen
) -> NewVersion | CopyInBackground | None:
    """Carry out the decision on one inspection; the version that it makes, staged, if it makes one."""
    key, taken = change.key, seen if isinstance(seen, copy.Taken) else None
    _note(region, state, change, known, seen)
    if taken is not None and taken.kind is not Kind.DIRECTORY:
        names.look_at_others(region, bucket, change, taken)
    is_stale = key in state.views.stale
    evidence = _Evidence(region, bucket, key, known, taken, is_stale)
    judged = partial(
        judge.judge, seen, known, evidence, is_stale=is_stale,
        is_removed=bool(known and known.view and (key, known.view.shown) in state.bucket.documents.removed),
        copy_again_in_s=_copy_again_in_s(state, key) if isinstance(seen, look.Large) else 0.0,
    )  # fmt: skip
    if taken is not None:
        has_left_none = known is None and taken.found.st_nlink == 1  # a new file, which is no other key's either
    else:
        is_removal = known is not None and not known.marker and not is_stale and isinstance(seen, look.Missing)
        has_left_none = is_removal and hardlinks.is_apart(bucket, key, known)
    decision = judged(left=Left() if has_left_none else None)
    if isinstance(decision, MakeLeftPrivate):
        decision = judged(left=Left(hardlinks.make_left_private(region, bucket, key, known, taken)))
    is_object = isinstance(decision, AddVersion | Edit)
    if is_object and taken is not None and taken.kind is Kind.DIRECTORY and _may_be_made(taken):
        directories.disown(bucket, key[:-1])
    if isinstance(decision, AddVersion):
        assert taken is not None
        if taken.destroyed is not None:
            try:
                hardlinks.destroyed_in_tier(region, state, bucket, taken.destroyed)
            except OSError:
                staging.unstage(bucket, taken.staged)
                raise
        return new_version(region, state, bucket, change, known, taken)
    if taken is not None and taken.staged:
        staging.unstage(bucket, taken.staged)
    match decision:
        case ShowCurrent():
            if key not in state.views.stale:
                stale.mark_stale(region, state, key, "the view is behind its version", durable=False)
            else:
                stale.try_soon(state, key)
        case Defer(after_s, why, opened, is_warned):
            if is_warned:
                attempts = state.captures.faults[key] = state.captures.faults.get(key, 0) + 1
                level = logging.WARNING if attempts == 1 else logging.DEBUG
                log.log(level, 'not captured bucket=%s key="%s": %s', change.address, keys.shown(key), why)
            region.defer(state, change, after_s, why, opened=opened)
        case CopyInBackground():
            return decision
        case Edit(shown):
            assert known is not None
            _record_edit(region, state, bucket, change, known, shown, seen, evidence.read)
        case Detach(version, why):
            hardlinks.set_free(region, state, bucket, version)
            region.defer(state, change, 0.0, why)
        case AddMarker(detach):
            if detach is not None:
                hardlinks.set_free(region, state, bucket, detach)
            if taken is not None:  # a directory that replication made: nothing may be in it any more
                obstacles.remove_made_directories(bucket, key[:-1])
            assert known is not None
            return _marker(region, state, bucket, change, known)
        case LeaveToContents():
            assert known is not None
            obstacles.remove_made_directories(bucket, key[:-1])
            if known.view is not None:
                with region.engine.journal.transaction():
                    region.engine.journal.views.see(bucket.address, key, None)
            stale.mark_fresh(region, state, bucket, key)
        case Nothing() | MakeLeftPrivate():
            pass
    return None


def _may_be_made(taken: copy.Taken | None) -> bool:
    """Whether a directory may be one that replication made for the files below it: an attribute of it says so."""
    return taken is None or taken.is_closed or attributes.MADE in taken.labels


def _copy_again_in_s(state: BucketState, key: bytes) -> float:
    """How long a large file that was copied lately is left alone; not positive where it need not be."""
    return state.captures.copy_again_at_s.get(key, 0.0) - time.monotonic()


def _note(region: Region, state: BucketState, change: Change, known: Object | None, seen: look.Seen) -> None:
    """Update the bucket's lists of skipped and unreadable keys after an inspection."""
    key = change.key
    if isinstance(seen, copy.Taken):
        state.note_skipped(key, there=False)
        state.captures.unreadable.pop(key, None)
        return
    state.note_skipped(key, there=isinstance(seen, look.Missing) and bool(seen.why))
    match seen:
        case look.Missing(why) if not why:
            stale.retry_blocked(region, state)
        case look.Skipped(why) if state.captures.unreadable.get(key) != why:  # once, and not at every look
            log.warning('not captured bucket=%s key="%s": %s', change.address, keys.shown(key), why)
    match seen:
        case look.Skipped(why):
            state.captures.unreadable[key] = why
        # The file may have other content by now; an inspection that knows less must not report it as captured.
        case look.Closed(why=why) if known and known.view and _may_be_written(change, known.view):
            state.captures.unreadable[key] = why
        case _:
            state.captures.unreadable.pop(key, None)


def _may_be_written(change: Change, view: View) -> bool:
    """Whether an unreadable file may have content that is not recorded."""
    return view.racy or bool(change.flags & (CLOSED | WRITING))


def _is_shared(bucket: OpenBucket) -> bool:
    """Whether a stored version takes no space beside its view."""
    sharing = bucket.bucket.sharing
    return sharing == "link" or (sharing == "auto" and can_reflink(bucket))


def new_version(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object | None, taken: copy.Taken
) -> NewVersion:
    """The version of a copied file, staged, unless the stager is to do that."""
    version_id, created_ns = state.bucket.ids.next(
        region.engine.site.now(),
        known.null_ns if known else -1,
        is_null=state.bucket.versioning is Versioning.SUSPENDED,
    )
    version = Version(
        change.key, version_id, created_ns, False, taken.size, taken.digest, Origin.USER,
        posix=taken.posix, attrs=taken.attrs, tags=taken.tags,
        taken=TAKEN_CHANGING if taken.moving else TAKEN_OPEN if taken.held_open else "",
    )  # fmt: skip
    if taken.kind is Kind.DIRECTORY and known is not None and (known.view is not None or not known.marker):
        version = _changed_directory(bucket, version, known, taken)
    if bucket.bucket.trees and taken.kind is not Kind.DIRECTORY and taken.found.st_nlink > 1:
        version = replace(version, link=names.linked_to(region, bucket, change.key, taken))
        state.captures.new_names.setdefault(taken.found.st_ino, []).append(version)
    in_effect = rules_in_effect(region, state, change, lambda: taken.found.st_ctime_ns)
    if chosen := rules.choose(state.bucket.replication, version, in_effect=in_effect):
        version = replace(version, deliveries=chosen)
    staged = versions.Staged(version, b"", False) if taken.is_held else copy.stage(bucket, taken, version)
    return NewVersion(change, known, version, taken, staged)


def _changed_directory(bucket: OpenBucket, version: Version, known: Object, taken: copy.Taken) -> Version:
    """A new version of a directory: metadata that it could not take from the version that it showed is not its user's
    change."""
    shown = known.view.shown or known.id if known.view else known.id
    before = versions.read(bucket, version.key, shown, marker=False)
    if before is None:
        return version
    after = _seen_directory(before, taken)
    return replace(version, posix=after.posix, attrs=after.attrs, tags=after.tags, shortfall=after.shortfall)


def _seen_directory(version: Version, taken: copy.Taken) -> Version:
    """A version with the metadata of its directory."""
    return metadata.seen(version, taken.posix, None if taken.is_closed else taken.attrs, taken.tags)


def _record_edit(
    region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object, shown: str, seen: look.Seen,
    read: Version | None,
) -> None:  # fmt: skip
    """Record an edit: the content is that of the version shown, and at most its metadata changed.

    read: the version shown, where it was just read.
    """
    key = change.key
    if isinstance(seen, look.Closed):
        posix, racy = seen.posix, known.view is not None and _may_be_written(change, known.view)
        _edit(region, state, bucket, key, shown, seen.found, lambda v: metadata.seen(v, posix), racy=racy)
        return
    assert isinstance(seen, copy.Taken)
    taken = seen
    if taken.kind is Kind.DIRECTORY:
        own = None if taken.is_closed else taken.attrs
        if change.flags & CHANGED:  # its time may have been changed
            resting.note(state, key[:-1])
    else:
        own = None if taken.kind is Kind.LINK or _has_lost_attributes(state, key, known, taken) else taken.attrs
    labelled = attributes.VERSION_ID in taken.labels or taken.kind is Kind.DIRECTORY
    found, racy = _found_after(bucket, key, taken)
    _edit(
        region, state, bucket, key, shown, found,
        lambda v: metadata.seen(v, taken.posix, own, taken.tags, labelled=labelled),
        labels=taken.labels if taken.kind is Kind.FILE else None, racy=racy, read=read,
    )  # fmt: skip
    if shown == known.id:
        stale.mark_fresh(region, state, bucket, key)
        if taken.is_placed and not _leads_to(bucket, key, shown):
            stale.show_anew(region, state, bucket, key)
        elif taken.is_placed:
            _set_time_again(bucket, key, shown)
    elif key not in state.views.stale:
        stale.mark_stale(region, state, key, "the view is behind its version", durable=False)
    else:
        stale.try_soon(state, key)


def _leads_to(bucket: OpenBucket, key: bytes, version_id: str) -> bool:
    """Whether the symlink in the place of a key leads to a version's content, and not to equal content elsewhere."""
    version = versions.read(bucket, key, version_id, marker=False)
    return version is not None and version.place is not None and placed.is_shown(bucket, key, version.place)


def _set_time_again(bucket: OpenBucket, key: bytes, version_id: str) -> None:
    """A content in a tier that was touched, and not written into, gets its time back: by that it is known."""
    version = versions.read(bucket, key, version_id, marker=False)
    content = placed.shown_content(bucket, version) if version is not None else None
    if version is not None and content is not None and not placed.looks_like(content, version):
        with contextlib.suppress(Unavailable, OSError):
            placed.open_to_readers(bucket, version)


def _found_after(bucket: OpenBucket, key: bytes, taken: copy.Taken) -> tuple[os.stat_result, bool]:
    """The view's status after the copy, and whether its times are not to be trusted yet.

    A link that was made and removed has changed its ctime twice. With the status in between on record, the view would
    never show a newer version: it would seem to have been changed, be inspected, and so on.
    """
    if taken.linked:
        directory, name = keys.split(key)
        with contextlib.suppress(OSError):  # gone by now: its event follows
            found = bucket.fs.stat(bucket.views.get(directory), name)
            if view_of(taken.found, "").has_content_of(found):
                return found, True
    return taken.found, taken.racy


def rules_in_effect(
    region: Region, state: BucketState, change: Change, ctime_ns: Callable[[], int]
) -> Collection[str] | None:  # fmt: skip
    """The rules in effect when a file found by a scan was written; None where that was just now.

    A file that appeared since the last complete scan appeared after every rule that was in effect then,
    whatever its own times say: files in a directory that is moved in keep their times.
    """
    if not change.flags & FOUND or change.flags & (CLOSED | MOVED | ARRIVED):
        return None
    if state.scan_times.recorded_ns is None:
        state.scan_times.recorded_ns = region.engine.journal.scanned_ns(change.address)
    written_ns = max(ctime_ns(), state.scan_times.recorded_ns)
    return {name for name, since in state.bucket.documents.since.items() if since.ctime_ns <= written_ns}


def _marker(region: Region, state: BucketState, bucket: OpenBucket, change: Change, known: Object) -> NewVersion:
    in_effect = rules_in_effect(region, state, change, lambda: _changed_ns(bucket, keys.split(change.key)[0]))
    version = new_marker(region, bucket, change.key, known, in_effect=in_effect)
    return NewVersion(change, known, version, None, versions.Staged(version, b"", False))


def _changed_ns(bucket: OpenBucket, directory: bytes) -> int:
    """The ctime of a directory, or of its nearest existing parent: no entry was removed from it later."""
    while True:
        try:
            return bucket.fs.stat_fd(bucket.views.get(directory)).st_ctime_ns
        except OSError as error:
            if not directory or error.errno not in NO_FILE:
                raise
            directory = keys.split(directory)[0]


def new_marker(
    region: Region, bucket: OpenBucket, key: bytes, known: Object | None, *, in_effect: Collection[str] | None = None
) -> Version:
    """A user's delete marker for a key, with its deliveries; not staged yet.

    known: the key's current version. in_effect: see rules.choose.
    """
    version_id, created_ns = bucket.bucket.ids.next(
        region.engine.site.now(),
        known.null_ns if known else -1,
        is_null=bucket.bucket.versioning is Versioning.SUSPENDED,
    )
    version = Version(key, version_id, created_ns, True, origin=Origin.USER)
    return replace(version, deliveries=rules.choose(bucket.bucket.replication, version, in_effect=in_effect))


def _has_lost_attributes(state: BucketState, key: bytes, known: Object | None, taken: copy.Taken) -> bool:
    """Whether a labelled view has lost every attribute, which no user causes, but a copy of a tree does."""
    if taken.attrs or taken.tags or taken.labels or key in state.labels:
        return False
    view = known.view if known else None
    return view is None or view.ino == taken.found.st_ino


def _stamps(region: Region, bucket: OpenBucket, was: Version, now: Version, found: os.stat_result) -> Mapping[str, str]:
    """The stamps of what was edited, where another name of the file has that on record: see views/one_file.py."""
    if found.st_nlink == 1:
        return {}
    names = one_file.other_names(region.engine.journal.views, bucket, was, found.st_ino)
    return metadata.stamps_of_one_file(was, now, [name.version for name in names], bucket.address)


def _edit(
    region: Region, state: BucketState, bucket: OpenBucket, key: bytes, shown: str, found: os.stat_result,
    edited: Callable[[Version], Version], *, labels: Mapping[str, bytes] | None = None, racy: bool = False,
    read: Version | None = None,
) -> None:  # fmt: skip
    """Record an edit: the content is that of the version shown, and at most its metadata changed.

    labels: the labels on the view, which must not stay wrong for long. read: that version, where it was just read.
    """
    version = read or versions.read(bucket, key, shown, marker=False)
    if version is None:
        raise StoreDamaged(f"version {shown} is in the journal and not in the store")
    after, looks = version, view_of(found, shown, racy=racy)
    if versions.has_lost_record(version):  # a lost record shows no edits
        state.damaged.append(Damaged(bucket.address, key, shown))
    else:
        if found.st_nlink > 1 and version.kind is Kind.FILE:  # a user of its view can write its record
            version = shared_record.repaired(region.engine.journal, region.engine.recent, bucket, version)
        after = edited(version)
        if metadata.changed(version, after):
            stamps = _stamps(region, bucket, version, after, found)
            after = edits.record_edit(region, state, bucket, version, after, stamps)
        elif after != version:  # the view's shortfall is smaller than before
            records.amend(bucket, after)
        if labels is not None and labels != attributes.label(after):
            state.labels.add(after, time.monotonic())
    with region.engine.journal.transaction():
        region.engine.journal.views.see(bucket.address, key, looks)
