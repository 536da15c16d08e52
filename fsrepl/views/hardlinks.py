"""Views that are hard links to a stored version, and the recovery from a write into one.

Such a write destroys the version: its content has changed. The new content is the user's, and
becomes another version; the destroyed one gets a separate file, empty but for its record, and its
content is fetched again from another bucket that has it. Until then it matches no hash, and so is never
served, shown or sent. Source: design.md, section 7, View and store.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import Protocol

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged, Unavailable
from fsrepl.model import keys
from fsrepl.model.version import NO_SHORTFALL, NULL, Posix, Version, Versioning
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.region.runtime import Runtime
from fsrepl.region.view_state import Overwritten
from fsrepl.storage import copying, placed, publishing, records, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import BAD_BLOCK, GONE, NO_FILE
from fsrepl.storage.journal.rows import Object, traits_of
from fsrepl.storage.view_file import open_view_if_there
from fsrepl.views import overwritten, shared_record, show, stage, stale, unseen
from fsrepl.views.decide import Leaving, Left, decide_left

log = logging.getLogger("fsrepl")


At = tuple[bytes, str]
"""A key and a version id."""


class Content(Protocol):
    """The content of a view, as read by capture."""

    @property
    def found(self) -> os.stat_result: ...

    @property
    def digest(self) -> bytes: ...

    @property
    def posix(self) -> Posix: ...

    @property
    def linked(self) -> bool:
        """Whether the view got a second name in .fsrepl/tmp for it."""


# -- detecting a write


def overwritten_version(
    region: Region, bucket: OpenBucket, key: bytes, known: Object | None, taken: Content | None = None
) -> Version | None:
    """The stored version whose file was written into through this key's view; None where there is none.

    taken: the view's present content, not recorded yet; without it the view is gone.
    """
    if keys.is_directory(key):
        return None
    found = _behind(bucket, key, known)
    if found is None and taken is not None and taken.found.st_nlink > 1 and not taken.linked:
        version = _same_file(region, bucket, key, taken)
        return version if version is not None and version.digest != taken.digest else None
    if found is None or (found == (key, NULL) and bucket.bucket.versioning is Versioning.SUSPENDED):
        return None  # a null version, which the next one replaces anyway
    return _read(region, bucket, found)


def is_apart(bucket: OpenBucket, key: bytes, known: Object | None) -> bool:
    """Whether a view that is gone was a separate file, and not the stored file of its version, which its removal would
    have changed too."""
    if known is None or known.view is None or known.view.is_link or not known.view.shown or keys.is_directory(key):
        return False
    found = stored(bucket, key, known.view.shown)
    return found is None or found.st_ino != known.view.ino


def _behind(bucket: OpenBucket, key: bytes, known: Object | None) -> At | None:
    """The version that the view last showed, if that was its file and has changed since.

    The view may be gone or another file by now.
    """
    if known is None or known.view is None:
        return None
    shown = known.view.shown or known.id
    found = stored(bucket, key, shown)
    if found is None or found.st_ino != known.view.ino or known.view.has_content_of(found):
        return None
    return (key, shown) if versions.is_beside(bucket, key) else None


def _same_file(region: Region, bucket: OpenBucket, key: bytes, taken: Content) -> Version | None:
    """The version whose stored file the view is a hard link to.

    The version may be another key's, as after a rename: the file names its owner. One whose record did not fit on the
    file is not named, but may be one of this key's.
    """
    with open_view_if_there(bucket, key, NO_FILE) as view:
        if view is None or view.target is not None:
            return None  # just removed or replaced: its event follows
        owner = records.owner(bucket, view.fd) if view.is_regular else None
    versions = region.engine.journal.versions.versions_of(bucket.address, key)
    for at in [*([owner] if owner else []), *((key, i) for i, _, marker in versions if not marker)]:
        found = stored(bucket, *at)
        if found is not None and os.path.samestat(found, taken.found):
            return _read(region, bucket, at)
    return None


def _read(region: Region, bucket: OpenBucket, at: At) -> Version:
    """The record of a stored version, which people with write access to the file may have damaged or removed.

    A damaged record is recovered as far as possible; without a digest where that is impossible now.
    """
    with contextlib.suppress(StoreDamaged):
        version = versions.read(bucket, *at, marker=False)
        if version is not None and not versions.has_lost_record(version):
            return version
    return region.recall(bucket, *at) or Version(*at, 0, False)


def stored(bucket: OpenBucket, key: bytes, version_id: str) -> os.stat_result | None:
    """The status of a version's stored file; None where there is none, or the disk does not give it. Raises OSError."""
    try:
        return bucket.fs.stat(*bucket.stored_file(key, version_id))
    except OSError as error:
        if error.errno in GONE | BAD_BLOCK:
            return None
        raise


