"""A version that is to be repaired, named by the path of its file, which is known even where its record is lost."""

from __future__ import annotations

from msgspec import Struct

from fsrepl.model import keys


class Target(Struct, frozen=True):
    """path: the version's key as stored."""

    address: str
    path: bytes
    id: str
    marker: bool

    @property
    def directory(self) -> bytes:
        return keys.split(self.path)[0]

    @property
    def stored(self) -> keys.StoredName:
        return keys.StoredName(keys.split(self.path)[1], self.id, self.marker, False)

    @property
    def name(self) -> bytes:
        return self.stored.name + b";" + self.id.encode() + (keys.MARKER if self.marker else b"")
