"""Hard links in a tree bucket: files that were one file when they were captured are one file in the replica's views,
and so with symlinks.

A version that was captured as another name of a file names the key and the version of that file: see Version.link. Each
version has a stored file of its own all the same. Its view is made as a hard link to the other key's view, if that
shows the named version; otherwise it is a separate file. In a bucket whose views are hard links to their stored
versions, the other view becomes a separate file first; with sharing = "link" views are not linked with one another.

A change of the number of names changes the ctime of every name. The journal's rows of the other names are brought up to
date, unless their users changed the file before.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import attributes, keys, metadata
from fsrepl.model.version import Kind, Shortfall, Version
from fsrepl.model.view import View, view_of
from fsrepl.region.recent import Recent
from fsrepl.storage import records, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING, UNSUPPORTED
from fsrepl.storage.intents import Act, Intent, intend
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.posix import apply_posix, apply_to_link, has_rights, inode_posix, posix_of
from fsrepl.storage.sync import Syncer
from fsrepl.storage.view_file import open_view
from fsrepl.views import one_file, show, stage, view_attributes

_NO_LINK = UNSUPPORTED | {errno.EMLINK, errno.EPERM}


class LinkGroups:
    """The views of one bucket during one batch, and which of them are to be one file."""

    def __init__(self, journal: Journal, bucket: OpenBucket, syncer: Syncer, recent: Recent | None) -> None:
        self._journal, self._bucket = journal, bucket
        self._syncer, self._recent = syncer, recent
        self._shown: dict[bytes, View] = {}
        """Views that were changed in this batch, which the journal does not know yet."""
        self._ctimes: dict[int, int] = {}
        """Of files whose number of names was changed here, the ctime before, by inode number."""
        self.lacking: set[bytes] = set()
        """Keys to which a view is to be linked, and could not be."""

    def expected(self, view: View | None) -> View | None:
        """A view as it must be found now: the ctime does not count where it was changed here."""
        if view is not None and self._ctimes.get(view.ino) == view.ctime_ns:
            return replace(view, ctime_ns=0)
        return view

    def stage(self, version: Version) -> bytes:
        """Stage a version's view as a hard link to another one, in .fsrepl/tmp; empty where it is a separate file."""
        if version.link is None or not self._bucket.bucket.trees:
            return b""
        for at in self._names(version, version.link):
            if staged := self.stage_as(version, *at):
                return staged
            self.lacking.add(at[0])
        return b""

    def stage_as(self, version: Version, key: bytes, version_id: str) -> bytes:
        """Stage a version's view as a hard link to that of another key; empty where that does not show this version, or
        cannot have another name."""
        if self._bucket.bucket.sharing == "link":
            return b""
        with contextlib.suppress(StoreDamaged):
            try:
                return self._stage(version, key, version_id)
            except OSError as error:
                if error.errno not in LASTING | _NO_LINK:
                    raise
        return b""

    def _names(self, version: Version, link: tuple[bytes, str]) -> Iterator[tuple[bytes, str]]:
        """Versions here whose views are to be one file with a version's view: the version that it names, and, where
        that is gone, the other names of its source's file."""
        if link[0] != version.key:
            yield link
        source = self._journal.versions.object(version.source, version.key) if version.source else None
        if source is None or source.view is None:
            return
        first = origin(self._bucket, link)
        others = self._journal.views.names_of(version.source, source.view.ino).keys() - {version.key, link[0]}
        for key, known in self._journal.versions.look_up(self._bucket.address, others).items():
            if not known.marker and origin(self._bucket, (key, known.id)) == first:
                yield key, known.id

    def _stage(self, version: Version, key: bytes, version_id: str) -> bytes:
        bucket, view = self._bucket, self._shown.get(key)
        if view is None:
            known = self._journal.versions.object(bucket.address, key)
            view = known.view if known is not None and not known.marker else None
        if view is None or view.shown != version_id:
            return b""
        found = bucket.view_status(key)
        other = versions.read(bucket, key, version_id, marker=False)
        if other is None or (other.kind, other.digest) != (version.kind, version.digest):
            return b""
        if not (bucket.fs.is_link(found) if other.kind is Kind.LINK else bucket.fs.is_regular(found)):
            return b""
        if not (view.has_content_of(found) and (key in self._shown or self._is_as_recorded(view, found.st_ctime_ns))):
            if not self._shows(other):
                return b""
            view = view_of(found, version_id, racy=True)  # as after a crash
        if versions.is_file_of(bucket, other, found):
            separate = self._separate(other, view)
            if separate is None:
                return b""
            view = separate
        self._ctimes.setdefault(view.ino, view.ctime_ns)
        return self._link(version, other, view)

    def show(
        self, version: Version, was: View | None, staged: bytes, *, emptied: set[bytes] | None = None,
        stages: bool = False,
    ) -> show.ShowResult:  # fmt: skip
        """Show a version in the file of another view where it is one with that, else in its staged view.

        staged: empty where the stored file was prepared to be the view; or where stages is True, and the view is staged
        now. emptied: see show.show.
        """
        bucket, linked = self._bucket, self.stage(version) if version.link is not None else b""
        if linked and staged:
            staging.unstage(bucket, staged)
        view = linked or staged or (stage.stage_current(bucket, version) if stages else b"")
        expected = self._shown.get(version.key, was)
        if expected is not None:
            expected = self.expected(expected)
        outcome = show.show(bucket, version, expected, view, emptied=emptied)
        if isinstance(outcome, show.Shown):
            self.showed(version, was, outcome.view)
            if linked and not staged:
                versions.make_private(bucket, version.key, version.id)  # it was prepared to be the view
        return outcome

    def _shows(self, version: Version) -> bool:
        """Whether the file in a view's place has a version's content and metadata."""
        with open_view(self._bucket, version.key) as opened:
            if opened.kind is not version.kind or opened.is_written() is not False or opened.digest() != version.digest:
                return False
            if opened.kind is Kind.LINK:
                return not metadata.changed(version, metadata.seen(version, posix_of(opened.found)))
            raw, posix = self._bucket.fs.attributes(opened.fd), inode_posix(self._bucket, opened.fd, opened.found)
        return not metadata.changed(version, metadata.seen(version, posix, attributes.own(raw), labelled=False))

    def _is_as_recorded(self, view: View, ctime_ns: int) -> bool:
        return ctime_ns == view.ctime_ns or self._ctimes.get(view.ino) == view.ctime_ns

    def _separate(self, version: Version, view: View) -> View | None:
        """Show a version in a file that is not its stored file; the view then, None where it cannot change now."""
        bucket = self._bucket
        fd = versions.open_content(bucket, version)
        try:
            staged, shortfall = stage.stage_view(bucket, version, fd)
        finally:
            bucket.fs.close(fd)
        outcome = show.show(bucket, version, self.expected(view), staged)
        if not isinstance(outcome, show.Shown) or outcome.view is None:
            return None
        if shortfall != version.shortfall:
            records.amend(bucket, replace(version, shortfall=shortfall))
        self._journal.views.see(bucket.address, version.key, outcome.view)
        if version.key in self._shown:
            self._shown[version.key] = outcome.view
        return outcome.view

    def _link(self, version: Version, other: Version, view: View) -> bytes:
        """Another name in .fsrepl/tmp of the file of a view, with a version's metadata."""
        bucket, name = self._bucket, staging.token()
        directory, own_name = keys.split(other.key)
        bucket.fs.link(bucket.views.get(directory), own_name, bucket.tmp, name)
        try:
            found = bucket.fs.stat(bucket.tmp, name)
            if not view.has_content_of(found):  # another file was put there in this moment
                staging.unstage(bucket, name)
                return b""
            later = metadata.of_one_file(version, other, bucket.address)
            if later != version:  # its own edit is on the way, or was never captured
                one_file.write(bucket, self._recent, replace(later, shortfall=other.shortfall))
            now = metadata.of_one_file(other, version, bucket.address)
            if now != other or not _has_posix(other, found):  # that one's edit is on the way
                self._edit(name, now, other, view)
        except BaseException:
            with contextlib.suppress(OSError):
                staging.unstage(bucket, name)
            raise
        return name

    def _edit(self, name: bytes, now: Version, was: Version, view: View) -> None:
        """Give a file, and the records of all its names, the metadata of a version: an edit, as if it had arrived.

        name: one of its names, in .fsrepl/tmp. was, view: another one's version, and its view as recorded.
        """
        bucket = self._bucket
        others = one_file.other_names(self._journal.views, bucket, was, view.ino, shown=self._shown)
        with intend(self._syncer, bucket, [Intent(was.key, was.id, view, Act.EDIT)]):
            for _, version in ((was, now), *one_file.behind(others, now, bucket.address)):
                one_file.write(bucket, self._recent, version)
            found, shortfall = self._give(name, now)
            if shortfall != now.shortfall:
                one_file.write(bucket, self._recent, replace(now, shortfall=shortfall))
            one_file.share_shortfall(bucket, self._recent, now, others)
        self._shown[was.key] = view_of(found, view.shown, racy=view.racy)
        for other in others:
            self._shown[other.version.key] = view_of(found, other.view.shown, racy=other.view.racy)

    def _give(self, name: bytes, version: Version) -> tuple[os.stat_result, Shortfall]:
        """Give a file or symlink in .fsrepl/tmp a version's metadata; its status then, and the metadata that it did not
        take."""
        bucket, is_link = self._bucket, version.kind is Kind.LINK
        fd = bucket.fs.open_inode(bucket.tmp, name) if is_link else records.open_file(bucket, bucket.tmp, name)
        try:
            if is_link:
                refused: Collection[str] = attributes.of_object(version)
                posix = apply_to_link(bucket, fd, version.posix)
            else:
                refused = view_attributes.write(bucket, fd, version)
                posix = apply_posix(bucket, fd, version.posix)
            return bucket.fs.stat_fd(fd), metadata.shortfall(version, posix, refused)
        finally:
            bucket.fs.close(fd)

    def showed(self, version: Version, was: View | None, view: View | None) -> None:
        """Note how a key's view looks, and that the file shown before has a name less."""
        if was is not None:
            if not self._bucket.bucket.trees:
                return
            self._ctimes.setdefault(was.ino, was.ctime_ns)
        if view is not None:
            self._shown[version.key] = view
        else:
            self._shown.pop(version.key, None)

    def latest_of(self, seen: Iterable[tuple[Version, View | None]]) -> list[tuple[Version, View | None]]:
        """How views look that were shown in this batch: another one may have been linked to them since."""
        shown = self._shown
        return [(version, shown.get(version.key, view)) for version, view in seen]

    def refresh(self) -> None:
        """Bring the journal up to date about the other names of files that have a name more or less."""
        for ino, ctime_ns in self._ctimes.items():
            self._journal.views.see_all(self._bucket.address, list(self._others(ino, ctime_ns)))

    def _others(self, ino: int, ctime_ns: int) -> Iterator[tuple[bytes, View]]:
        for key, known in self._journal.views.names_of(self._bucket.address, ino).items():
            view = self._shown.get(key) or known.view
            if view is None or (view.ctime_ns != ctime_ns and key not in self._shown):
                continue
            with contextlib.suppress(OSError):
                found = self._bucket.view_status(key)
                if view.has_content_of(found):
                    yield key, view_of(found, view.shown, racy=view.racy)


def _has_posix(version: Version, found: os.stat_result) -> bool:
    """Whether a file has the mode, owner and time that it was last seen to have, or was given: a fault may have come
    in between."""
    shown = version.shortfall.posix or version.posix
    return shown is None or (has_rights(shown, found) and shown.mtime_ns == found.st_mtime_ns)


def origin(bucket: OpenBucket, at: tuple[bytes, str]) -> tuple[bytes, str]:
    """The key and version that the links of a version lead to: the same for all names of a file."""
    seen = set()
    while at not in seen:
        seen.add(at)
        with contextlib.suppress(StoreDamaged):
            version = versions.read(bucket, *at, marker=False)
            if version is not None and version.link is not None:
                at = version.link
    return at
