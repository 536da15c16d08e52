"""Crash recovery: steps that an intent names are finished before the first scan."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable

from msgspec import Struct

from fsrepl.errors import UNEXPECTED, FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.model import keys
from fsrepl.model.version import Kind, Version
from fsrepl.model.view import View, view_of
from fsrepl.repair import reconcile
from fsrepl.storage import intents, record_homes, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.storage.intents import Act, drop_intents, read_intents
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.questions import CurrentVersions
from fsrepl.storage.sync import Syncer
from fsrepl.storage.view_file import open_view_if_there
from fsrepl.views import (
    directories,
    displaced,
    folders,
    link_groups,
    overwritten,
    show,
    stage,
    view_metadata,
    writable,
)
from fsrepl.views.decide import Answer, Found, Occupant, decide_view

log = logging.getLogger("fsrepl")


class Left(Struct, frozen=True):
    """The work that recovery leaves to the daemon.

    fetched: the versions that are to be looked at, and fetched again where they are not whole, each with the name of
    the intent that records it. overtaken: see views/displaced.py.
    """

    fetched: dict[tuple[bytes, str], bytes]
    overtaken: list[displaced.Overtaken]


def finish(
    bucket: OpenBucket, journal: Journal, quiet_s: float, mark_stale: Callable[[intents.Intent, show.NotShown], bool]
) -> Left:
    """Carry out the intents that a crash left, examine displaced files, sweep staging.

    Afterwards every view shows its key's current version, or is stale. The journal's row of any other view is older
    than the tree, and is forgotten: the view is then compared with the versions, as without a journal.
    quiet_s: see displaced.clear.
    mark_stale: receives a view that cannot change yet; whether that is recorded durably, so that its intent may be
    removed.
    """
    files = list(read_intents(bucket))
    intents = [intent for _, group in files for intent in group]
    kept: set[bytes] = set()
    still_stale: set[bytes] = set()
    fetched = {(i.key, i.version): name for name, group in files for i in group if i.act is Act.FETCH}
    for intent in intents:
        _finish_removal(bucket, journal, intent.key)

    def note_written(key: bytes, version_id: str) -> None:
        if (at := (key, version_id)) not in fetched:
            fetched[at] = overwritten.write(bucket, at)

    overtaken = displaced.clear(bucket, journal, quiet_s, note_written, intents)
    displaced.clear_beside(bucket, journal, intents)
    staging.sweep(bucket)
    writable.close_again(bucket, journal.versions, [intent.key for intent in intents])
    for intent in _in_order(journal.versions, bucket, intents):
        if intent.act in (Act.FETCH, Act.REMOVE):
            continue
        outcome = _finish_one(bucket, journal, intent)
        fetched |= {at: overwritten.write(bucket, at) for at in _overwritten(bucket, intent) if at not in fetched}
        if isinstance(outcome, show.NotShown):
            still_stale.add(intent.key)
            if not mark_stale(intent, outcome):
                kept.add(intent.key)
    behind = [key for key in journal.views.behind(bucket.address) if key not in still_stale]
    fetched |= {at: overwritten.write(bucket, at) for at in _left(bucket, journal, behind) if at not in fetched}
    journal.views.see_all(bucket.address, [(key, None) for key in behind])
    bucket.sync()
    if files or fetched:
        bucket.fs.sync_all(bucket.fd)
        for name, group in files:
            if name not in fetched.values() and not any(intent.key in kept for intent in group):
                drop_intents(bucket, name)
    return Left(fetched, overtaken)


def _overwritten(bucket: OpenBucket, intent: intents.Intent) -> list[tuple[bytes, str]]:
    """The version that a view showed, if its file may have been written into and is no view any more."""
    with contextlib.suppress(OSError):  # it cannot be read now, and `verify` finds it
        found = _look(bucket, intent.key)
        if intent.was is not None and (found.status is None or found.status.st_ino != intent.was.ino):
            gone = show.removed(bucket, intent.key, intent.was)
            return [(intent.key, gone.left)] if gone.is_overwritten else []
    return []


def _left(bucket: OpenBucket, journal: Journal, behind: list[bytes]) -> list[tuple[bytes, str]]:
    """The versions whose stored files were these views, where that is forgotten now."""
    found = []
    for key, known in journal.versions.look_up(bucket.address, behind).items():
        if known.view is not None and known.view.shown and not keys.is_directory(key):
            with contextlib.suppress(FileNotFoundError):
                stored = bucket.fs.stat(*bucket.stored_file(key, known.view.shown))
                is_as_left = stored.st_nlink == 1 and known.view.has_content_of(stored)
                if stored.st_ino == known.view.ino and not (is_as_left and record_homes.is_private(bucket, stored)):
                    found.append((key, known.view.shown))
    return found


def _in_order(current: CurrentVersions, bucket: OpenBucket, found: list[intents.Intent]) -> list[intents.Intent]:
    """The intents; in a tree bucket other names of a file after that file, and last removed directories, of these one
    after those in it."""
    if not bucket.bucket.trees:
        return found
    rows = current.look_up(bucket.address, [intent.key for intent in found])
    removed = {key for key, known in rows.items() if known.marker and keys.is_directory(key)}
    linked = {key for key, known in rows.items() if not known.marker and _is_linked(bucket, key, known.id)}
    last = sorted((i for i in found if i.key in removed), key=lambda intent: intent.key, reverse=True)
    return sorted((i for i in found if i.key not in removed), key=lambda intent: intent.key in linked) + last


def _is_linked(bucket: OpenBucket, key: bytes, version_id: str) -> bool:
    with contextlib.suppress(StoreDamaged, OSError):
        version = versions.read(bucket, key, version_id, marker=False)
        return version is not None and version.link is not None
    return False


def _finish_removal(bucket: OpenBucket, journal: Journal, key: bytes) -> None:
    """Remove the versions of a key whose permanent removal was recorded before a crash."""
    for version_id, _, marker in journal.versions.versions_of(bucket.address, key):
        if (key, version_id) in bucket.bucket.documents.removed:
            try:
                versions.remove(bucket, Version(key, version_id, 0, marker=marker))
            except PermissionError as error:  # an immutable file keeps nothing else from going on
                log.warning(
                    'not removed bucket=%s key="%s" version=%s: %s',
                    bucket.address, keys.shown(key), version_id, reason(error),
                )  # fmt: skip
                continue
            reconcile.forget_version(bucket, journal, key, version_id)


def _finish_one(bucket: OpenBucket, journal: Journal, intent: intents.Intent) -> show.ShowResult:
    """Carry out one intent. A view that cannot be read now waits, and delays no other."""
    try:
        return _finish_view(bucket, journal, intent)
    except OSError as error:
        if intent.act is intents.Act.EDIT:
            raise
        journal.views.see(bucket.address, intent.key, intent.was)  # as far as is known the view is stale
        return show.NotShown(reason(error))
    except (FsreplError, sqlite3.Error):
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": an unexpected error', bucket.address, keys.shown(intent.key))
        return show.NotShown(UNEXPECTED)


def _finish_view(bucket: OpenBucket, journal: Journal, intent: intents.Intent) -> show.ShowResult:
    """Make a view show its key's current version, if it is merely stale."""
    known = journal.versions.object(bucket.address, intent.key)
    if known is None:
        if intent.version == "" and intent.was is not None:  # its last version was removed for good
            return _show(bucket, show.nothing(intent.key), intent.was)
        return show.Shown(None)  # never published: staging was swept, nothing changed
    current = versions.read(bucket, intent.key, known.id, marker=known.marker)
    if current is None:
        return show.Shown(None)
    if current.kind is Kind.DIRECTORY:
        return _finish_directory(bucket, journal, intent, current)
    found = _look(bucket, intent.key)
    if intent.act is intents.Act.EDIT:
        if intent.was is not None and current.id == intent.version:
            view_metadata.finish_edit(bucket, journal, current, intent.was)
        return show.Shown(None)
    expected, is_shown = _expected(bucket, intent, current, found)
    answer = decide_view(found, expected, current, is_shown=is_shown)
    if answer is Answer.USER_CHANGED:
        return show.UserChanged()
    if is_shown and found.status is not None:
        view = view_of(found.status, current.id, racy=True)  # an edit since then must still be noticed
        journal.views.see(bucket.address, intent.key, view)
        return show.Shown(view)
    links = link_groups.LinkGroups(journal, bucket, Syncer(), None)
    try:
        staged = links.stage(current) or stage.stage_current(bucket, current)
    except (StoreDamaged, FileNotFoundError) as error:
        return show.NotShown(str(error))
    outcome = _show(bucket, current, expected, staged)
    if isinstance(outcome, show.Shown):
        journal.views.see(bucket.address, intent.key, outcome.view)
        links.showed(current, expected, outcome.view)
        links.refresh()
    elif isinstance(outcome, show.NotShown) and expected is not None:
        journal.views.see(
            bucket.address, intent.key, expected
        )  # a new journal does not know that the view is merely stale
    return outcome


