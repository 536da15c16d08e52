"""The bytes of objects and of their noncurrent versions, by storage class."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fsrepl.errors import StoreDamaged
from fsrepl.model import keys
from fsrepl.model.version import Versioning
from fsrepl.storage import unversioned, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import read_traits
from fsrepl.storage.site import Site

_STANDARD = "STANDARD"


@dataclass(slots=True)
class Usage:
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


def usage(site: Site, journal: Journal, addresses: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The sums of some buckets by storage class, as `du` prints them. Raises FsreplError where a bucket is away."""
    classes: dict[str, Usage] = defaultdict(Usage)
    for address in addresses:
        with site.bucket(address).open() as bucket:
            _add(classes, journal, bucket)
    return {
        "Classes": [
            {
                "StorageClass": name,
                "Current": classes[name].current,
                "Noncurrent": classes[name].noncurrent,
                "Objects": classes[name].objects,
                "NoncurrentVersions": classes[name].noncurrent_versions,
            }
            for name in sorted(classes, key=lambda name: (name != _STANDARD, name))
        ]
    }


def _add(classes: dict[str, Usage], journal: Journal, bucket: OpenBucket) -> None:
    if bucket.bucket.versioning is Versioning.OFF:
        for version in unversioned.below(bucket, b""):
            classes[_STANDARD].add(version.size, 1, is_current=True)
        return
    for traits, is_current, number, size in journal.versions.sizes(bucket.address):
        storage_class, _ = read_traits(traits)
        classes[storage_class or _STANDARD].add(size, number, is_current=bool(is_current))
    for directory, name, version_id, is_current, size in journal.versions.sizes_unknown(bucket.address):
        classes[_class_of(bucket, keys.join(directory, name), version_id)].add(size, 1, is_current=bool(is_current))


def _class_of(bucket: OpenBucket, key: bytes, version_id: str) -> str:
    """The storage class on a version's record; STANDARD where the record cannot be read, which `verify` names."""
    with contextlib.suppress(OSError, StoreDamaged):
        version = versions.read(bucket, key, version_id, marker=False)
        return (version and version.storage_class) or _STANDARD
    return _STANDARD
