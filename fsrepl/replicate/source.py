"""The interface of a source of deliveries: its versions, what decides about them, and their content.

A region of this site reads its sources itself (sending.py). What an agent delivers was sent to it by another machine
(arrivals.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from fsrepl.model.blockmap import BlockMap
from fsrepl.model.delta import Span
from fsrepl.model.version import Rights, Version
from fsrepl.region.limits import Progress
from fsrepl.replicate import decide
from fsrepl.replicate.draft import Draft, LargeDraft
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery


class Content(Protocol):
    """The content of one version, where it comes from."""

    def copy_to(self, draft: Draft, progress: Progress | None) -> None:
        """Write all of it, at the pace of the limit. Raises Failed (it is gone), Unavailable, OSError."""

    def is_whole(self, on_read: Callable[[int], None] | None = None) -> bool:
        """Whether it still matches its BLAKE3. Raises Failed, OSError."""

    def blocks(self) -> BlockMap | None:
        """Its map; None where it no longer matches its BLAKE3. Raises Failed, Unavailable, OSError."""

    def send(self, draft: LargeDraft, spans: Iterable[Span], progress: Progress) -> list[Span]:
        """Write parts of it in order, at the pace of the limit, each before the next is taken; which they were.

        It ends early where the content is shorter than it was: what is read back says so. Raises Failed, Unavailable,
        OSError.
        """


class Source(Protocol):
    """A bucket whose versions are delivered, during one batch."""

    replaces_records: bool
    """Whether a replica whose record is lost is sent again, since its side cannot rebuild the record."""

    @property
    def address(self) -> str: ...

    @property
    def here(self) -> OpenBucket | None:
        """The bucket, where it is one of this site."""

    def version(self, delivery: Delivery) -> Version | None:
        """The version of a delivery, as its record says. Raises StoreDamaged."""

    def facts(
        self, delivery: Delivery, version: Version | None, there: Callable[[Version], dict[str, Any]]
    ) -> decide.Facts:
        """The facts that decide about a delivery. there: those of the destination, asked where the version is there."""

    def is_pending(self, key: bytes, version_id: str, destination: str) -> bool:
        """Whether a version is still to be delivered to a destination."""

    def rights(self, path: bytes) -> Rights | None:
        """The permissions of a directory of the views; None where nothing is known of them."""

    def order(self, key: bytes) -> tuple[int, str] | None:
        """The order of the version that is current for the key of a directory; None where none is."""

    def content(self, version: Version, *, just_stored: bool = False) -> AbstractContextManager[Content]:
        """The content of a version. just_stored: it may be taken from memory, where a capture left it."""

    def map_of(self, digest: bytes) -> BlockMap | None:
        """The map of a content that the source happens to know."""

    def released(self) -> AbstractContextManager[None]:
        """Let other regions' threads run while a large content is copied."""


Opener = Callable[[str, OpenBucket], AbstractContextManager[Source]]
"""Opens a source by its address, for deliveries to a bucket. Raises SourceLeft, Unavailable, BucketMissing."""
