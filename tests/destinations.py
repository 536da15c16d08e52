"""Destinations of each kind, seen alike: a directory here, a region over ssh, a bucket of an S3 service."""

from __future__ import annotations

import abc
import shutil
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from fsrepl.model import digests
from fsrepl.model.version import Posix, Status, Version
from fsrepl.remote import form
from fsrepl.remote.bucket import RemoteBucket, sums_of
from tests.hosts import FarWorld
from tests.services import THERE, RemoteWorld, Service
from tests.world import DESTINATION, SOURCE, World


class Seen(Struct, frozen=True):
    """A version as a destination has it, or a marker. digest: of the content that is there now.

    A marker of an S3 service has an id of the service's own, and nothing else.
    """

    marker: bool
    id: str = ""
    created_ns: int = 0
    digest: bytes = b""
    posix: Posix | None = None
    attrs: tuple[tuple[str, bytes], ...] = ()
    tags: tuple[tuple[str, str], ...] = ()


def seen(version: Version, digest: bytes) -> Seen:
    attrs, tags = tuple(sorted(version.attrs.items())), tuple(sorted(version.tags.items()))
    return Seen(False, version.id, version.created_ns, digest, version.posix, attrs, tags)


class Destination(abc.ABC):
    """A world, and the bucket that its source is replicated to."""

    world: World
    address = DESTINATION

    @abc.abstractmethod
    def history(self) -> dict[bytes, list[Seen]]:
        """All that the bucket has, by key, oldest first."""

    @abc.abstractmethod
    def shown(self) -> dict[str, bytes]:
        """The content that whoever looks there sees."""

    @abc.abstractmethod
    def go_away(self) -> None:
        """Make the destination unreachable, as an unplugged disk or a network that is gone."""

    @abc.abstractmethod
    def come_back(self) -> None: ...

    @abc.abstractmethod
    def lose_bucket(self) -> None:
        """Remove the bucket there."""

    @abc.abstractmethod
    def damage(self, key: str, data: bytes) -> None:
        """Exchange the content of the current version there, and leave all else."""

    @abc.abstractmethod
    def write_there(self, key: str, data: bytes) -> None:
        """What a person or another program writes there, without fsrepl."""

    def wanted(self) -> dict[bytes, list[Seen]]:
        """What the bucket is to have: what the source has."""
        return {
            key: [self.marker(each) if each.marker else seen(each, each.digest) for each in found]
            for key, found in self.world.history(SOURCE).items()
        }

    def marker(self, version: Version) -> Seen:
        return Seen(True, version.id, version.created_ns)

    def is_alike(self) -> bool:
        """Whether all is delivered, and there with its identity, content and metadata."""
        assert self.world.statuses() == {Status.COMPLETED}
        assert self.history() == self.wanted()
        assert self.shown() == self.world.tree(SOURCE)
        return True


class Directory(Destination):
    """Another disk of this machine, or with a FarWorld one of another machine."""

    def __init__(self, world: World) -> None:
        self.world = world

    def history(self) -> dict[bytes, list[Seen]]:
        found = self.world.history(DESTINATION)
        return {key: [self._seen(each) for each in versions] for key, versions in found.items()}

    def _seen(self, version: Version) -> Seen:
        if version.marker:
            return self.marker(version)
        return seen(version, digests.of(self._stored(version).read_bytes()))

    def _stored(self, version: Version) -> Path:
        return self.world.path(f".fsrepl/versions/{version.key.decode()};{version.id}", DESTINATION)

    def shown(self) -> dict[str, bytes]:
        return self.world.tree(DESTINATION)

    def go_away(self) -> None:
        self.world.away("west")

    def come_back(self) -> None:
        self.world.back("west")

    def lose_bucket(self) -> None:
        path = self.world.path(bucket=DESTINATION)
        path.rename(path.parent.parent / "lost")

    def damage(self, key: str, data: bytes) -> None:
        stored = self._stored(self.world.current(key, DESTINATION))
        aside = self.world.home / "damaged"  # a file of its own: the view may be the same file
        shutil.copy2(stored, aside)
        aside.write_bytes(data)
        aside.replace(stored)

    def write_there(self, key: str, data: bytes) -> None:
        self.world.write(key, data, DESTINATION)


class Far(Directory):
    """A region over ssh."""

    world: FarWorld

    def go_away(self) -> None:
        self.world.why_away = "the network is gone"
        self.world.disconnect()

    def come_back(self) -> None:
        self.world.why_away = ""


def _markers_last(found: dict[bytes, list[Seen]]) -> dict[bytes, list[Seen]]:
    """A list of an S3 service has versions and markers apart, with times in whole seconds."""
    return {key: sorted(each, key=lambda one: one.marker) for key, each in sorted(found.items())}


class Bucket(Destination):
    """A bucket of an S3 service. The world's requests go to a port where nothing listens while it is away."""

    address = THERE

    def __init__(self, world: RemoteWorld, away: Callable[[bool], None]) -> None:
        self.world, self._away = world, away

    @property
    def bucket(self) -> RemoteBucket:
        service: Service = self.world.service  # type: ignore[attr-defined]
        return service.bucket()

    def marker(self, version: Version) -> Seen:
        return Seen(True)

    def history(self) -> dict[bytes, list[Seen]]:
        found: dict[bytes, list[Seen]] = {}
        for row in reversed(list(self.bucket.all_versions())):
            found.setdefault(row.name.encode(), []).append(self._seen(row.name, row.id, row.marker))
        return _markers_last(found)

    def wanted(self) -> dict[bytes, list[Seen]]:
        return _markers_last(super().wanted())

    def _seen(self, name: str, remote: str, marker: bool) -> Seen:
        if marker:
            return Seen(True)
        bucket = self.bucket
        head, data = bucket.head(name, remote), b"".join(bucket.content(name, remote))
        assert head is not None
        if head.identity is None:
            return Seen(False, digest=digests.of(data))
        sidecar = b"".join(bucket.content(at)) if (at := head.metadata.get(form.SIDECAR)) else b""
        version = form.version_of(name, head.metadata, len(data), sidecar, tags=bucket.tags(name, remote))
        return seen(version, digests.of(data))

    def shown(self) -> dict[str, bytes]:
        rows = [row for row in self.bucket.all_versions() if row.latest and not row.marker]
        return {row.name: b"".join(self.bucket.content(row.name)) for row in rows}

    def go_away(self) -> None:
        self._away(True)

    def come_back(self) -> None:
        self._away(False)

    def lose_bucket(self) -> None:
        bucket = self.bucket
        for row in list(bucket.all_versions()):
            bucket.remove(row.name, row.id)
        bucket.client.call("delete_bucket", Bucket=bucket.name)

    def damage(self, key: str, data: bytes) -> None:
        bucket = self.bucket
        (row,) = [row for row in bucket.versions_of(key) if row.latest]
        head = bucket.head(key, row.id)
        assert head is not None
        bucket.put(key, data, len(data), sums_of(data), head.metadata)
        bucket.remove(key, row.id)

    def write_there(self, key: str, data: bytes) -> None:
        self.bucket.put(key, data, len(data), sums_of(data), {})
