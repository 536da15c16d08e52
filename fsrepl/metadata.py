"""Edits of metadata: recorded on a version where they were made, applied where it is a replica.

Tags, ACLs, mode, owner, times and attributes are edited in place; that makes no version. What is to
become of an edit is decided in edits.py; here it is done. The record is written before the view, and
an intent before both wherever it is us who change the view: after a crash a view that is merely behind
is no edit of its user's.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fsrepl import attrs, commit, edits, keys, owing, records, store, transfer
from fsrepl.errors import FsreplError
from fsrepl.fs import LASTING, reason
from fsrepl.journal import Journal
from fsrepl.model import Origin, Version
from fsrepl.rows import Owed, View
from fsrepl.site import OpenBucket

if TYPE_CHECKING:
    from fsrepl.place import Place
    from fsrepl.region import Region

_FEW = 4
"""Edits that are made durable one by one, where the disk is busy with other things."""

# -- where an edit is made


def record_edit(region: Region, place: Place, bucket: OpenBucket, was: Version, edited: Version) -> Version:
    """Write new metadata of a version into the store, stamped, and owe it to whoever has the version."""
    engine = region.engine
    _, now_ns = place.bucket.ids.next(engine.site.now())
    edited = edits.stamped(edited, edits.changed(was, edited), now_ns, bucket.address)
    there = engine.replication_of(was.source) if was.origin is Origin.REPLICA else None
    deliveries = edits.owed(was, edited, place.bucket.replication, home=bucket.address, original=there)
    edited = replace(edited, deliveries=deliveries)
    _note_deliveries(region, bucket, [edited])
    try:
        store.write_record(bucket, edited)
    except (OSError, FsreplError):
        # How far that came, the record says; what is owed by it goes out. The rest is found again by the next look.
        engine.recent.forget(bucket.address, edited.key, edited.id)
        owing.owe(region, bucket.address, [edited])
        raise
    _owe(region, bucket, edited)
    return edited


def _note_deliveries(region: Region, bucket: OpenBucket, versions: Sequence[Version]) -> None:
    """The journal first: killed before the record is whole, this process's successor sends it again all the same."""
    with region.engine.journal.transaction():
        region.engine.journal.put_all_deliveries(bucket.address, versions)


def _owe(region: Region, bucket: OpenBucket, edited: Version) -> None:
    region.engine.recent.put(bucket.address, edited)
    owing.owe(region, bucket.address, [edited])
    region.engine.notify()


def edit(region: Region, place: Place, bucket: OpenBucket, was: Version, edited: Version) -> None:
    """An edit that was made by command: on the record, and on the view."""
    put(region, bucket, was, lambda: record_edit(region, place, bucket, was, edited))


def put(region: Region, bucket: OpenBucket, was: Version, record: Callable[[], Version]) -> None:
    """Write a version's record, and give its view what it says then, so that a crash in between is no user's edit."""
    engine = region.engine
    view = shown_view(engine.journal, bucket, was)
    intents = b""
    if view is not None:
        intents = commit.intend(engine.syncer, bucket, [commit.Intent(was.key, was.id, view, commit.Act.EDIT)])
    edited = record()
    if view is not None:
        looks = show(bucket, view, edited)
        bucket.fs.sync_all(bucket.fd)
        if looks is not None:
            with engine.journal.transaction():
                engine.journal.see(bucket.address, was.key, looks)
        _drop(bucket, intents)


# -- where it is applied


@dataclass(frozen=True, slots=True)
class Change:
    """A version that a destination has, as it is and as it will be. sent: what its source has of it."""

    owed: Owed
    sent: Version
    there: Version
    now: Version


def change(region: Region, bucket: OpenBucket, owed: Owed, sent: Version, replica: Version, there: Version,
           groups: frozenset[str]) -> Change:  # fmt: skip
    """What becomes of a version here by metadata that was sent: the later edit holds.

    An original whose replica was edited owes that to its other replicas; nothing else is handed on.
    """
    delivered = there.deliveries.get(owed.source)
    if delivered is not None and delivered.owner and replica.posix and there.posix:
        # its replica has another owner and no ACL, by owner override: neither comes back
        groups -= {edits.ACL}
        replica = replace(replica, posix=replace(replica.posix, uid=there.posix.uid, gid=there.posix.gid))
    now = edits.merged(there, replica, groups)
    if there.origin is not Origin.REPLICA:
        deliveries = edits.owed(there, now, bucket.bucket.replication, home=bucket.address, but=owed.source)
        now = replace(now, deliveries=deliveries)
    return Change(owed, sent, there, now)


