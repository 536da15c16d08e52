"""What the stores of a site hold, read from the disks without a daemon."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model import keys
from fsrepl.model.version import Origin, Status, Version
from fsrepl.settings import FILE, reading
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.site import Site as Disks
from tests.attack.history import Listed, Listing
from tests.site import Site

_SETTLED_NS = 1_000_000_000
"""A file that changed within this time before it was read may change again without another time."""


class Stores:
    """Reads listings. A file that has not changed since, and content that was whole once, are read again only on
    request: that is most of the work."""

    def __init__(self, site: Site) -> None:
        self._disks = Disks(reading.load(site.root / FILE))
        self._whole: set[tuple[str, bytes, str, bytes]] = set()
        self._last: dict[tuple[str, str, str], Listed] = {}
        self._unchanged: dict[tuple[str, bytes, bytes], tuple[tuple[int, int], Listed]] = {}
        """By bucket, directory and name: inode and time of change of a file, and what it is."""

    def read(self, buckets: tuple[str, ...], *, again: bool = False) -> Listing:
        """The versions and markers of these buckets. again: all content is read, not only what is new."""
        if again:
            self._whole.clear()
            self._unchanged.clear()
        out = {}
        for address in buckets:
            with self._disks.bucket(address).open() as bucket:
                out[address] = list(self._all(bucket))
            self._last |= {(address, each.key, each.id): each for each in out[address] if not each.is_unread}
        return out

    def _all(self, bucket: OpenBucket) -> Iterator[Listed]:
        """All versions. One whose record is lost, or is another version's, is as it was last, and damaged.

        Where views are stored files, users remove and write records, with `cp -a` for instance, and the daemon repairs
        them. Of one that was never read before, nothing is known but its name until then.
        """
        began_ns = time.time_ns()
        for path, fd, found in versions.walk(bucket):
            for name, stored in found:
                at, status = (bucket.address, path, name), bucket.fs.stat(fd, name)
                changed = (status.st_ino, status.st_ctime_ns)
                if (known := self._unchanged.get(at)) is not None and known[0] == changed:
                    yield known[1]
                    continue
                key = keys.join(path, stored.name)
                try:
                    record = records.read(bucket, fd, name, key)
                    version = versions.ensure_whole(record.version(key, stored))
                    listed = self._listed(bucket, version, status.st_ino)
                    if listed.is_whole and not record.beside and status.st_ctime_ns < began_ns - _SETTLED_NS:
                        self._unchanged[at] = changed, listed
                    yield listed
                except StoreDamaged:
                    last = self._last.get((bucket.address, os.fsdecode(key), stored.id))
                    if last is None and bucket.bucket.sharing != "link":
                        raise
                    last = last or Listed(os.fsdecode(key), stored.id, 0, "", "", stored.marker, is_unread=True)
                    yield replace(last, is_whole=False)

    def _listed(self, bucket: OpenBucket, version: Version, ino: int) -> Listed:
        completed = (other for other, each in version.deliveries.items() if each.status is Status.COMPLETED)
        maker = version.source if version.origin is Origin.REPLICA else bucket.address
        return Listed(
            os.fsdecode(version.key),
            version.id,
            version.created_ns,
            version.digest.hex(),
            maker,
            version.marker,
            self._is_whole(bucket, version),
            frozenset(completed),
            ino=ino,
        )

    def _is_whole(self, bucket: OpenBucket, version: Version) -> bool:
        at = (bucket.address, version.key, version.id, version.digest)
        if version.marker or version.key.endswith(b"/") or at in self._whole:
            return True
        with contextlib.suppress(FsreplError, OSError):
            fd = versions.open_content(bucket, version)
            try:
                if content_digest(bucket, fd) == version.digest:
                    self._whole.add(at)
            finally:
                bucket.fs.close(fd)
        return at in self._whole
