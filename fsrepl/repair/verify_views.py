"""Views compared with the versions that they should show."""

from __future__ import annotations

import errno
import os

from fsrepl.errors import StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import Kind
from fsrepl.repair import compare
from fsrepl.repair.compare import Difference, Problem, Seen, Verdict
from fsrepl.repair.sides import Side
from fsrepl.storage import placed, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.view_file import open_view
from fsrepl.views import folders

_NOUNS = {Kind.FILE: "file", Kind.LINK: "symlink", Kind.DIRECTORY: "directory"}
_SHOWS_OTHER = {
    Kind.FILE: "the file shows other content than its version, and was not written into",
    Kind.LINK: "the symlink leads to another target than that of its version, and nobody replaced it",
    Kind.DIRECTORY: "the directory has other metadata than its version, and nobody changed it",
}


class Views:
    """A comparer of views. The journal's row of a view distinguishes an uncaptured change from damage."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self.bad: set[tuple[str, bytes, str]] = set()
        """Stored versions that are not as they should be: address, key and version id."""

    def compare(self, side: Side, key: bytes, current: Object) -> tuple[Verdict, Difference | None]:
        known = self._journal.versions.object(side.address, key) if self._journal is not None else None
        if known is not None and known.id != current.id and (fresh := side.current(key)) is not None:
            current = fresh  # newer than our index
        found: os.stat_result | None = None
        seen, same = Seen.NOTHING, False
        try:
            found = side.bucket.view_status(key)
            seen = Seen.FILE if side.bucket.is_object(key, found) else Seen.OTHER
            if seen is Seen.FILE and not current.marker:
                same = self._is_stored(side, key, current, found) or self._shows(side, key, current)
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            seen = Seen.OTHER
        except BlockingIOError:
            return Verdict.PENDING, None  # open for writing
        except OSError as error:
            if error.errno == errno.EXDEV:
                return Verdict.PENDING, None  # another filesystem is mounted over it
            if found is not None:
                return Verdict.DIFFERS, self._wrong_view(side, key, current, Problem.UNREADABLE, reason(error))
            seen = Seen.OTHER
        as_recorded = bool(found and known and known.view and known.view.is_like(found) and not known.view.racy)
        verdict = compare.judge_view(current, known, seen, same=same, as_recorded=as_recorded)
        if verdict is Verdict.DIFFERS:
            why = _SHOWS_OTHER[_kind(side, key, current)]
            return verdict, self._wrong_view(side, key, current, Problem.VIEW, why)
        if verdict is Verdict.CONFLICT:
            why = f"something else is where its {_NOUNS[_kind(side, key, current)]} must be shown"
            return verdict, self._wrong_view(side, key, current, Problem.CONFLICT, why)
        return verdict, None

    def _wrong_view(self, side: Side, key: bytes, current: Object, problem: Problem, why: str) -> Difference:
        path = keys.stored_path(key)
        return Difference(side.address, key, current.id, problem, why, current.marker, path=path)

    def _is_stored(self, side: Side, key: bytes, current: Object, found: os.stat_result) -> bool:
        """Whether the view is another name of the stored version, which has been checked already."""
        if (side.address, key, current.id) in self.bad:
            return False
        return self._is_one_file(side, key, current, found)

    @staticmethod
    def _is_one_file(side: Side, key: bytes, current: Object, found: os.stat_result) -> bool:
        """Whether the view and the stored version are hard links to one file."""
        try:
            return os.path.samestat(side.bucket.fs.stat(*side.bucket.stored_file(key, current.id)), found)
        except OSError:
            return False

    def _shows(self, side: Side, key: bytes, current: Object) -> bool:
        """Whether a view has the content of a version, and its kind; a directory: whether it has its metadata."""
        with open_view(side.bucket, key) as view:
            if view.target is not None:  # the content has been checked already
                version = versions.read(side.bucket, key, current.id, marker=False)
                return version is not None and placed.leads_to(view.target, version)
            if view.digest() != current.digest:
                return False
            if not side.bucket.bucket.trees:
                return True
            version = versions.read(side.bucket, key, current.id, marker=False)
            if version is None or version.kind is not view.kind:
                return False
            return view.kind is not Kind.DIRECTORY or not folders.is_edited(side.bucket, view.fd, version)

    def compare_afresh(self, side: Side, key: bytes) -> Difference | None:
        current = side.current(key)
        return self.compare(side, key, current)[1] if current is not None else None

    def is_damage(self, side: Side, key: bytes, current: Object) -> bool:
        """Whether a file that differs is the stored version's own, and has no further name.

        A write through the view makes an event, so this change bypassed the view: the store is damaged, which the check
        of the stored version finds.
        """
        directory, name = keys.split(key)
        try:
            found = side.bucket.fs.stat(side.bucket.views.get(directory), name)
        except OSError:
            return False
        return found.st_nlink == 2 and self._is_one_file(side, key, current, found)


def _kind(side: Side, key: bytes, current: Object) -> Kind:
    """The kind of a version; a file where its record cannot be read, which is a difference of its own."""
    if keys.is_directory(key):
        return Kind.DIRECTORY
    try:
        version = versions.read(side.bucket, key, current.id, marker=current.marker)
    except (OSError, StoreDamaged):
        return Kind.FILE
    return version.kind if version is not None else Kind.FILE


def mount_over(bucket: OpenBucket, key: bytes) -> bytes:
    """The part of a key's path below a mount: a directory, with a slash, or the file; empty where there is none."""
    path, name = keys.split(key)
    for end in [at for at, byte in enumerate(path + b"/") if byte == ord("/")] if path else []:
        try:
            bucket.views.get(path[:end])
        except OSError as error:
            return path[:end] + b"/" if error.errno == errno.EXDEV else b""
    try:
        return key if bucket.fs.is_mount(bucket.views.get(path), name) else b""
    except OSError:
        return b""
