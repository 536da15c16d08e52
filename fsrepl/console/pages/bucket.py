"""A bucket: its properties, and one folder of it."""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.commands.folder import Cursor
from fsrepl.commands.notes import notes_of
from fsrepl.commands.reader import Document
from fsrepl.console.pages.rendering import Frame, render, shown, url
from fsrepl.model import keys


class Listing(Struct, frozen=True):
    """The part of a bucket that is listed. folder: without a slash at its end."""

    bucket: str
    folder: bytes = b""
    starts: str = ""
    versions: bool = False

    def url(self, at: Cursor | None = None) -> str:
        at = at or Cursor()
        return url(
            "/bucket", bucket=self.bucket, folder=self.folder or None, starts=self.starts or None,
            versions=1 if self.versions else None, **{"after-folder": at.after_folder, "after": at.after_name},
        )  # fmt: skip

    def of(self, folder: bytes) -> str:
        return replace(self, folder=folder, starts="").url()


def page(
    frame: Frame, place: Listing, bucket: Document, status: Document | None, folder: Document, known: Collection[str]
) -> str:  # fmt: skip
    """bucket: its document of `bucket ls`; status: that of `status`, None where not counted yet; folder: the page of
    objects; known: the buckets that have a page of their own."""
    return render(
        "bucket.html", frame,
        place=place,
        bucket=bucket,
        known=known,
        status=status,
        notes=[shown(note.text) for note in notes_of(status, 5)] if status else [],
        crumbs=_crumbs(place),
        folders=folder["Folders"],
        entries=folder["Entries"],
        following=place.url(folder["Next"]) if folder["Next"] else "",
        is_empty=not (folder["Folders"] or folder["Entries"]),
    )  # fmt: skip


def _crumbs(place: Listing) -> list[tuple[str, str]]:
    """The folders from the top of the bucket to the one shown: name and address."""
    parts = place.folder.split(b"/") if place.folder else []
    return [(keys.shown(part), place.of(b"/".join(parts[: n + 1]))) for n, part in enumerate(parts)]


def adopt(frame: Frame, bucket: str, room: Document, *, trees: bool) -> str:
    """Before a folder becomes a bucket. room: the answer of a dry run."""
    return render("adopt.html", frame, bucket=bucket, room=room, trees=trees, heals="Healed" in room)
