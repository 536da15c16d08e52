"""Views that are a second name of a stored version's file, and what is done once somebody writes into one.

Such a write destroys the version: its content is no longer what it was. What was written is the user's, and
becomes a version of its own; the destroyed one is given a file of its own, empty but for its record, and its
content is fetched again from another bucket that has it. Until then it matches no hash, and so is never
served, shown or sent. Source: design.md, section 7, View and store.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import replace
from typing import Protocol

from fsrepl.errors import StoreDamaged
from fsrepl.model import keys
from fsrepl.model.version import NO_SHORTFALL, NULL, Posix, Version, Versioning
from fsrepl.region.bucket_state import BucketState, Overwritten
from fsrepl.region.region import Region
from fsrepl.region.runtime import Runtime
from fsrepl.storage import copying, intents, publishing, records, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import GONE, NO_FILE
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.view_file import open_view_if_there
from fsrepl.views import shared_record, show, stage, stale

log = logging.getLogger("fsrepl")


At = tuple[bytes, str]
"""A key and a version id."""


class Content(Protocol):
    """What a view held when capture read it."""

    @property
    def found(self) -> os.stat_result: ...

    @property
    def digest(self) -> bytes: ...

    @property
    def posix(self) -> Posix: ...

    @property
    def linked(self) -> bool:
        """Whether the view was given a second name in .fsrepl/tmp for it."""


# -- noticing it


def overwritten_version(
    region: Region, bucket: OpenBucket, key: bytes, known: Object | None, taken: Content | None = None
) -> Version | None:
    """The stored version whose file was written into through this key's view; None where there is none.

    taken: what the view holds now, which is not recorded yet; without it the view is gone.
    """
    found = _behind(bucket, key, known)
    if found is None and taken is not None and taken.found.st_nlink > 1 and not taken.linked:
        version = _same_file(region, bucket, key, taken)
        return version if version is not None and version.digest != taken.digest else None
    if found is None or (found == (key, NULL) and bucket.bucket.versioning is Versioning.SUSPENDED):
        return None  # a null version that gives way to the next one anyway
    return _read(region, bucket, found)


def _behind(bucket: OpenBucket, key: bytes, known: Object | None) -> At | None:
    """The version that the view was last seen to show, where that was its file and has changed since.

    The view may be gone or another file by now.
    """
    if known is None or known.view is None:
        return None
    shown = known.view.shown or known.id
    found = _stored(bucket, key, shown)
    if found is None or found.st_ino != known.view.ino or known.view.has_content_of(found):
        return None
    return (key, shown) if versions.is_beside(bucket, key) else None


def _same_file(region: Region, bucket: OpenBucket, key: bytes, taken: Content) -> Version | None:
    """The version whose stored file the view is a second name of.

    It may be that of another key, as after a rename: the file knows. One whose record did not fit on it does not,
    but may be one of this key's.
    """
    with open_view_if_there(bucket, key, NO_FILE) as view:
        if view is None:
            return None  # removed in this moment: its event tells
        owner = records.owner(bucket, view.fd)
    versions = region.engine.journal.versions.versions_of(bucket.address, key)
    for at in [*([owner] if owner else []), *((key, i) for i, _, marker in versions if not marker)]:
        found = _stored(bucket, *at)
        if found is not None and os.path.samestat(found, taken.found):
            return _read(region, bucket, at)
    return None


def _read(region: Region, bucket: OpenBucket, at: At) -> Version:
    """The record of a version that is in the store. Whoever may write the file may have damaged or removed it.

    Then it is found out as far as it can be; without a digest where it cannot be now.
    """
    with contextlib.suppress(StoreDamaged):
        version = versions.read(bucket, *at, marker=False)
        if version is not None and not versions.is_stripped(version):
            return version
    return region.recall(bucket, *at) or Version(*at, 0, False)


def _stored(bucket: OpenBucket, key: bytes, version_id: str) -> os.stat_result | None:
    try:
        return bucket.fs.stat(*bucket.stored_file(key, version_id))
    except OSError as error:
        if error.errno in GONE:
            return None
        raise


# -- before it happens


def lent(
    region: Region, bucket: OpenBucket, key: bytes, known: Object | None, taken: Content | None = None
) -> Version | None:
    """The stored version whose file people can change, or may have changed, with nothing to tell; None where none is.

    One that the view has left, with nothing else to reach it by, is the daemon's own from then on.

    Its own view tells: that is looked at once it was written into; a wrong name it is only where the two are to have
    files of their own, and a program joined what had equal content. Another name, as a rename or a hard link makes
    one, may be written into and gone again before anybody looks. taken: what the view holds now; without it the
    view is gone.
    """
    view = known.view if known else None
    shown = (view.shown if view else "") or (known.id if known and not known.marker else "")
    left = shown != "" and (taken is None or view is None or taken.found.st_ino != view.ino)
    named = taken is not None and not taken.linked and taken.found.st_nlink > 1
    if not (left or named):
        return None
    own = _stored(bucket, key, shown) if shown else None
    if own is not None and taken is not None and os.path.samestat(own, taken.found):
        unasked = known is not None and known.digest == taken.digest and not sharing.is_linked(bucket, taken.posix)
        overwritten = _without_record(region, bucket, key, shown)
        return _read(region, bucket, (key, shown)) if unasked else overwritten
    if own is not None and left:
        if view is None:  # how it was shown is not known, as after the loss of the journal
            return _changed(region, bucket, key, shown)
        if own.st_ino == view.ino:
            overwritten = _without_record(region, bucket, key, shown)
            if own.st_nlink > 1 or not view.has_content_of(own):
                return _read(region, bucket, (key, shown))
            if overwritten is None:
                engine = region.engine
                shared_record.mend_left(
                    engine.journal, engine.recent, region.states[bucket.address], bucket, key, shown
                )
                versions.make_private(bucket, key, shown)
            return overwritten
    version = _same_file(region, bucket, key, taken) if named and taken is not None else None
    return version if version is not None and taken is not None and version.digest == taken.digest else None


def _without_record(region: Region, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
    """A version whose file no longer says what it is, if that can be found out; None where it says it."""
    with contextlib.suppress(StoreDamaged):
        version = versions.read(bucket, key, version_id, marker=False)
        if version is None or not versions.is_stripped(version):
            return None
    version = _read(region, bucket, (key, version_id))
    return None if versions.is_stripped(version) else version


def _changed(region: Region, bucket: OpenBucket, key: bytes, version_id: str) -> Version | None:
    """A version whose file people could reach, and that has other content, or another name still."""
    fd = versions.open_version(bucket, key, version_id)
    try:
        if not records.is_shared(bucket, fd):
            return None  # only we could reach it
        version = _read(region, bucket, (key, version_id))
        others = bucket.fs.stat_fd(fd).st_nlink > 1
        if not others and versions.is_stripped(version):
            return None  # what it held is not known before its record is rebuilt: a region is away that may have it
        if others or content_digest(bucket, fd) != version.digest:
            return version
    finally:
        bucket.fs.close(fd)
    versions.make_private(bucket, key, version_id)
    return None


# -- after it happened


def set_free(region: Region, state: BucketState, bucket: OpenBucket, version: Version) -> None:
    """Give a stored version a file of its own, which no view is: with its content, where that is there still.

    Where it was overwritten it is fetched again. What is written on the new file is believed from then on; a version
    of which not enough is known gets none of it, and that is found out later.
    """
    if not versions.is_stripped(version):
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
    stale.recapture(region, state, version.key)  # where its view has that file still, its ctime changed


def set_free_unseen(region: Region, state: BucketState, bucket: OpenBucket, key: bytes, known: Object | None) -> None:
    """The same for a key's current version before a newer one comes, where nothing tells how it was shown.

    So it is after the loss of the journal, while the file in the place of its view is still being written. Once the
    newer one is current, nothing leads to it any more.
    """
    if known is None or known.marker or known.view is not None or key in state.stale:
        return
    if (version := lent(region, bucket, key, known)) is not None:
        set_free(region, state, bucket, version)


def _detach(region: Region, state: BucketState, bucket: OpenBucket, version: Version, name: bytes) -> None:
    """Give a destroyed version a file of its own, durably, and have it fetched again.

    Before that it is written down that it shall be: from then on nothing else tells that it is not what it was.
    name: a copy of its file, in tmp.
    """
    at = version.key, version.id
    if (overwritten := state.overwritten.get(at)) is None:
        intent = intents.write_intents(bucket, [intents.Intent(version.key, version.id, None, intents.Act.FETCH)])
        overwritten = Overwritten(intent)
    if versions.is_stripped(version):
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
    publishing.publish(region.engine.syncer, bucket, [staged], also=[(bucket.intents, overwritten.intent)])
    state.overwritten[at] = overwritten
    log.error(
        'destroyed bucket=%s key="%s" version=%s: its view, a hard link to it, was written into; '
        "it is fetched again from a bucket that has it",
        bucket.address, keys.shown(version.key), version.id,
    )  # fmt: skip


def break_links(engine: Runtime, bucket: OpenBucket) -> None:
    """A bucket becomes a source, so users write into it: its views get content of their own first."""
    if bucket.bucket.sharing == "link" or bucket.versions < 0:
        return
    for directory in engine.journal.versions.directories(bucket.address):
        for name, known in engine.journal.versions.objects_in(bucket.address, directory).items():
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
                            engine.journal.versions.see(bucket.address, key, outcome.view)
    bucket.sync()
