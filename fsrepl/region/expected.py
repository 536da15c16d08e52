"""Large files that are expected at their destinations, since they are being captured."""

from __future__ import annotations

from msgspec import Struct

from fsrepl.model.version import Version


class Expected(Struct, frozen=True):
    """A large file that is being captured, for the regions of its destinations: an update of which little has changed,
    or the first one of its key.

    digest: of the version that the key has now, or empty. destinations: the buckets that were told. version: what a new
    key will have, as far as that is known; without an id, a digest, and a time of its creation.
    """

    source: str
    key: bytes
    digest: bytes
    destinations: tuple[str, ...]
    version: Version | None = None