def _finish_directory(
    bucket: OpenBucket, journal: Journal, intent: intents.Intent, current: Version
) -> show.ShowResult:
    """Make a directory show its key's current version. Half a change of its rights cannot be told from its user's."""
    found, was = _look(bucket, intent.key), intent.was
    if found.status is not None and found.occupant is Occupant.FILE:
        if current.marker and (was is None or not was.has_content_of(found.status)):
            return show.UserChanged()  # made since
        path = intent.key[:-1]
        is_daemons = directories.is_made(bucket, path) or directories.is_changing(bucket, path)
        if was is None and not is_daemons and not _shows(bucket, current):
            return show.UserChanged()
    outcome = show.show_directory(bucket, current, was, surely=True)
    if isinstance(outcome, show.Shown):
        journal.views.see(bucket.address, intent.key, outcome.view)
    elif isinstance(outcome, show.NotShown) and was is not None:
        journal.views.see(bucket.address, intent.key, was)  # a new journal does not know what is to be removed
    return outcome


def _shows(bucket: OpenBucket, version: Version) -> bool:
    """Whether a directory, which was renamed into place with its metadata, shows a version."""
    with open_view_if_there(bucket, version.key, LASTING) as view:
        return view is not None and not folders.is_edited(bucket, view.fd, version)