def is_unseen(region: Region, place: Place, bucket: OpenBucket, version: Version) -> bool:
    """Whether the view of a version has been edited or replaced, and that is not recorded yet.

    It must be first: of two edits the later holds, and one that is not recorded would be lost. A file that
    somebody writes into is none of this version's any more, and one that cannot be read is not waited for.
    """
    view = shown_view(region.engine.journal, bucket, version)
    waits = place.later.get(version.key)
    if view is None or (waits is not None and waits.opened) or version.key in place.unreadable:
        return False
    directory, name = keys.split(version.key)
    try:
        found = bucket.fs.stat(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno in LASTING:
            return False
        raise
    if view.is_like(found) and view.mode == found.st_mode & 0o7777:
        return False
    return not (found.st_nlink > 1 and view.has_content_of(found) and view.mode == found.st_mode & 0o7777)


def carry_out(region: Region, bucket: OpenBucket, changes: Sequence[Change]) -> list[Change]:
    """Make changes of metadata, in the store and on the views, durably; those that could be made.

    The others are tried again later; their intent stays, so that a crash before that changes nothing.
    """
    engine, journal = region.engine, region.engine.journal
    views = {id(each): view for each in changes if (view := shown_view(journal, bucket, each.now))}
    intent_name = b""
    try:
        if views:
            intents = [
                commit.Intent(each.now.key, each.now.id, view, commit.Act.EDIT)
                for each in changes
                if (view := views.get(id(each)))
            ]
            intent_name = commit.intend(engine.syncer, bucket, intents)
    except OSError as error:
        region.try_later([each.owed for each in changes], reason(error))
        return []
    forwarded = [each.now for each in changes if each.now.deliveries != each.there.deliveries]
    if forwarded:
        _note_deliveries(region, bucket, forwarded)
    done: list[Change] = []
    seen: list[tuple[bytes, View | None]] = []
    for each in changes:
        try:
            if each.now != each.there:
                engine.recent.forget(bucket.address, each.now.key, each.now.id)
                store.write_record(bucket, each.now, applied=True)
            view = views.get(id(each))
            if view is not None and (looks := show(bucket, view, each.now)) is not None:
                seen.append((each.now.key, looks))
            done.append(each)
        except (OSError, FsreplError) as error:
            region.try_later([each.owed], reason(error) if isinstance(error, OSError) else str(error))
    try:
        _make_durable(region, bucket, done, {each.now.key for each in done if id(each) in views})
    except OSError as error:
        region.try_later([each.owed for each in done], reason(error))
        return []
    with journal.transaction():
        journal.see_all(bucket.address, seen)
    for each in done:
        if each.now.deliveries != each.there.deliveries:
            _owe(region, bucket, each.now)
    if intent_name and len(done) == len(changes):
        _drop(bucket, intent_name)
    return done


def _drop(bucket: OpenBucket, intents: bytes) -> None:
    """What was intended is done. Where its file cannot be removed now, the next start finds nothing to do in it."""
    with contextlib.suppress(OSError):
        commit.drop_intents(bucket, intents)


def _make_durable(region: Region, bucket: OpenBucket, done: Sequence[Change], shown: Collection[bytes]) -> None:
    """Make records and views that were changed survive a power cut."""
    if len(done) > _FEW:
        bucket.fs.sync_all(bucket.fd)
    else:
        try:
            names = []
            for each in done:
                directory, name = keys.split(each.now.key)
                at = bucket.store.get(keys.stored_directory(directory))
                names.append((at, keys.stored_name(name, each.now.id)))
                if each.now.key in shown:
                    names.append((bucket.views.get(directory), name))
            region.engine.syncer.staged(bucket, names)
        except (PermissionError, FileNotFoundError):  # one that may not be opened, or was removed by its user
            bucket.fs.sync_all(bucket.fd)
    bucket.sync()


# -- views


def shown_view(journal: Journal, bucket: OpenBucket, version: Version) -> View | None:
    """The view, where it shows this version."""
    known = journal.object(bucket.address, version.key)
    return known.view if known and known.view and known.view.shown == version.id else None


def show(bucket: OpenBucket, view: View, version: Version) -> View | None:
    """Give a view the metadata of its version; how it looks then. None where it is no longer that view.

    What it cannot be given is recorded as its shortfall.
    RACE: an edit by its user within these few system calls is taken for ours: it stays on the view, and nobody
    is told before the next one.
    """
    directory, name = keys.split(version.key)
    try:
        at = bucket.views.get(directory)
        fd = _open(bucket, at, name)
    except OSError as error:
        if error.errno in LASTING:
            return None  # removed or replaced in this moment: its event tells
        raise
    try:
        found = bucket.fs.stat_fd(fd)
        if not view.has_content_of(found):
            return None
        if found.st_nlink > 1 and _is_others_too(bucket, version, found):
            return _show_anew(bucket, view, version)
        _remove_others(bucket, fd, attrs.of_object(version))
        refused = transfer.mark(bucket, fd, version)
        posix = transfer.apply_posix(bucket, fd, version.posix)
        if refused:  # by the mode that it had, or for want of room
            records.make_room(bucket, version)
            refused = transfer.mark(bucket, fd, version)
        shortfall = edits.shortfall(version, posix, refused)
        if shortfall != version.shortfall:
            records.amend(bucket, replace(version, shortfall=shortfall))
        elif not refused:
            records.tidy(bucket, version)
        return bucket.view(bucket.fs.stat_fd(fd), version.id, racy=view.racy)
    finally:
        bucket.fs.close(fd)


def _is_others_too(bucket: OpenBucket, version: Version, found: os.stat_result) -> bool:
    """Whether a view is the file of something else as well, which this version's metadata is none of.

    Where users write, what they linked is theirs to share.
    """
    if commit.receives_writes(bucket.bucket):
        return False
    return found.st_nlink > 1 + store.is_file_of(bucket, version, found)


def _show_anew(bucket: OpenBucket, view: View, version: Version) -> View | None:
    outcome = commit.show(bucket, version, view, commit.stage_current(bucket, version))
    return outcome.view if isinstance(outcome, commit.Shown) else None


def _remove_others(bucket: OpenBucket, fd: int, wanted: Collection[str]) -> None:
    """Take the attributes and tags off a view that its version does not have."""
    try:
        for attribute in bucket.fs.attributes(fd):
            if not attrs.is_ours(attribute) and attribute not in wanted:
                bucket.fs.remove_attribute(fd, attribute)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EBADF):  # its mode shuts its owner out
            raise


def _open(bucket: OpenBucket, at: int, name: bytes) -> int:
    try:
        return bucket.fs.open_read(at, name)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        return bucket.fs.open_inode(at, name)  # its owner may not read it either; he may change its mode
