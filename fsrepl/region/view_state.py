"""The views of a bucket that are behind their versions, and what is to be done about them and their directories."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct, field

from fsrepl.model.view import View


class Resting(Struct, frozen=True):
    """A directory of a replica in a tree bucket, at rest from a monotonic time on.

    version_id, source: the replicated version that it was made to show, as far as that is known here, and its source.
    """

    due_s: float
    version_id: str = ""
    source: str = ""


class StaleView(Struct):
    """A view that does not show its key's current version yet."""

    due_s: float
    why: str
    conflict: bool
    intent: bytes = b""
    attempts: int = 0
    since_s: float = 0.0
    is_warned: bool = False
    """The log has named the conflict."""
    is_made_anew: bool = False
    """The view shows the current version, but in another form than it must."""


class Overwritten(Struct):
    """A destroyed version whose content is to be fetched again. intent: the intent that records it."""

    intent: bytes
    due_s: float = 0.0
    attempts: int = 0
    in_background: bool = False
    is_noted_again: bool = False
    """A step has found it destroyed since the last fetch began, and may have recorded that a delivery failed for it."""


class ViewState(Struct, eq=False):
    """Changed by the steps of views/; other steps call these, or the methods."""

    stale: dict[bytes, StaleView] = field(default_factory=dict)
    unapplied: dict[bytes, View] = field(default_factory=dict)
    """Views before a write of metadata that a fault interrupted: the missing part is no user's edit."""
    retries_blocked: bool = False
    """Something was removed since the last check of the obstacles to stale views."""
    overwritten: dict[tuple[bytes, str], Overwritten] = field(default_factory=dict)
    """Destroyed stored versions that are being fetched again: key and version id."""
    resting: dict[bytes, Resting] = field(default_factory=dict)
    """In a tree bucket: directories of replicas by path, in the order in which they come to rest."""
    may_lack_links: bool = False
    """In a tree bucket: views that are to be one file may be several."""
    awaited_names: set[bytes] = field(default_factory=set)
    """In a tree bucket: keys that other views were to be linked to, and could not be."""
    directories: dict[bytes, bool] = field(default_factory=dict)
    """Directories whose permissions are to be compared again, and whether their replicas were notified already."""

    def come_up(self) -> None:
        """The bucket comes up: its intents say which views are stale."""
        self.stale.clear()

    def forget(self) -> None:
        """The bucket goes away: its intents have the views that were not written, a scan finds the directories."""
        self.unapplied.clear()
        self.directories.clear()
        self.resting.clear()

    def look_for_links(self) -> None:
        """Have views looked at that may have to be linked, since a scan is complete."""
        self.may_lack_links = True

    def await_names(self, found: Collection[bytes]) -> None:
        """Have views looked at that could not be linked to some keys, also once one of these is shown."""
        self.may_lack_links |= bool(found)
        self.awaited_names.update(found)
