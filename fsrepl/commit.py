"""Hidden copy -> durable -> visible, and what must hold when the power goes in between.

The order of a batch, each step durable before the next begins:

    staged     files in .fsrepl/tmp, and an intent that names every view about to change
    published  renamed into the store: the versions exist, nobody sees them
    shown      linked, renamed or exchanged over the views; then the intent goes

After a crash the intent says which views are merely behind the store, so that none of them is
taken for a user's act. A view is exchanged, never overwritten: what came out is compared with
what was recorded, and content that is not recorded yet goes back and becomes a version first.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from fsrepl import attrs, crossing, directories, edits, keys, obstacles, records, store, transfer
from fsrepl.errors import FsreplError, StoreDamaged, Unavailable
from fsrepl.fs import ACL, LASTING, UNSUPPORTED, reason
from fsrepl.model import Posix, Version
from fsrepl.rows import View
from fsrepl.site import BARRIER, Bucket, OpenBucket

_NO_DIRECTORY = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG})
_SLOW_S = 0.02
_FEW = 8


# -- making things durable


class Syncer:
    """One syncfs for a batch; fsyncs side by side for a small one while syncfs has lately been slow.

    syncfs waits for everybody's data: 8 to 450 ms beside a busy writer, where an fsync took 1. The fsyncs have
    threads of their own: a lane may take minutes, or itself wait for the region that waits here. Each filesystem has
    its own, since one that hangs keeps them.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._slow_until: dict[int, float] = {}

    def close(self) -> None:
        for threads in self._threads.values():
            threads.shutdown()

    def _threads_of(self, device: int) -> ThreadPoolExecutor:
        with self._guard:
            if device not in self._threads:
                self._threads[device] = ThreadPoolExecutor(_FEW, thread_name_prefix="sync")
            return self._threads[device]

    def staged(self, bucket: OpenBucket, names: Sequence[tuple[int, bytes]]) -> None:
        """Make staged files survive a power cut: (directory, name) each. Raises OSError: write them again then."""
        if len(names) <= _FEW and time.monotonic() < self._slow_until.get(bucket.device, 0.0):
            with bucket.fs.aside():
                list(self._threads_of(bucket.device).map(lambda at: _sync_name(bucket, *at), names))
            for fd in {at for at, _ in names}:
                bucket.fs.sync_file(fd)
            return
        began = time.monotonic()
        bucket.fs.sync_all(bucket.fd)
        if time.monotonic() - began > _SLOW_S:
            self._slow_until[bucket.device] = time.monotonic() + 5


def _sync_name(bucket: OpenBucket, at: int, name: bytes) -> None:
    fd = bucket.fs.open_read(at, name)
    try:
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)


# -- intents


CURRENT = "current"


class Act(enum.StrEnum):
    """What an intent says is under way."""

    SHOW = "show"
    """A view is about to show a version, and nothing where none will be left."""
    EDIT = "edit"
    """A view shows that version already, and will have metadata of it that was edited."""
    FETCH = "fetch"
    """A stored version was destroyed, and its content is fetched again."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is about to become of a view, and how it looked before; was is None where there was none.

    version: its id; CURRENT for whichever is the newest then; empty where none will be left.
    """

    key: bytes
    version: str
    was: View | None
    act: Act = Act.SHOW


def write_intents(bucket: OpenBucket, intents: Sequence[Intent]) -> bytes:
    """Write down which views are about to change; not durable until synced. The name of the file.

    Raises OSError, and then leaves no file.
    """
    name = b"%d-%s" % (time.time_ns(), store.token())
    fd = bucket.fs.create(bucket.intents, name)
    try:
        bucket.fs.write(fd, json.dumps([_intent_document(i) for i in intents]).encode())
    except OSError:
        abandon_intents(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)
    return name


def intend(
    syncer: Syncer, bucket: OpenBucket, intents: Sequence[Intent], staged: Sequence[tuple[int, bytes]] = ()
) -> bytes:
    """Write down durably which views are about to change, and make what is staged for that durable too.

    The name of the file. Raises OSError, and then leaves no file: nothing of it has begun.
    """
    name = write_intents(bucket, intents)
    try:
        syncer.staged(bucket, [*staged, (bucket.intents, name)])
    except OSError:
        abandon_intents(bucket, name)
        raise
    return name


