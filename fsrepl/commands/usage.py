"""The bytes of objects and of their noncurrent versions, by storage class; and what they take on their disks."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

from msgspec import Struct

from fsrepl.commands.documents.usage import STANDARD, Usage, classes
from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model import keys
from fsrepl.model.keys import Document
from fsrepl.model.version import Versioning
from fsrepl.storage import unversioned, versions
from fsrepl.storage.bucket import META, OpenBucket
from fsrepl.storage.extents import Blocks, Extent
from fsrepl.storage.fs import FileType
from fsrepl.storage.hashing import SMALL_BYTES
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import read_traits
from fsrepl.storage.site import Site
from fsrepl.storage.walk import directories, leave_out


def usage(site: Site, journal: Journal, addresses: Iterable[str]) -> Document:
    """The sums of some buckets by storage class, as `du` prints them. Raises FsreplError where a bucket is away."""
    found: dict[str, Usage] = defaultdict(Usage)
    for address in addresses:
        with site.bucket(address).open() as bucket:
            _add(found, journal, bucket)
    return {"Classes": classes(found)}


def _add(found: dict[str, Usage], journal: Journal, bucket: OpenBucket) -> None:
    if bucket.bucket.versioning is Versioning.OFF:
        for version in unversioned.below(bucket, b""):
            found[STANDARD].add(version.size, 1, is_current=True)
        return
    for traits, is_current, number, size in journal.totals.by_traits(bucket.address):
        storage_class, _ = read_traits(traits)
        found[storage_class or STANDARD].add(size, number, is_current=bool(is_current))
    for directory, name, version_id, is_current, size in journal.totals.unread(bucket.address):
        found[_class_of(bucket, keys.join(directory, name), version_id)].add(size, 1, is_current=bool(is_current))


def _class_of(bucket: OpenBucket, key: bytes, version_id: str) -> str:
    """The storage class on a version's record; STANDARD where the record cannot be read, which `verify` names."""
    with contextlib.suppress(OSError, StoreDamaged):
        version = versions.read(bucket, key, version_id, marker=False)
        return (version and version.storage_class) or STANDARD
    return STANDARD


# -- on the disk


class DiskUsage(Struct):
    """Bytes on disk. used: each block once; shared: what hard links and reflinks save; freed: what the removal of all
    noncurrent versions would free, without what current versions and files share with them; tiers: content in them."""

    used: int = 0
    shared: int = 0
    freed: int = 0
    tiers: int = 0

    def document(self) -> dict[str, int]:
        return {
            "Used": self.used, "Shared": self.shared, "FreedWithoutNoncurrent": self.freed, "InTiers": self.tiers,
        }  # fmt: skip


def disk_usage(site: Site, journal: Journal, addresses: Iterable[str], progress: Callable[[int], None]) -> DiskUsage:
    """The space of some buckets on their disks: files, stored versions, and content in tiers. Every file is looked at.

    progress: called with the number of files so far. Raises FsreplError where a bucket is away; content in a tier that
    is away is not counted.
    """
    every, kept, tiers_ = Blocks(), Blocks(), Blocks()
    number = 0
    for address in addresses:
        with site.bucket(address).open() as bucket:
            for at, name, is_kept in _files(bucket, journal):
                with contextlib.suppress(FileNotFoundError):
                    found = bucket.fs.stat(at, name)
                    if not bucket.fs.is_regular(found):
                        continue
                    shared = _shared(bucket, at, name, found)
                    every.add(found, shared)
                    if is_kept:
                        kept.add(found, shared)
                number += 1
                progress(number)
            for found in _in_tiers(bucket):
                tiers_.add(found)
    return DiskUsage(every.used, every.allocated - every.used, every.used - kept.used, tiers_.used)


def _files(bucket: OpenBucket, journal: Journal) -> Iterator[tuple[int, bytes, bool]]:
    """The files of a bucket, each with its directory, and whether it stays where noncurrent versions are removed."""
    for directory in directories(bucket.fs, bucket.fd, but=META, failed=leave_out):
        for name, kind in directory.entries:
            if kind is FileType.REGULAR:
                yield directory.fd, name, True
    if bucket.versions < 0:
        return
    for path, fd, found in versions.walk(bucket):
        known = {name: current.id for name, current in journal.versions.objects_in(bucket.address, path)}
        for name, stored in found:
            is_hidden = keys.is_digest(stored.name) or any(map(keys.is_digest, path.split(b"/")))
            yield fd, name, is_hidden or stored.marker or known.get(stored.name) == stored.id


def _shared(bucket: OpenBucket, at: int, name: bytes, found: os.stat_result) -> list[Extent]:
    """The extents that a file shares by reflinks: small files share none."""
    if found.st_size < SMALL_BYTES:
        return []
    with contextlib.suppress(OSError):
        fd = bucket.fs.open_read(at, name)
        try:
            return [Extent(*each) for each in bucket.fs.shared_extents(fd)]
        finally:
            bucket.fs.close(fd)
    return []


def _in_tiers(bucket: OpenBucket) -> Iterator[os.stat_result]:
    for name in bucket.bucket.root.settings.classes:
        with contextlib.suppress(FsreplError, OSError):
            tier = bucket.tier(name)
            for entry in tier.entries():
                with contextlib.suppress(FileNotFoundError):
                    yield bucket.fs.stat(tier.fd, entry)
