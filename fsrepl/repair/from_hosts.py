"""Versions that a bucket lost with its disk, restored from regions on other machines that it was replicated to.

The agent there reads them a page at a time, in the order of keys, with the content of small ones; the parts of a large
content are asked for one after the other. Markers have their ids there. Versions that
were made there, or were removed here for good, are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from fsrepl.link import frames
from fsrepl.model.address import region_of
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.region.runtime import Runtime
from fsrepl.repair.from_services import as_it_was, stage
from fsrepl.storage import listing, versions
from fsrepl.storage.bucket import Bucket, OpenBucket

log = logging.getLogger("fsrepl")

_PAGE_ITEMS = 1000
_PAGE_BYTES = 4 << 20
"""A page ends with the key whose content passes this."""
_SMALL_BYTES = 1 << 20
"""Content up to this size is in its page."""
_PART_BYTES = 4 << 20

Recall = Callable[[str, bytes], bytes]
"""Has the agent of a bucket read versions: the address, and what `recall` takes and gives. Raises FsreplError."""


class _Wanted(Struct, frozen=True, array_like=True):
    """A page of the versions that came from a bucket, from a key on; or with an id, a part of one content."""

    source: str
    key: bytes
    id: str = ""
    at: int = 0


class _Page(Struct, frozen=True, array_like=True):
    """Versions and markers, and the key at which the next page begins; None at the end."""

    items: list[frames.Item]
    rest: bytes | None


_encode = msgspec.msgpack.Encoder().encode
_read_wanted = msgspec.msgpack.Decoder(_Wanted).decode
_read_page = msgspec.msgpack.Decoder(_Page).decode


# -- at the agent's side


def recall(bucket: Bucket, wanted: bytes) -> bytes:
    """Read what is wanted of a bucket. Raises FsreplError where it is away, OSError."""
    asked = _read_wanted(wanted)
    with bucket.open() as opened:
        return _part(opened, asked) if asked.id else _encode(_page(opened, asked))


def _part(bucket: OpenBucket, asked: _Wanted) -> bytes:
    version = versions.read_whole(bucket, asked.key, asked.id, marker=False)
    return _content(bucket, version, asked.at) if version is not None else b""


def _content(bucket: OpenBucket, version: Version, at: int) -> bytes:
    fd = versions.open_content(bucket, version)
    try:
        return bucket.fs.read_at(fd, _PART_BYTES, at)
    finally:
        bucket.fs.close(fd)


def _page(bucket: OpenBucket, asked: _Wanted) -> _Page:
    items, left_bytes = list[frames.Item](), _PAGE_BYTES
    for group in listing.versions_below(bucket, listing.Wanted(start=asked.key)):
        if (key := group[0].key) < asked.key:
            continue
        if left_bytes <= 0 or len(items) >= _PAGE_ITEMS:
            return _Page(items, key)
        for version in group:
            if version.source != asked.source:
                continue
            data = None
            if not version.marker and version.size <= _SMALL_BYTES and left_bytes > 0:
                data = _content(bucket, version, 0)
                left_bytes -= len(data)
            sent = replace(version, deliveries={"": DeliveryRecord("", Status.PENDING)})
            items.append(frames.pack(sent, "", with_tags=True, data=data))
    return _Page(items, None)


# -- at the site's


def destinations(engine: Runtime, bucket: OpenBucket) -> list[str]:
    """The buckets of regions on other machines that a bucket's rules lead to."""
    replication = bucket.bucket.replication
    found = {rule.destination for rule in replication.rules} if replication is not None else set()
    return sorted(address for address in found if region_of(address) in engine.site.hosts)


def restore(engine: Runtime, bucket: OpenBucket, address: str, recall: Recall) -> Iterator[versions.Staged | None]:
    """The versions of a bucket that a region there has and the bucket lacks, staged.

    None for one that is damaged there and that the journal does not know. Raises FsreplError where that region cannot
    be read, OSError where the bucket cannot be written.
    """
    key: bytes | None = b""
    while key is not None:
        page = _read_page(recall(address, _encode(_Wanted(bucket.address, key))))
        for item in page.items:
            try:
                version = as_it_was(bucket, address, frames.unpack(item, ""))
            except ValueError as error:
                log.warning("not restored from=%s: %s", address, error)
                continue
            is_removed = (version.key, version.id) in bucket.bucket.documents.removed
            if is_removed or versions.has(bucket, version.key, version.id, marker=version.marker):
                continue
            if version.marker:
                yield versions.stage_marker(bucket, version)
                continue
            chunks = [item.data] if item.data is not None else _parts(bucket, address, version, recall)
            staged = stage(engine, bucket, address, version, chunks)
            if staged is not None or not engine.journal.versions.has_version(bucket.address, version):
                yield staged  # what the journal knows is counted from there
        key = page.rest


def _parts(bucket: OpenBucket, address: str, version: Version, recall: Recall) -> Iterator[bytes]:
    at = 0
    while at < version.size:
        part = recall(address, _encode(_Wanted(bucket.address, version.key, version.id, at)))
        if not part:
            return  # it is shorter than its record says, and so does not match it
        yield part
        at += len(part)