# -- before a write


def make_left_private(
    region: Region, bucket: OpenBucket, key: bytes, known: Object | None, taken: Content | None = None
) -> Version | None:
    """Make a version's file private once its view has left it; the version whose file cannot be made so, or None.

    That is a stored version whose file people can still change, or may have changed, without an event. A write through
    the version's own view makes one. That view is a wrong name only where both are to have separate files, and a
    program linked equal content. Another name, as after a rename or a hard link, may be written into and removed
    before the next look. taken: the view's present content; without it the view is gone.
    """
    if keys.is_directory(key):
        return None
    view = known.view if known else None
    shown = (view.shown if view else "") or (known.id if known and not known.marker else "")
    is_named = taken is not None and not taken.linked and taken.found.st_nlink > 1
    if view is not None and view.is_link and (taken is None or taken.found.st_ino != view.ino):
        placed.close_to_readers(bucket, key, shown)
    leaving = Leaving(view, None, taken.found if taken else None, is_named)
    if not is_named and not (shown and leaving.has_left):
        return None
    if shown:
        is_same = known is not None and taken is not None and known.digest == taken.digest
        leaving = replace(leaving, stored=stored(bucket, key, shown), is_same=is_same)
    match decide_left(leaving, lambda: sharing.is_linked(bucket, taken.posix if taken else None)):
        case Left.IS_VIEW:
            return _without_record(region, bucket, key, shown)
        case Left.SEPARATE:
            return _read(region, bucket, (key, shown))
        case Left.COMPARE:
            return _make_unchanged_private(region, bucket, key, shown)
        case Left.MAKE_PRIVATE:
            return _make_private(region, bucket, key, shown)
        case Left.OTHER:
            assert taken is not None
            version = _same_file(region, bucket, key, taken)
            return version if version is not None and version.digest == taken.digest else None
        case Left.NOTHING:
            return None


