"""Pure: the decision on an inspected key. capture/apply.py answers the questions, and carries the decision out."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from fsrepl.capture import look
from fsrepl.capture.copy import Taken
from fsrepl.model.version import Kind, Version
from fsrepl.storage.journal.rows import Object

AGAIN_S = 5.0
AGAIN_AT_LEAST_S = 0.2


class Evidence(Protocol):
    """Answers that cost system calls. The decision asks for each only where it depends on it."""

    def shown(self) -> str:
        """The id of the recorded version whose content the view has; empty where there is none."""

    def overwritten(self) -> Version | None:
        """The stored version whose file was written into through this key's view."""

    def is_made(self) -> bool:
        """Whether replication made the directory for the files below it, so that it is no object."""

    def is_made_and_edited(self) -> bool:
        """Whether a user has changed the rights of a directory that was deleted while files were left in it."""

    def is_made_since(self) -> bool:
        """Whether replication made the directory after a user had removed the one that is on record."""

    def same_directory(self) -> str:
        """The id of the recorded version whose metadata the directory has; empty where it was changed, or there is
        none."""

    def no_room(self, size_bytes: int) -> str:
        """Why the filesystem has no space for a copy of size_bytes; empty where it has."""


class Nothing(Struct, frozen=True):
    """The record is right, or the key cannot be captured before it changes."""


class ShowCurrent(Struct, frozen=True):
    """The view is as recorded, and shows an older version than the current one."""


class Defer(Struct, frozen=True):
    """The key is inspected again after after_s. opened: a program has the file open for writing."""

    after_s: float
    why: str
    opened: bool = False
    is_warned: bool = False
    """The log reports the reason once, and status as long as it lasts."""


class CopyInBackground(Struct, frozen=True):
    """The file is large: a background worker copies it."""

    size_bytes: int


class Edit(Struct, frozen=True):
    """The content is that of a recorded version: at most its metadata was edited."""

    shown: str


class Detach(Struct, frozen=True):
    """The view's file is that of a stored version, which gets a separate file; then the key is inspected again."""

    version: Version
    why: str


class MakeLeftPrivate(Struct, frozen=True):
    """The file of a version that the view has left is made private, and then the key is judged again."""


class Left(Struct, frozen=True):
    """The result of MakeLeftPrivate. shared: a stored version whose file people can still change."""

    shared: Version | None = None


class AddVersion(Struct, frozen=True):
    """The content is new."""


class AddMarker(Struct, frozen=True):
    """The view is gone. detach: a stored version whose file people can still reach, or have written into."""

    detach: Version | None = None


class LeaveToContents(Struct, frozen=True):
    """The key is deleted, and the directory is there for what is in it: it goes with the last of that."""


Decision = (
    Nothing | ShowCurrent | Defer | CopyInBackground | Edit | Detach | MakeLeftPrivate | AddVersion | AddMarker
    | LeaveToContents
)  # fmt: skip


def judge(
    seen: look.Seen, known: Object | None, evidence: Evidence, *, is_stale: bool, left: Left | None = None,
    is_removed: bool = False, copy_again_in_s: float = 0.0,
) -> Decision:  # fmt: skip
    """The decision on one inspected key. The order of the questions is the policy.

    known: the key's current version in the journal. is_stale: the view is known to show an older one.
    left: the result of MakeLeftPrivate, once that was decided and carried out.
    is_removed: the version that the view is recorded to show was removed for good.
    copy_again_in_s: how long a large file that keeps changing is left alone.
    """
    match seen:
        case Taken() if seen.kind is Kind.DIRECTORY:
            return _judge_directory(seen, known, evidence, is_stale=is_stale)
        case Taken():
            return _judge_copy(seen, known, evidence, left, is_removed=is_removed)
        case look.Same():
            behind = known is not None and known.view is not None and known.view.shown != known.id
            return ShowCurrent() if behind else Nothing()
        case look.Missing():
            if known is None or known.marker or (is_stale and known.view is None):
                return Nothing()
            if left is not None:
                return AddMarker(left.shared)
            overwritten = evidence.overwritten()
            return MakeLeftPrivate() if overwritten is None else AddMarker(overwritten)
        case look.Skipped():
            return Nothing()
        case look.Later(after_s, why, opened):
            return Defer(max(after_s, AGAIN_AT_LEAST_S), why, opened)
        case look.Large(size_bytes, allocated_bytes):
            if copy_again_in_s > 0:
                return Defer(copy_again_in_s, "the file keeps changing, and a copy takes a while")
            if why := evidence.no_room(allocated_bytes):
                return Defer(AGAIN_S, why, is_warned=True)
            return CopyInBackground(size_bytes)
        case look.Closed():
            return Edit(known.view.shown) if known and known.view else Nothing()


def _judge_directory(seen: Taken, known: Object | None, evidence: Evidence, *, is_stale: bool) -> Decision:
    """The decision on a directory of a tree bucket: changed metadata makes a new version."""
    if known is None:
        return Nothing() if is_stale or evidence.is_made() else AddVersion()
    view = known.view
    if known.marker:
        if evidence.is_made():
            return AddVersion() if evidence.is_made_and_edited() else LeaveToContents()
        # a directory whose marker has arrived, and that is not empty yet, is about to be removed; one that its user has
        # changed, or put in its place, is not
        if not is_stale or (view is not None and not view.has_content_of(seen.found)):
            return AddVersion()
        if view is None or not view.shown:
            return Nothing()
        shown = evidence.same_directory()
        return Edit(shown) if shown else AddVersion()
    if view is not None and evidence.is_made_since():
        return AddMarker()
    if shown := evidence.same_directory():
        return Edit(shown)
    return ShowCurrent() if view is None and evidence.is_made() else AddVersion()


def _judge_copy(
    taken: Taken, known: Object | None, evidence: Evidence, left: Left | None, *, is_removed: bool
) -> Decision:  # fmt: skip
    if known and known.view and known.view.is_like(taken.found) and (is_removed or not known.view.shown):
        return ShowCurrent()
    if left is None:
        return MakeLeftPrivate()
    if left.shared is not None:
        return Detach(left.shared, "its file was also that of another version, and is separate now")
    if known and (shown := evidence.shown()):
        return Edit(shown)
    if not taken.has_content:  # the version that it was compared with is no longer current
        return Defer(AGAIN_AT_LEAST_S, "another version was published during the look")
    if (overwritten := evidence.overwritten()) is not None:
        return Detach(overwritten, "its file was also that of a stored version, and is separate now")
    return AddVersion()
