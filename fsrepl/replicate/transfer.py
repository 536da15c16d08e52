"""Content and metadata of one version -> a hidden, verified copy in the destination.

Nothing becomes visible here. A staged copy is read back and must match the recorded BLAKE3. A
mismatch is either damage at the source, which is reported and never delivered, or a faulty copy,
which is made again. No reflinks between regions: a replica shares no storage (G10).
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from fsrepl.errors import Failed, Unavailable
from fsrepl.model import metadata
from fsrepl.model.version import Version
from fsrepl.region.limits import Progress
from fsrepl.replicate.destination import Destination
from fsrepl.replicate.draft import Draft, StagedReplica
from fsrepl.replicate.source import Content, Source
from fsrepl.storage.hashing import SMALL_BYTES
from fsrepl.storage.journal.rows import Delivery, Object


def stage(
    source: Source, destination: Destination, version: Version, replica: Version, *, progress: Progress | None = None,
    just_stored: bool = False,
) -> StagedReplica:  # fmt: skip
    """Write a replica, hidden and verified. progress: where a background worker does it. just_stored: see Source.

    Raises Failed (the stored version is damaged or gone), Unavailable (the copy does not match), OSError.
    """
    if replica.marker:
        return destination.stage_marker(replica)
    with destination.draft(replica) as draft, source.content(version, just_stored=just_stored) as content:
        if version.size < SMALL_BYTES:
            return stage_content(content, draft, progress)
        with source.released():
            return stage_content(content, draft, progress)


def stage_content(content: Content, draft: Draft, progress: Progress | None) -> StagedReplica:
    """Write a content to a draft, read it back, and stage it. Raises as stage does."""
    content.copy_to(draft, progress)
    _verify(content, draft, progress.verified_to if progress else None)
    return draft.stage()


def _verify(content: Content, draft: Draft, on_read: Callable[[int], None] | None = None) -> None:
    if draft.is_whole(on_read):
        return
    if not content.is_whole(on_read):
        raise damaged()
    raise Unavailable("the copy does not match the source; it is made again")


def damaged() -> Failed:
    why = "the stored version no longer matches its BLAKE3; `fsrepl verify --repair` looks for a good copy"
    return Failed("SrcObjectNotEligible", why)


class Item(Struct):
    """One delivery in progress."""

    delivery: Delivery
    version: Version | None = None
    replica: Version | None = None
    staged: StagedReplica | None = None
    crossed_bytes: int | None = None
    """The part of a large content that was sent; None where all of it was, or nothing yet."""
    groups: frozenset[str] = metadata.GROUPS
    """The groups of its metadata that may travel."""
    known: Object | None = None
    """The key in the destination, as the journal knows it."""