def abandon_intents(bucket: OpenBucket, name: bytes) -> None:
    """Nothing has come of it. Where its file cannot be removed either, the next start finds nothing to do in it."""
    with contextlib.suppress(OSError):
        drop_intents(bucket, name)


def drop_intents(bucket: OpenBucket, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        bucket.fs.unlink(bucket.intents, name)


def read_intents(bucket: OpenBucket) -> Iterator[tuple[bytes, list[Intent]]]:
    """Every intent file. One that a power cut left unfinished names nothing that has begun."""
    for entry in sorted(bucket.fs.entries(bucket.intents), key=lambda e: e.name):
        name = os.fsencode(entry.name)
        fd = bucket.fs.open_read(bucket.intents, name)
        try:
            data = bucket.fs.read_all(fd)
        finally:
            bucket.fs.close(fd)
        try:
            yield name, [_read_intent(d) for d in json.loads(data)]
        except (ValueError, KeyError, TypeError):
            yield name, []


def _intent_document(intent: Intent) -> dict[str, object]:
    was = intent.was
    return {
        "key": base64.b64encode(intent.key).decode(),
        "version": intent.version,
        "was": [was.ino, was.size, was.mtime_ns, was.ctime_ns, was.mode, was.shown, was.racy] if was else None,
        "act": intent.act,
    }


def _read_intent(document: dict[str, Any]) -> Intent:
    was = document["was"]
    racy = bool(was) and was[6:] == [True]  # earlier builds did not say
    view = View(was[0], was[1], was[2], was[3], was[4], racy, was[5]) if was else None
    return Intent(base64.b64decode(document["key"]), document["version"], view, Act(document["act"]))


# -- views


@dataclass(frozen=True, slots=True)
class Shown:
    """The view shows the version now; view is None where nothing is to be seen (a marker)."""

    view: View | None


@dataclass(frozen=True, slots=True)
class Held:
    """The view cannot change now. conflict: something stands in the way that is not this key's file."""

    why: str
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class Theirs:
    """The view holds something that is not recorded: it becomes a version first."""


Outcome = Shown | Held | Theirs
_UNREACHED = Held("rename does not reach it, as in another subvolume, and nobody can tell whether it is being written")


def nothing(key: bytes) -> Version:
    """What a view shows of a key of which no version is left."""
    return Version(key, "", 0, marker=True)


def show(bucket: OpenBucket, version: Version, expected: View | None, staged: bytes = b"") -> Outcome:
    """Make a key's view show a version of the store, or nothing where that is a marker.

    expected: how the view looked when it was recorded. staged: a file in .fsrepl/tmp that becomes the
    view; without one it becomes a hard link to the stored version. A reader sees the old version or
    the new one, whole.
    """
    outcome = None
    try:
        outcome = _show(bucket, version, expected, staged)
        return outcome
    finally:
        if staged and not isinstance(outcome, Shown):
            with contextlib.suppress(OSError):  # what stays is swept at the next start
                store.unstage(bucket, staged)


def _show(bucket: OpenBucket, version: Version, expected: View | None, staged: bytes) -> Outcome:
    directory, name = keys.split(version.key)
    is_there = version.marker or expected is not None
    try:
        at = bucket.views.get(directory) if is_there else directories.get_or_make(bucket, directory)
        shown = None if is_there else _show_new(bucket, at, name, version, staged)
        if shown is not None:
            return shown
    except OSError as error:
        if version.marker and error.errno in _NO_DIRECTORY and (expected is None or error.errno != errno.EXDEV):
            return Shown(None)  # under another mount a view that was there is there still
        if expected is not None and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return Theirs()  # its user removed or replaced the directory
        if error.errno in _NO_DIRECTORY and error.errno != errno.ENOENT:
            return _conflict(bucket, version.key)
        raise
    try:
        found = bucket.fs.stat(at, name)
    except FileNotFoundError:
        return Shown(None) if version.marker else Theirs()  # its user removed it
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return Shown(None) if version.marker else _conflict(bucket, version.key)
        raise
    if not bucket.fs.is_regular(found):
        if version.marker:
            return Shown(None)
        if expected is not None:
            return Theirs()  # its user replaced it
        if not obstacles.clear(bucket, version.key):
            return _conflict(bucket, version.key)
        at = directories.get_or_make(bucket, directory)
        return _show_new(bucket, at, name, version, staged) or Theirs()
    if expected is None or not expected.is_like(found):
        return Theirs()
    if _is_written(bucket, at, name):
        return Held("somebody has the file open for writing")
    if version.marker:
        return _hide(bucket, at, directory, name, expected)
    return _exchange(bucket, at, directory, name, version, expected, staged)


def _conflict(bucket: OpenBucket, key: bytes) -> Held:
    return Held(obstacles.describe(bucket, key) or "something was in the way", conflict=True)


def _is_written(bucket: OpenBucket, at: int, name: bytes) -> bool | None:
    """Whether somebody has a file open for writing; None where that cannot be known."""
    try:
        fd = bucket.fs.open_read(at, name)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno in LASTING:
            return None
        raise
    try:
        return bucket.fs.is_written(fd)
    finally:
        bucket.fs.close(fd)


def _show_new(bucket: OpenBucket, at: int, name: bytes, version: Version, staged: bytes) -> Shown | None:
    """Make a view where there is none; None where there is something."""
    try:
        if staged:
            bucket.fs.rename_new(bucket.tmp, staged, at, name)
        else:
            bucket.fs.link(*_stored(bucket, version), at, name)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if not _rename_beside(bucket, at, name, version):
            return None
        _drop_staged(bucket, staged)
    bucket.views.changed.add(keys.split(version.key)[0])
    return Shown(bucket.view(bucket.fs.stat(at, name), version.id))


def _rename_beside(bucket: OpenBucket, at: int, name: bytes, version: Version) -> bool:
    """The same where the view cannot be brought from .fsrepl; whether it was made."""
    brought = crossing.bring(bucket, at, version)
    try:
        bucket.fs.rename_new(at, brought, at, name)
    except OSError as error:
        bucket.fs.unlink(at, brought)
        if isinstance(error, FileExistsError):
            return False
        raise
    return True


def _drop_staged(bucket: OpenBucket, staged: bytes) -> None:
    """What was staged for a view is not needed: the view was made in another place."""
    if staged:
        with contextlib.suppress(OSError):  # what stays is swept at the next start
            store.unstage(bucket, staged)


def _stored(bucket: OpenBucket, version: Version) -> tuple[int, bytes]:
    directory, last = keys.split(version.key)
    return bucket.store.get(keys.stored_directory(directory)), keys.stored_name(last, version.id)


def _hide(bucket: OpenBucket, at: int, directory: bytes, name: bytes, expected: View) -> Outcome:
    key = keys.join(directory, name)
    where, aside = bucket.displaced, keys.displaced_name(store.token(), key)
    try:
        bucket.fs.rename_new(at, name, where, aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if _is_written(bucket, at, name) is not False:
            return _UNREACHED
        where, aside = at, crossing.beside(key)
        bucket.fs.rename_new(at, name, where, aside)
    bucket.views.changed.add(directory)
    if not _let_go(bucket, key, where, aside, expected):
        with contextlib.suppress(FileExistsError):  # a new file is there already; what is aside becomes a version too
            bucket.fs.rename_new(where, aside, at, name)
        return Theirs()
    remove_made_directories(bucket, directory)
    return Shown(None)


def _exchange(
    bucket: OpenBucket, at: int, directory: bytes, name: bytes, version: Version, expected: View, staged: bytes
) -> Outcome:
    where, aside = bucket.displaced, keys.displaced_name(store.token(), version.key)
    if staged:
        bucket.fs.rename_new(bucket.tmp, staged, where, aside)
    else:
        bucket.fs.link(*_stored(bucket, version), where, aside)
    try:
        ours = _swap(bucket, where, aside, at, name)
    except OSError as error:
        if error.errno == errno.ENOENT:  # removed by its user in this moment
            return Theirs()
        if error.errno != errno.EXDEV:
            raise
        if _is_written(bucket, at, name) is not False:
            return _UNREACHED
        where, aside = at, crossing.bring(bucket, at, version)
        ours = _swap(bucket, where, aside, at, name)
    bucket.views.changed.add(directory)
    if not _let_go(bucket, version.key, where, aside, expected):
        bucket.fs.exchange(where, aside, at, name)
        if bucket.fs.stat(where, aside).st_ino == ours:  # else somebody put a file there in between
            bucket.fs.unlink(where, aside)
        return Theirs()
    return Shown(bucket.view(bucket.fs.stat(at, name), version.id))


def _swap(bucket: OpenBucket, where: int, aside: bytes, at: int, name: bytes) -> int:
    """Exchange a file of ours for a view; the inode number of ours. It is gone where that fails. Raises OSError."""
    try:
        ours = bucket.fs.stat(where, aside).st_ino
        bucket.fs.exchange(where, aside, at, name)
    except OSError:
        bucket.fs.unlink(where, aside)
        raise
    return ours


def _let_go(bucket: OpenBucket, key: bytes, where: int, aside: bytes, expected: View) -> bool:
    """Remove what came out of a view, if it is what was recorded and nobody is writing into it; else False.

    Where that cannot be known it stays in .fsrepl/displaced for a while: displaced.py looks whether anything came of
    it. In a directory of the user's it goes: there it was known a moment before.
    """
    written = _is_written(bucket, where, aside)
    if written or not expected.has_content_of(bucket.fs.stat(where, aside)):
        return False
    if expected.racy and not _has_content_of(bucket, where, aside, key, expected.shown):
        return False
    if written is False or where != bucket.displaced:
        bucket.fs.unlink(where, aside)
    return True


def _has_content_of(bucket: OpenBucket, where: int, aside: bytes, key: bytes, version_id: str) -> bool:
    """Whether a file that came out of a view has a version's content, by its hash: its times do not tell."""
    try:
        version = store.read(bucket, key, version_id, marker=False)
    except StoreDamaged:
        return False
    if version is None:
        return False
    fd = records.open_file(bucket, where, aside)
    try:
        return store.digest(bucket, fd) == version.digest
    finally:
        bucket.fs.close(fd)


def remove_made_directories(bucket: OpenBucket, directory: bytes) -> None:
    """Remove the directories that replication made, from here upwards, as far as they are empty."""
    while directory and obstacles.remove_made(bucket, directory):
        directory = keys.split(directory)[0]


def mark_view(bucket: OpenBucket, version: Version, view: View, *, status_only: bool = False) -> View | None:
    """Show on a view what its version is; how it looks afterwards, or None where it is no longer as it was.

    Raises OSError where that cannot be done now.
    """
    directory, name = keys.split(version.key)
    try:
        fd = bucket.fs.open_read(bucket.views.get(directory), name)
    except OSError as error:
        if error.errno in LASTING:
            return None
        raise
    try:
        before = bucket.fs.stat_fd(fd)
        # Where it is the stored file as well, our own record there has changed its ctime.
        if not view.is_like(before) and not (before.st_nlink > 1 and view.has_content_of(before)):
            return None
        if before.st_nlink > 1 + store.is_file_of(bucket, version, before):
            return None  # it is another view's file as well, and cannot say two things
        if status_only:
            for attribute, value in attrs.encode_deliveries(version).items():
                with contextlib.suppress(OSError):  # a courtesy
                    bucket.fs.set_attribute(fd, attribute, value)
        else:
            transfer.mark(bucket, fd, version, own=False)
        for attribute in attrs.DELIVERY_NAMES - attrs.encode_deliveries(version).keys():
            with contextlib.suppress(OSError):  # it was pending, and is owed no more
                bucket.fs.remove_attribute(fd, attribute)
        found = bucket.fs.stat_fd(fd)
        # What was edited in between must not be taken for ours: it is left to be looked at.
        if not view.has_content_of(found) or not _is_unedited(bucket, fd, version, before, found):
            return None
        return bucket.view(found, view.shown, racy=view.racy)
    finally:
        bucket.fs.close(fd)


def _is_unedited(bucket: OpenBucket, fd: int, version: Version, before: os.stat_result, found: os.stat_result) -> bool:
    """Whether nobody has edited a view's metadata while we marked it."""
    if (before.st_mode, before.st_uid, before.st_gid) != (found.st_mode, found.st_uid, found.st_gid):
        return False
    shown = version.shortfall.posix or version.posix
    if not version.attrs and not version.tags and not (shown and shown.acl):
        names = bucket.fs.attribute_names(fd)
        if not any(name == ACL or (name.startswith("user.") and not attrs.is_ours(name)) for name in names):
            return True
    raw, acl = records.view_metadata(bucket, fd)
    posix = Posix(found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns, acl)
    return not edits.changed(version, edits.seen(version, posix, attrs.own(raw), attrs.tags(raw)))


# -- how view and store share


def can_reflink(bucket: OpenBucket) -> bool:
    """Whether this bucket's filesystem shares blocks between files; asked once, by trying."""
    known = bucket.bucket.reflinks
    if known is None:
        fs, a, b = bucket.fs, store.token(), store.token()
        from_fd = fs.create(bucket.tmp, a)
        to_fd = fs.create(bucket.tmp, b)
        try:
            fs.write(from_fd, bytes(4096))
            fs.clone(to_fd, from_fd)
            known = True
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            known = False
        finally:
            for fd, name in ((from_fd, a), (to_fd, b)):
                fs.close(fd)
                fs.unlink(bucket.tmp, name)
        bucket.bucket.reflinks = known
    return known


def can_link(bucket: OpenBucket) -> bool:
    """Whether a file can have two names here, as on some FUSE filesystems none can; asked once, by trying."""
    known = bucket.bucket.links
    if known is None:
        fs, names = bucket.fs, (store.token(), store.token())
        fs.close(fs.create(bucket.tmp, names[0]))
        try:
            fs.link(bucket.tmp, names[0], bucket.tmp, names[1])
            known = True
        except OSError as error:
            if error.errno not in UNSUPPORTED | {errno.EPERM}:
                raise
            known = False
        finally:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    fs.unlink(bucket.tmp, name)
        bucket.bucket.links = known
    return known


def is_linked(bucket: OpenBucket, posix: Posix | None) -> bool:
    """Whether the view of a replica here is a hard link to its stored version. Source: design.md, section 7."""
    sharing = bucket.bucket.sharing
    if sharing != "link" and (sharing == "private" or receives_writes(bucket.bucket) or can_reflink(bucket)):
        return False
    if not can_link(bucket):
        return False
    # without privilege, a file that its owner may not read and write cannot be kept with its record
    return os.geteuid() == 0 or posix is None or posix.mode & 0o600 == 0o600


def receives_writes(bucket: Bucket) -> bool:
    """A bucket that users write into, as far as that can be known: one that is replicated from."""
    return bucket.replication is not None


# -- after a crash


def sweep(bucket: OpenBucket) -> int:
    """Remove what an earlier process left in .fsrepl/tmp; how much there was."""
    swept = 0
    for entry in list(bucket.fs.entries(bucket.tmp)):
        name = os.fsencode(entry.name)
        if name != BARRIER:
            with contextlib.suppress(OSError):
                remove = bucket.fs.remove_dir if entry.is_dir(follow_symlinks=False) else bucket.fs.unlink
                remove(bucket.tmp, name)
                swept += 1
    return swept


def stage_current(bucket: OpenBucket, version: Version) -> bytes:
    """Stage a view of a version that is in the store; empty where it will be a hard link."""
    if version.marker:
        return b""
    fd = store.open_version(bucket, version.key, version.id)
    try:
        if store.digest(bucket, fd) != version.digest:
            raise StoreDamaged(f"the stored version {version.id} no longer matches its BLAKE3; it is not shown")
        found = bucket.fs.stat_fd(fd)
        if is_linked(bucket, version.posix) and records.inode_posix(bucket, fd, found) == version.posix:
            records.share(bucket, version)
            return b""
        staged, shortfall = transfer.stage_view(bucket, version, fd)
    finally:
        bucket.fs.close(fd)
    if shortfall != version.shortfall:
        records.amend(bucket, replace(version, shortfall=shortfall))
    return staged


def from_os_error(error: OSError, where: str) -> FsreplError:
    """What an error in a destination means: a passing fault that is tried again, or one for a person."""
    return Unavailable(f"{where}: {reason(error)}")
