"""Versions that a bucket lost with its disk, restored from the buckets of S3 services that it was replicated to.

An object's metadata has the version's id, time, BLAKE3 and metadata. A marker has none there: the journal knows its id,
and where that is lost too the marker gets a new one, later than the versions that it followed there. Versions that were
made elsewhere, or were removed here for good, are left out. Content is fetched many objects side by side.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import clock, digests, keys
from fsrepl.model.address import region_of
from fsrepl.model.version import DeliveryRecord, Origin, Status, Version
from fsrepl.region.runtime import Runtime
from fsrepl.remote import form
from fsrepl.remote.bucket import Listed, RemoteBucket
from fsrepl.s3 import rules
from fsrepl.storage import staging, versions
from fsrepl.storage.bucket import OpenBucket

log = logging.getLogger("fsrepl")

_AT_ONCE = 16
_NAMES = 64
"""How many names are fetched together."""
_SMALL_BYTES = 1 << 20
"""The content of a name's versions up to this size together is fetched beside that of other names, into memory."""


class Fetched(Struct, frozen=True):
    """A version there. data: its content, None where it is large. id: the service's."""

    version: Version
    name: str
    id: str
    data: bytes | None = None


def destinations(engine: Runtime, bucket: OpenBucket) -> list[RemoteBucket]:
    """The buckets of services that a bucket's rules lead to."""
    replication, services = bucket.bucket.replication, engine.site.services
    found = {rule.destination for rule in replication.rules} if replication is not None else set()
    return [services[region_of(a)].bucket(a) for a in sorted(found) if region_of(a) in services]


def restore(engine: Runtime, bucket: OpenBucket, remote: RemoteBucket) -> Iterator[versions.Staged | None]:
    """The versions of a bucket that a service has and the bucket lacks, staged.

    None for one that is damaged there and that the journal does not know.

    Raises FsreplError where the service cannot be read, OSError where the bucket cannot be written.
    """
    groups = itertools.groupby(remote.all_versions(), key=lambda row: row.name)
    names = ([*group] for _, group in groups)
    ids = clock.VersionIds(*engine.journal.versions.newest(bucket.address))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while batch := [*itertools.islice(names, _NAMES)]:
            for rows, found in zip(batch, pool.map(lambda rows: _fetch(bucket, remote, rows), batch), strict=True):
                for each in found:
                    if versions.has(bucket, each.version.key, each.version.id):
                        continue
                    chunks = [each.data] if each.data is not None else remote.content(each.name, each.id)
                    staged = stage(engine, bucket, remote.address, each.version, chunks)
                    if staged is not None or not engine.journal.versions.has_version(bucket.address, each.version):
                        yield staged  # what the journal knows is counted from there
                for marker in _markers(engine, bucket, remote, rows, found, ids):
                    if not versions.has(bucket, marker.key, marker.id, marker=True):
                        yield versions.stage_marker(bucket, marker)


def _fetch(bucket: OpenBucket, remote: RemoteBucket, rows: Sequence[Listed]) -> list[Fetched]:
    """The versions of one name that are this bucket's. Runs beside others."""
    found, left_bytes = [], _SMALL_BYTES
    for row in rows:
        head = remote.head(row.name, row.id) if not row.marker else None
        if head is None or head.identity is None or head.metadata.get("fsrepl-origin") != _origin(bucket):
            continue
        sidecar = b""
        if name := head.metadata.get(form.SIDECAR):
            sidecar = b"".join(remote.content(remote.prefix + name))
        tags = remote.tags(row.name, row.id)
        try:
            version = form.version_of(row.name, head.metadata, head.size, sidecar, tags=tags, prefix=remote.prefix)
        except StoreDamaged as error:
            log.warning("not restored from=%s: %s", remote.address, error)
            continue
        if (version.key, version.id) in bucket.bucket.documents.removed:
            continue
        data = b"".join(remote.content(row.name, row.id)) if head.size <= left_bytes else None
        left_bytes -= len(data or b"")
        found.append(Fetched(as_it_was(bucket, remote.address, version), row.name, row.id, data))
    return found


def _origin(bucket: OpenBucket) -> str:
    return f"replica:{bucket.address}"


def as_it_was(bucket: OpenBucket, address: str, version: Version) -> Version:
    """A version as its source had it: delivered to the bucket that has it, and to be delivered to others."""
    version = replace(version, origin=Origin.USER, source="", storage_class="")
    posix = version.posix
    if posix is not None and posix.uid < 0:  # its owner was not sent
        version = replace(version, posix=replace(posix, uid=bucket.fs.uid, gid=bucket.fs.stat_fd(bucket.fd).st_gid))
    deliveries = rules.choose(bucket.bucket.replication, version)
    if (recorded := deliveries.get(address)) is not None:
        deliveries[address] = replace(recorded, status=Status.COMPLETED)
    else:
        deliveries[address] = DeliveryRecord("", Status.COMPLETED)
    return replace(version, deliveries=deliveries)


def stage(
    engine: Runtime, bucket: OpenBucket, address: str, version: Version, chunks: Iterable[bytes]
) -> versions.Staged | None:
    """Write a version into .fsrepl/tmp; None where its content does not match its BLAKE3. address: where it is from."""
    name = staging.token()
    fd = bucket.fs.create(bucket.tmp, name)
    hashed = digests.Passing(engine.limiter.paced(chunks, lambda: bucket.fs.interrupted))
    try:
        for chunk in hashed:
            bucket.fs.write(fd, chunk)
    except BaseException:
        staging.unstage(bucket, name)
        raise
    finally:
        bucket.fs.close(fd)
    if hashed.digest() != version.digest:
        staging.unstage(bucket, name)
        where = address, keys.shown(version.key), version.id
        log.error('damaged bucket=%s key="%s" version=%s: its content does not match its BLAKE3', *where)
        return None
    return versions.stage_copy(bucket, name, version)


def _markers(
    engine: Runtime, bucket: OpenBucket, remote: RemoteBucket, rows: Sequence[Listed], found: Sequence[Fetched],
    ids: clock.VersionIds,
) -> Iterator[Version]:  # fmt: skip
    """The markers of one name, each with the id that the journal has, or with a new one."""
    if not found:
        return  # no version of ours was there before it
    key = found[0].version.key
    known = {row.remote: row for row in engine.journal.remote.of_keys(remote.address, [key]).get(key, [])}
    put_at = {row.id: row.modified_s for row in rows}
    for row in sorted((row for row in rows if row.marker), key=lambda row: row.modified_s):
        if (mine := known.get(row.id)) is not None:
            marker = Version(key, mine.id, mine.created_ns, True)
        else:
            before = [f.version.created_ns for f in found if row.latest or put_at[f.id] <= row.modified_s]
            version_id, created_ns = ids.next(max(int(row.modified_s * 1e9), *(ns + 1 for ns in before), 0))
            marker = Version(key, version_id, created_ns, True)
        if (marker.key, marker.id) not in bucket.bucket.documents.removed:
            yield as_it_was(bucket, remote.address, marker)
