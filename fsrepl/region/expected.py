"""Large files that are expected at their destinations, since they are being captured."""

from __future__ import annotations

from msgspec import Struct

from fsrepl.model.version import Version
from fsrepl.storage.coming_blocks import ComingBlocks


class Expected(Struct, frozen=True):
    """A large file that is being captured, for the regions of its destinations.

    version: what it will be, as far as that is known; without an id, a digest, and a time of its creation, and with the
    deliveries that are announced. digest: of the version before, where little of that has changed; else empty. blocks:
    of the file, as they are cut.
    """

    source: str
    version: Version
    digest: bytes
    blocks: ComingBlocks

    @property
    def key(self) -> bytes:
        return self.version.key
