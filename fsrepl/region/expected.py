"""Updates of large files that are expected at their destinations, since they are being captured."""

from __future__ import annotations

from msgspec import Struct


class Expected(Struct, frozen=True):
    """An update of a large file of which little has changed, for the regions of its destinations.

    digest: of the version that the key has now. destinations: the buckets that were told.
    """

    source: str
    key: bytes
    digest: bytes
    destinations: tuple[str, ...]
