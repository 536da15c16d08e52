"""Versions that a bucket lost with its store, restored from other buckets, its journal and its files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model import clock, keys
from fsrepl.model.version import NULL, Status, Version
from fsrepl.region.runtime import Runtime
from fsrepl.repair import evidence, from_hosts, from_services, good_copy, rebuild
from fsrepl.repair.target import Target
from fsrepl.storage import posix, publishing, remembered, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.view_file import open_view

_BATCH = 256


class BroughtBack(Struct, frozen=True):
    """Numbers of versions and markers: fetched from other buckets, kept in files and journal, and lost."""

    fetched: int = 0
    kept: int = 0
    lost: int = 0
    away: tuple[str, ...] = ()
    """Why other buckets could not be read."""


def bring_back(engine: Runtime, bucket: OpenBucket, recall: from_hosts.Recall) -> BroughtBack:
    """Restore the versions of a lost store, as far as they are found. Other regions are only read."""
    fetched = kept = lost = 0
    with rebuild.Rebuilder(engine.site, bucket, engine.journal) as rebuilder:
        away = tuple(sorted({*rebuilder.elsewhere.away.values()}))
        batch = _Batch(engine, bucket)
        for version in rebuilder.in_tiers.versions:
            if not versions.has(bucket, version.key, version.id):
                batch.add(versions.stage_placed(bucket, version))
                kept += 1
        batch.publish()
        for staged in _from_elsewhere(engine, bucket, rebuilder):
            batch.add(staged)
            fetched += 1
        batch.publish()
        for address, restored in _from_afar(engine, bucket, recall):
            try:
                for brought in restored:
                    if brought is None:
                        lost += 1
                    else:
                        batch.add(brought)
                        fetched += 1
            except FsreplError as error:
                away = (*away, f"{address}: {error}")
            batch.publish()
        for found in _from_journal(engine, bucket, rebuilder):
            if found is None:
                lost += 1
            else:
                batch.add(found)
                kept += 1
        batch.publish()
    return BroughtBack(fetched, kept, lost, away)


def _from_afar(
    engine: Runtime, bucket: OpenBucket, recall: from_hosts.Recall
) -> Iterator[tuple[str, Iterator[versions.Staged | None]]]:
    """The versions that buckets of S3 services, and of regions on other machines, have; by their addresses."""
    for remote in from_services.destinations(engine, bucket):
        yield remote.address, from_services.restore(engine, bucket, remote)
    for address in from_hosts.destinations(engine, bucket):
        yield address, from_hosts.restore(engine, bucket, address, recall)


class _Batch:
    """Staged versions, published together: first durable, then in the store."""

    def __init__(self, engine: Runtime, bucket: OpenBucket) -> None:
        self._engine, self._bucket = engine, bucket
        self._staged: list[versions.Staged] = []

    def add(self, staged: versions.Staged) -> None:
        self._staged.append(staged)
        if len(self._staged) >= _BATCH:
            self.publish()

    def publish(self) -> None:
        publishing.publish(self._engine.syncer, self._bucket, self._staged)
        self._staged.clear()


def _from_elsewhere(engine: Runtime, bucket: OpenBucket, rebuilder: rebuild.Rebuilder) -> Iterator[versions.Staged]:
    """The versions that other buckets received from this one, or sent to it."""
    seen: set[tuple[bytes, str]] = set()
    elsewhere, identity = rebuilder.elsewhere, remembered.identity(engine.site, bucket.bucket) or {}
    since_ns = 0
    with contextlib.suppress(KeyError, ValueError):
        since_ns = clock.parse(str(identity["created"]))
    for there in elsewhere.buckets.values():
        for path, at, name, stored in versions.stream(there, lambda *about: None):
            guess = keys.join(path, stored.name)
            try:
                version = versions.read_stored(there, at, guess, stored, name)
            except (OSError, StoreDamaged):
                continue
            if not _was_here(version, bucket, since_ns) or (version.key, version.id) in seen:
                continue
            seen.add((version.key, version.id))
            if versions.has(bucket, version.key, version.id, marker=version.marker):
                continue
            with contextlib.suppress(OSError, StoreDamaged):
                if (staged := _fetch(engine, bucket, rebuilder, path, name, stored, version)) is not None:
                    yield staged


def _was_here(version: Version, bucket: OpenBucket, since_ns: int) -> bool:
    """Whether a version of another bucket was in this one, and was not removed from it for good.

    A version from before this bucket was made belongs to an earlier bucket of that name; a null version may be as
    old as its file.
    """
    if (version.key, version.id) in bucket.bucket.documents.removed:
        return False
    if version.source == bucket.address:
        return version.id == NULL or version.created_ns >= since_ns
    recorded = version.deliveries.get(bucket.address)
    return recorded is not None and recorded.status is Status.COMPLETED


def _fetch(
    engine: Runtime,
    bucket: OpenBucket,
    rebuilder: rebuild.Rebuilder,
    path: bytes,
    name: bytes,
    stored: keys.StoredName,
    version: Version,
) -> versions.Staged | None:
    """Stage a version as it was here, with content from a good copy; None where there is no good copy."""
    elsewhere, found = rebuilder.elsewhere.records(path, name, stored, version.digest)
    gathered = rebuilder.evidence(version.key, stored, version.size, version.digest, None, {}, elsewhere, found)
    again = evidence.rebuild(gathered)
    target = Target(bucket.address, keys.join(path, stored.name), version.id, version.marker)
    copy = good_copy.stage_good_copy(engine.limiter, bucket, rebuilder.elsewhere, target, again, elsewhere)
    return versions.stage_copy(bucket, copy, again) if copy else None


def _from_journal(
    engine: Runtime, bucket: OpenBucket, rebuilder: rebuild.Rebuilder
) -> Iterator[versions.Staged | None]:
    """Versions that only the journal knows: markers, and versions that views still show; None for a lost version."""
    after = None
    while rows := engine.journal.versions.versions_after(bucket.address, after, _BATCH):
        for row in rows:
            if versions.has(bucket, row.key, row.id, marker=row.marker):
                continue
            if (row.key, row.id) not in bucket.bucket.documents.removed:
                try:
                    yield _recall(engine, bucket, rebuilder, row.key, row.id, marker=row.marker)
                except (OSError, StoreDamaged):
                    yield None
        after = rows[-1]


def _recall(
    engine: Runtime, bucket: OpenBucket, rebuilder: rebuild.Rebuilder, key: bytes, version_id: str, *, marker: bool
) -> versions.Staged | None:
    stored = keys.StoredName(keys.stored_component(keys.split(key)[1]), version_id, marker, False)
    if marker:
        version = evidence.rebuild(rebuilder.evidence(key, stored, 0, b"", None, {}, {}, frozenset()))
        return versions.stage_marker(bucket, version)
    known = engine.journal.versions.object(bucket.address, key)
    if known is None or known.id != version_id:
        return None
    with open_view(bucket, key) as view:
        if view.kind is None:
            return None
        found, name = view.found, staging.token()
        digest = view.copy_aside(name)
        inode = posix.inode_posix(bucket, view.fd, found)
    if digest != known.digest:
        staging.unstage(bucket, name)
        return None
    gathered = rebuilder.evidence(key, stored, found.st_size, digest, inode, {}, {}, frozenset())
    return versions.stage_copy(bucket, name, replace(evidence.rebuild(gathered), size=found.st_size))