def _look(bucket: OpenBucket, key: bytes) -> Found:
    """The entry at a view's path, as by show.look. A view that may not be read counts as absent."""
    try:
        return show.look(bucket, key)
    except OSError as error:
        if error.errno not in LASTING:
            raise
        return Found(Occupant.NOTHING)


def _expected(bucket: OpenBucket, intent: intents.Intent, current: Version, found: Found) -> tuple[View | None, bool]:
    """The view that may be changed, None where none may; and whether it shows the current version already.

    An intent may or may not have been carried out, so a file is recognised by its content where its times do not
    suffice.
    """
    was = intent.was
    if found.occupant is Occupant.OTHER:
        return None, False  # an obstacle, whatever was there before
    if found.status is None:
        return was, False
    shown = _shown_content(bucket, intent.key)
    # a version of the same content may differ in its metadata, so the former view does not show it; its time may have
    # been changed since, through another name of the file
    is_former = was is not None and was.shown not in ("", current.id) and was.ino == found.status.st_ino
    if not current.marker and shown == (current.kind, current.digest) and not is_former:
        return None, True
    if was is None:
        return None, False
    is_stale = (was.is_like(found.status) and not was.racy) or shown == _version_content(bucket, intent.key, was.shown)
    return (bucket.view(found.status, was.shown) if is_stale else None), False


def _show(bucket: OpenBucket, version: Version, expected: View | None, staged: bytes = b"") -> show.ShowResult:
    """Show a version. A view that may not be changed, such as an immutable one, waits, and delays no other."""
    try:
        return show.show(bucket, version, expected, staged)
    except PermissionError as error:
        return show.NotShown(reason(error))


_Content = tuple[Kind | None, bytes]
"""The kind of an object, and the BLAKE3 of its content, 32 bytes."""


def _shown_content(bucket: OpenBucket, key: bytes) -> _Content:
    with contextlib.suppress(Unavailable), open_view_if_there(bucket, key, LASTING) as view:
        return (view.kind, view.digest()) if view is not None else (None, b"")
    return None, b""  # another version's content, in a tier that is away


def _version_content(bucket: OpenBucket, key: bytes, version_id: str) -> _Content:
    with contextlib.suppress(StoreDamaged):
        version = versions.read(bucket, key, version_id, marker=False)
        if version is not None:
            return version.kind, version.digest
    return None, b""
