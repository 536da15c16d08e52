"""Updates of large files that are expected at their destinations, since they are being captured."""

from __future__ import annotations

from msgspec import Struct


class Expected(Struct, eq=False):
    """An update of a large file of which little has changed, for the regions of its destinations.

    digest: of the version that the key has now. destinations: the buckets that were told. is_over: the capture has
    ended, which the source's thread says.
    """

    source: str
    key: bytes
    digest: bytes
    destinations: list[str]
    is_over: bool = False
