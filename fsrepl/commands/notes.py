"""The problems of a bucket, from the document of `fsrepl status`: in words, and by kind. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from fsrepl.model.amounts import counted, size_text


class Kind(enum.StrEnum):
    """Kinds of notes, by the remedy that they have."""

    OFFLINE = "offline"
    EXPOSED = "exposed"
    HALTED = "halted"
    PAUSED = "paused"
    WAITING = "waiting"
    """Deliveries and lifecycle actions that are tried again later."""
    MOVING = "moving"
    """Versions that are moved between tiers."""
    FILES = "files"
    """Files that cannot be captured or shown, or are not watched."""
    SKIPPED = "skipped"
    FAILED = "failed"


class Note(Struct, frozen=True):
    kind: Kind
    text: str


def notes_of(bucket: dict[str, Any], names_max: int | None) -> Iterator[Note]:
    """The notes of one bucket. names_max: how many names of a kind are given; None: all."""
    name = bucket["bucket"]
    if not bucket["online"]:
        yield Note(Kind.OFFLINE, bucket["trouble"])
    if bucket.get("exposed"):
        yield Note(Kind.EXPOSED, f"{name}: {bucket['exposed']}")
    if halted := bucket.get("halted"):
        what = f"{halted['deleted']:,} of {halted['keys']:,} keys were deleted at once"
        held = counted(halted["held"], "deletion is held", "deletions are held")
        yield Note(
            Kind.HALTED,
            f"{name}: {what} since {halted['since']}; {held}: `fsrepl undelete {name} --since {halted['since']}` "
            f"brings the files back, `fsrepl ack {name}` lets the deletions cross",
        )
    if bucket.get("paused"):
        waiting = f"; {counted(bucket['waiting'], 'file')} to inspect" if bucket.get("waiting") else ""
        yield Note(
            Kind.PAUSED, f"{name}: {bucket['paused']}{waiting}; make room there, or set keep_free in [capture] lower"
        )
    for each in bucket.get("moving", ()):
        moved = f"{counted(each['versions'], 'version')} ({size_text(each['bytes'])}) to be moved to {each['tier']}"
        yield Note(Kind.MOVING, f"{name}: {moved}" + (f": {each['why']}" if each.get("why") else ""))
    if why := bucket.get("lifecycle_waits"):
        yield Note(Kind.WAITING, f"{name}: lifecycle cannot go on, and tries again: {why}")
    if throttled := bucket.get("throttled"):
        yield Note(Kind.WAITING, f"{name}: {throttled}")
    for each in bucket.get("blocked", ()):
        yield Note(Kind.WAITING, f"{name} to {each['destination']}: {each['why']}")
    for each in bucket.get("retrying", ()):
        deliveries = counted(each["deliveries"], "delivery waits", "deliveries wait")
        yield Note(Kind.WAITING, f"{name} to {each['destination']}: {deliveries}: {each['why']}")
    yield from (Note(Kind.FILES, text) for text in _files(bucket, names_max))
    if bucket["skipped"]:
        skipped = f"{bucket['skipped']:,} skipped: links, sockets, FIFOs and devices are not objects"
        yield Note(Kind.SKIPPED, f"{name}: {skipped}")
    if bucket["failed"]:
        failed = counted(bucket["failed"], "delivery", "deliveries")
        yield Note(Kind.FAILED, f"{name}: {failed} failed; `fsrepl why {name}/KEY` gives the reason")


def _files(bucket: dict[str, Any], names_max: int | None) -> Iterator[str]:
    name, counts = bucket["bucket"], bucket.get("counts", {})

    def some(kind: str, what: str, names: list[str]) -> Iterator[str]:
        told = names[:names_max]
        yield from (f"{name}: {what}: {each}" for each in told)
        if (left := counts.get(kind, len(names)) - len(told)) > 0:
            yield f"{name}: {what}: {left:,} more; `fsrepl status --all` names them"

    yield from some(
        "view_conflicts", "ViewConflict", [f"{c['Key']}: {c['Why']}" for c in bucket.get("view_conflicts", ())]
    )
    yield from some(
        "views_behind",
        "the file does not show the newest version yet",
        [f"{b['Key']}: {b['Why']}" for b in bucket.get("views_behind", ())],
    )
    yield from some(
        "unreadable", "cannot be captured", [f"{path}: {why}" for path, why in bucket.get("unreadable", {}).items()]
    )
    yield from some("uncaptured", "not captured yet", [f"{u['Key']}: {u['Why']}" for u in bucket.get("uncaptured", ())])
    yield from some("set_aside", "set aside", [f"{a['Key']}: {a['Why']}" for a in bucket.get("set_aside", ())])
    if polled := bucket.get("polled"):
        directories = counted(counts.get("polled", len(polled)), "directory", "directories")
        yield f"{name}: scanned and not watched: {directories}; `fsrepl doctor` says why"
    yield from some("mounts", "not scanned, another filesystem is mounted there", list(bucket.get("mounts", ())))
    if linked := bucket.get("linked"):
        linked_files = counted(linked, "file is", "files are")
        yield f"{name}: {linked_files} a hard link of another; `fsrepl why {name}/KEY` names the others"
