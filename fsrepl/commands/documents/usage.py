"""The space of versions as JSON, by storage class: `du`."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from fsrepl.model.keys import Document

STANDARD = "STANDARD"


class Usage(Struct):
    """Bytes of content, and the number of versions that hold them. Delete markers hold no bytes."""

    current: int = 0
    noncurrent: int = 0
    objects: int = 0
    noncurrent_versions: int = 0

    def add(self, size: int, number: int, *, is_current: bool) -> None:
        if is_current:
            self.current += size
            self.objects += number
        else:
            self.noncurrent += size
            self.noncurrent_versions += number


def classes(found: Mapping[str, Usage]) -> list[Document]:
    """By storage class, STANDARD first."""
    return [
        {
            "StorageClass": name,
            "Current": found[name].current,
            "Noncurrent": found[name].noncurrent,
            "Objects": found[name].objects,
            "NoncurrentVersions": found[name].noncurrent_versions,
        }
        for name in sorted(found, key=lambda name: (name != STANDARD, name))
    ]
