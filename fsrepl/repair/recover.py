"""Crash recovery: what an intent says was under way is finished before the first scan."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace

from fsrepl.errors import UNFORESEEN, FsreplError, StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import Version
from fsrepl.model.view import View, view_of
from fsrepl.repair import reconcile
from fsrepl.storage import intents, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.storage.intents import Act, drop_intents, read_intents
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.view_file import open_view_if_there
from fsrepl.views import displaced, show, stage, view_metadata
from fsrepl.views.decide import Answer, Found, Occupant, decide_view

log = logging.getLogger("fsrepl")


def finish(
    bucket: OpenBucket, journal: Journal, quiet_s: float, hold: Callable[[intents.Intent, show.NotShown], bool]
) -> dict[tuple[bytes, str], bytes]:
    """Carry out the intents that a crash left, look at what was displaced, sweep staging.

    After that every view shows its key's current version, or is held. The journal's row of any other view is older
    than the tree, and is forgotten: what is there now is compared with the versions, as without a journal.
    quiet_s: see displaced.clear.
    hold: takes a view that cannot change yet; whether that is written down durably, so that its old intent may go.
    Returns the versions that are still to be fetched again, and under what name that is written down.
    """
    files = list(read_intents(bucket))
    intents = [intent for _, group in files for intent in group]
    kept: set[bytes] = set()
    held: set[bytes] = set()
    fetched: dict[tuple[bytes, str], bytes] = {}
    for intent in intents:
        _finish_removal(bucket, journal, intent.key)
    displaced.clear(bucket, journal, quiet_s, intents)
    displaced.clear_beside(bucket, journal, intents)
    staging.sweep(bucket)
    for name, group in files:
        fetched |= {(i.key, i.version): name for i in group if i.act is Act.FETCH}
    for intent in intents:
        if intent.act is Act.FETCH:
            continue
        outcome = _finish_one(bucket, journal, intent)
        if isinstance(outcome, show.NotShown):
            held.add(intent.key)
            if not hold(intent, outcome):
                kept.add(intent.key)
    behind = journal.versions.behind(bucket.address)
    journal.versions.see_all(bucket.address, [(key, None) for key in behind if key not in held])
    bucket.sync()
    if files:
        bucket.fs.sync_all(bucket.fd)
        for name, group in files:
            if name not in fetched.values() and not any(intent.key in kept for intent in group):
                drop_intents(bucket, name)
    return fetched


def _finish_removal(bucket: OpenBucket, journal: Journal, key: bytes) -> None:
    """Remove the versions of a key that were about to be, for good: that much was written down."""
    for version_id, _, marker in journal.versions.versions_of(bucket.address, key):
        if (key, version_id) in bucket.bucket.documents.removed:
            versions.remove(bucket, Version(key, version_id, 0, marker=marker))
            reconcile.forget_version(bucket, journal, key, version_id)


def _finish_one(bucket: OpenBucket, journal: Journal, intent: intents.Intent) -> show.ShowResult:
    """Carry out one intent. A view that cannot be looked at now waits, and holds up no other."""
    try:
        return _finish_view(bucket, journal, intent)
    except OSError as error:
        if intent.act is intents.Act.EDIT:
            raise
        journal.versions.see(bucket.address, intent.key, intent.was)  # it is behind, as far as anybody knows
        return show.NotShown(reason(error))
    except (FsreplError, sqlite3.Error):
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": what nobody foresaw', bucket.address, keys.shown(intent.key))
        return show.NotShown(UNFORESEEN)


def _finish_view(bucket: OpenBucket, journal: Journal, intent: intents.Intent) -> show.ShowResult:
    """Make one view show its key's current version, if what it shows is merely behind."""
    known = journal.versions.object(bucket.address, intent.key)
    if known is None:
        if intent.version == "" and intent.was is not None:  # its last version was removed for good
            return _show(bucket, show.nothing(intent.key), intent.was)
        return show.Shown(None)  # never published: staging was swept, nothing happened
    current = versions.read(bucket, intent.key, known.id, marker=known.marker)
    if current is None:
        return show.Shown(None)
    found = _look(bucket, intent.key)
    if intent.act is intents.Act.EDIT:
        return _finish_edit(bucket, journal, intent, current, found.status)
    expected, is_shown = _expected(bucket, intent, current, found)
    answer = decide_view(found, expected, current, is_shown=is_shown)
    if answer is Answer.USER_CHANGED:
        return show.UserChanged()
    if is_shown and found.status is not None:
        view = view_of(found.status, current.id, racy=True)  # an edit since then is still to be noticed
        journal.versions.see(bucket.address, intent.key, view)
        return show.Shown(view)
    try:
        staged = stage.stage_current(bucket, current)
    except (StoreDamaged, FileNotFoundError) as error:
        return show.NotShown(str(error))
    outcome = _show(bucket, current, expected, staged)
    if isinstance(outcome, show.Shown):
        journal.versions.see(bucket.address, intent.key, outcome.view)
    elif isinstance(outcome, show.NotShown) and expected is not None:
        journal.versions.see(
            bucket.address, intent.key, expected
        )  # a new journal does not know that it is merely behind
    return outcome


def _look(bucket: OpenBucket, key: bytes) -> Found:
    """As show.look. Where it may not be looked at, nothing is there for us."""
    try:
        return show.look(bucket, key)
    except OSError as error:
        if error.errno not in LASTING:
            raise
        return Found(Occupant.NOTHING)


def _expected(bucket: OpenBucket, intent: intents.Intent, current: Version, found: Found) -> tuple[View | None, bool]:
    """The view that may be changed, None where none may be; and whether it shows the current version already.

    An intent may have been carried out or not, so that a file is known by its content where its times do not tell.
    """
    was = intent.was
    if found.occupant is Occupant.OTHER:
        return None, False  # it stands in the way, whatever was there before
    if found.status is None:
        return was, False
    shown = _shown_digest(bucket, intent.key)
    if not current.marker and shown == current.digest:
        return None, True
    if was is None:
        return None, False
    is_behind = (was.is_like(found.status) and not was.racy) or shown == _version_digest(bucket, intent.key, was.shown)
    return (bucket.view(found.status, was.shown) if is_behind else None), False


def _show(bucket: OpenBucket, version: Version, expected: View | None, staged: bytes = b"") -> show.ShowResult:
    """As show.show. A view that may not be changed, being immutable perhaps, waits and holds up no other."""
    try:
        return show.show(bucket, version, expected, staged)
    except PermissionError as error:
        return show.NotShown(reason(error))


def _finish_edit(
    bucket: OpenBucket, journal: Journal, intent: intents.Intent, current: Version, found: os.stat_result | None
) -> show.ShowResult:
    """Give a view the metadata that its version has on the record, if it is that view still."""
    was = intent.was
    if was and found and current.id == intent.version and (found.st_ino, found.st_size) == (was.ino, was.size):
        looks = view_metadata.show(bucket, view_of(found, current.id), current)
        if looks is not None:
            journal.versions.see(bucket.address, intent.key, replace(looks, racy=True))  # written into since then?
    return show.Shown(None)


def _shown_digest(bucket: OpenBucket, key: bytes) -> bytes:
    with open_view_if_there(bucket, key, LASTING) as view:
        return view.digest() if view is not None else b""


def _version_digest(bucket: OpenBucket, key: bytes, version_id: str) -> bytes:
    with contextlib.suppress(StoreDamaged):
        version = versions.read(bucket, key, version_id, marker=False)
        if version is not None:
            return version.digest
    return b""