def _make_private(region: Region, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
    """Make a version's file private, unless it has lost its record or a program still writes into it: then the version,
    as far as it can be recovered."""
    lost = _without_record(region, bucket, key, version_id) or _if_written(region, bucket, key, version_id)
    if lost is None:
        state = region.states[bucket.address]
        shared_record.repair_left(region.engine, state, bucket, key, version_id)
        versions.make_private(bucket, key, version_id)
    return lost


def _if_written(region: Region, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
    """A version into whose file a program may still write, since it has that open; None where none has."""
    fd = versions.open_version(bucket, key, version_id)
    try:
        return _read(region, bucket, (key, version_id)) if bucket.fs.is_written(fd) else None
    finally:
        bucket.fs.close(fd)


def _without_record(region: Region, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
    """A version whose file lost its record, as far as that can be recovered; None where the file has its record."""
    with contextlib.suppress(StoreDamaged):
        version = versions.read(bucket, key, version_id, marker=False)
        if version is None or not versions.has_lost_record(version):
            return None
    version = _read(region, bucket, (key, version_id))
    return None if versions.has_lost_record(version) else version


def _make_unchanged_private(region: Region, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
    """Make a version's file private that people could reach; the version if it has changed, or another name still."""
    fd = versions.open_version(bucket, key, version_id)
    try:
        if not records.is_shared(bucket, fd):
            return None  # only the daemon could reach it
        version = _read(region, bucket, (key, version_id))
        is_linked = bucket.fs.stat_fd(fd).st_nlink > 1
        # without a record its content is unknown, while the region that may have one is away: then it is noted
        is_known = is_linked or not versions.has_lost_record(version)
        if is_known and (is_linked or content_digest(bucket, fd) != version.digest):
            return version
    finally:
        bucket.fs.close(fd)
    return _make_private(region, bucket, key, version_id)


# -- after a write


def set_free(region: Region, state: BucketState, bucket: OpenBucket, version: Version) -> None:
    """Give a stored version a separate file that is no view, with its content if that still exists.

    An overwritten version is fetched again. The record on the new file is trusted from then on; a version
    of which too little is known gets no record, which is found later.
    """
    if not versions.has_lost_record(version):
        version = shared_record.recorded(region.engine.journal, region.engine.recent, bucket.address, version)
    fd = versions.open_version(bucket, version.key, version.id)
    try:
        digest = copying.copy_aside(bucket, fd, name := staging.token())
    finally:
        bucket.fs.close(fd)
    if digest != version.digest:
        _detach(region, state, bucket, version, name)
    else:
        publishing.publish(region.engine.syncer, bucket, [versions.stage_copy(bucket, name, version)])
    region.engine.recent.forget(bucket.address, version.key, version.id)
    stale.recapture(region, state, version.key)  # a view that still has that file has a new ctime


def set_free_unseen(region: Region, state: BucketState, bucket: OpenBucket, key: bytes, known: Object | None) -> None:
    """Set a key's current version free before a newer one is published, where its view is not on record.

    That happens after the loss of the journal, while the file in its view's place is still being written. Once the
    newer version is current, nothing refers to the file any more.
    """
    if known is None or known.marker or known.view is not None or key in state.views.stale:
        return
    if (version := make_left_private(region, bucket, key, known)) is not None:
        set_free(region, state, bucket, version)


def close_to_people(region: Region, bucket: OpenBucket, at: At, was: os.stat_result | None) -> bool:
    """Take a version's file, which was just found whole, from all who can write to it, unless it is the view that shows
    the version; whether it can change no more without notice. was: its status before that was found."""
    key, version_id = at
    found, known = stored(bucket, key, version_id), region.engine.journal.versions.object(bucket.address, key)
    if found is None or was is None or found.st_ino != was.st_ino:
        return True  # it is gone, or was replaced by a good copy
    if (
        known is not None
        and known.view is not None
        and (known.view.ino, known.view.shown) == (found.st_ino, version_id)
    ):
        return True  # what is written there is noticed
    fd = versions.open_version(bucket, key, version_id)
    try:
        if not records.is_shared(bucket, fd):
            return True
        is_quiet = (found.st_size, found.st_mtime_ns) == (was.st_size, was.st_mtime_ns) and not bucket.fs.is_written(fd)
        if found.st_nlink > 1 or not is_quiet:
            version = _read(region, bucket, at)
            if versions.has_lost_record(version):
                return False
            records.separate(bucket, version, fd)  # which raises StoreDamaged where it was written into meanwhile
        else:
            versions.make_private(bucket, key, version_id)
    finally:
        bucket.fs.close(fd)
    bucket.sync()
    region.engine.recent.forget(bucket.address, key, version_id)
    return True


def destroyed_in_tier(region: Region, state: BucketState, bucket: OpenBucket, version: Version) -> None:
    """Note durably that a version's content in a tier was written into through its view, which becomes a version now:
    the destroyed one is then fetched again. Archived content is whole: only its restored copy was written into."""
    at = version.key, version.id
    if at in state.views.overwritten or version.place is None or version.place.is_archived:
        return
    overwritten.note(region.engine.syncer, state, bucket, [at])
    log.error(
        'destroyed bucket=%s key="%s" version=%s: its content in tier %s was written into through its view; it is '
        "fetched again from a bucket that has it",
        bucket.address, keys.shown(version.key), version.id, version.place.tier,
    )  # fmt: skip


def forget_restored(region: Region, bucket: OpenBucket, version: Version) -> None:
    """Archived content whose restored copy was written into, and whose view is a version by now: it has to be restored
    again before it is read. The copy goes with the sweep."""
    if version.place is None or not version.place.is_archived:
        return
    with contextlib.suppress(OSError, StoreDamaged):  # else nobody is given the copy, which is no version's
        records.amend(bucket, replace(version, place=replace(version.place, until_ns=0)))
        region.engine.recent.forget(bucket.address, version.key, version.id)


def empty_in_tier(region: Region, bucket: OpenBucket, key: bytes, version_id: str) -> bool:
    """Take the place in a tier from a version that is to be fetched again: a hole stands for its content meanwhile, and
    is served to nobody. False while a view still leads to what was written there. Raises OSError."""
    with contextlib.suppress(StoreDamaged):
        version = versions.read(bucket, key, version_id, marker=False)
        if version is None or version.place is None:
            return True
        content = placed.shown_content(bucket, version)
        if content is None or placed.looks_like(content, version):
            return True  # it is whole, as after a crash between its repair and the note of that; or its tier is away
        if placed.is_shown(bucket, key, version.place):
            return False
        name = staging.token()
        fd = bucket.fs.create(bucket.tmp, name)
        try:
            bucket.fs.truncate(fd, version.size)
        finally:
            bucket.fs.close(fd)
        staged = versions.stage_copy(bucket, name, version)
        region.engine.syncer.staged(bucket, [(bucket.tmp, staged.name)])
        versions.publish_moved(bucket, staged)
        bucket.sync()
        journal = region.engine.journal
        with journal.transaction():
            journal.versions.set_traits(bucket.address, [(key, version_id, traits_of(staged.version))])
        region.engine.recent.forget(bucket.address, key, version_id)
        with contextlib.suppress(OSError, Unavailable):  # the sweep removes what stays
            bucket.tier(version.place.tier).remove(key, version.place)
    return True


def _detach(region: Region, state: BucketState, bucket: OpenBucket, version: Version, name: bytes) -> None:
    """Give a destroyed version a separate file, durably, and have it fetched again.

    An intent records that first: nothing else would show later that the version is destroyed.
    name: a copy of its file, in tmp.
    """
    at = version.key, version.id
    if (noted := state.views.overwritten.get(at)) is None:
        noted = Overwritten(overwritten.write(bucket, at, unseen.before_write(region.engine.journal, bucket, *at)))
    if versions.has_lost_record(version):
        staged = versions.Staged(version, name, sidecar=False)
    else:
        staging.unstage(bucket, name)
        size = region.engine.journal.versions.size_of(bucket.address, version.key, version.id)
        fd = bucket.fs.create(bucket.tmp, name)
        try:
            bucket.fs.truncate(fd, version.size if size is None else size)
        finally:
            bucket.fs.close(fd)
        staged = versions.stage_copy(bucket, name, version)
    publishing.publish(region.engine.syncer, bucket, [staged], also=[(bucket.intents, noted.intent)])
    state.views.overwritten[at] = noted
    log.error(
        'destroyed bucket=%s key="%s" version=%s: its view, a hard link to it, was written into; '
        "it is fetched again from a bucket that has it",
        bucket.address, keys.shown(version.key), version.id,
    )  # fmt: skip


def break_links(engine: Runtime, bucket: OpenBucket) -> None:
    """Give all views separate content, before users write into a bucket that becomes a source."""
    if bucket.bucket.sharing == "link" or bucket.versions < 0:
        return
    for directory in engine.journal.versions.directories(bucket.address):
        for name, known in engine.journal.versions.objects_in(bucket.address, directory):
            if known.marker or known.view is None or known.view.shown != known.id:
                continue
            key = keys.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                fd = versions.open_version(bucket, key, known.id)
                try:
                    linked = engine.fs.stat_fd(fd).st_ino == known.view.ino and versions.is_beside(bucket, key)
                    version = versions.read(bucket, key, known.id, marker=False) if linked else None
                    staged, shortfall = stage.stage_view(bucket, version, fd) if version else (b"", NO_SHORTFALL)
                finally:
                    engine.fs.close(fd)
                if version is not None:
                    outcome = show.show(bucket, version, known.view, staged)
                    if isinstance(outcome, show.Shown):
                        records.amend(bucket, replace(version, shortfall=shortfall))
                        with engine.journal.transaction():
                            engine.journal.views.see(bucket.address, key, outcome.view)
    bucket.sync()
