"""Every operation on every kind of object of a tree bucket: files, symlinks, directories, further names of files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.model import clock
from fsrepl.model.version import Kind, Origin, Status
from fsrepl.storage import listing
from tests.tree_deeds import differences
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World, v1

pytestmark = pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")

Make = Callable[[World, str], object]


def hard_link(world: World, key: str) -> None:
    world.write("first", b"content")
    os.link(world.path("first"), world.path(key))


KINDS: dict[str, tuple[str, Make, Make]] = {
    "file": ("key", lambda w, k: w.write(k, b"content"), lambda w, k: w.drop(k, b"other")),
    "symlink": ("key", lambda w, k: w.link(k, "target"), lambda w, k: w.link(k, "/other/target")),
    "directory": ("key/", lambda w, k: w.path(k).mkdir(), lambda w, k: w.path(k).chmod(0o700)),
    "hard link": ("key", hard_link, lambda w, k: w.path(k).write_bytes(b"other")),
}
"""How an object of each kind is made, and changed."""


def remove(world: World, key: str, bucket: str = SOURCE) -> None:
    path = world.path(key, bucket)
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def settle(world: World) -> None:
    for _ in range(3):
        world.settle()


def alike(world: World) -> None:
    settle(world)
    assert differences(world.path(), world.path(bucket=DESTINATION)) == []
    assert not world.state(SOURCE).views.stale
    assert not world.state(DESTINATION).views.stale
    assert verify(world) == []
    world.stays_quiet()


def made(world: World, kind: str) -> tuple[str, Make]:
    key, make, change = KINDS[kind]
    make(world, key)
    settle(world)
    return key, change


def by_prefix(world: World, kind: str) -> None:
    """A prefix chooses the object itself, a directory's among them."""
    world.configure(v1("key"))
    key, _ = made(world, kind)
    assert world.current(key).status is Status.COMPLETED
    assert os.path.lexists(world.path(key, DESTINATION))


def changed(world: World, kind: str) -> None:
    key, change = made(world, kind)
    change(world, key)
    alike(world)
    assert len(world.of(key, DESTINATION)) == 2


def removed_and_restored(world: World, kind: str) -> None:
    key, change = made(world, kind)
    change(world, key)
    settle(world)
    first = world.of(key)[-1]
    remove(world, key)
    settle(world)
    assert not os.path.lexists(world.path(key, DESTINATION))
    assert world.current(key, DESTINATION).marker
    world.run("object.restore", bucket=SOURCE, key=key.encode(), version_id=first.id)
    settle(world)
    assert (world.current(key).kind, world.current(key).digest) == (first.kind, first.digest)
    assert world.current(key, DESTINATION).posix == first.posix


def removed_by_command(world: World, kind: str) -> None:
    key, _ = made(world, kind)
    world.remove(key)
    alike(world)
    assert not os.path.lexists(world.path(key))
    world.remove(key, version=world.current(key).id)
    settle(world)
    assert os.path.lexists(world.path(key)), "the version below the marker is current again"
    assert not world.state(SOURCE).views.stale


def undeleted(world: World, kind: str) -> None:
    key, _ = made(world, kind)
    since = clock.stamp(world.engine.site.now())
    remove(world, key)
    settle(world)
    world.run("bucket.undelete", address=SOURCE, since=since)
    settle(world)
    assert os.path.lexists(world.path(key))
    assert os.path.lexists(world.path(key, DESTINATION))
    assert world.current(key).kind is world.current(key, DESTINATION).kind
    assert verify(world) == []


def tagged(world: World, kind: str) -> None:
    key, _ = made(world, kind)
    world.run("tag.set", bucket=SOURCE, key=key.encode(), tags={"class": "blue"})
    settle(world)
    assert world.current(key, DESTINATION).tags == {"class": "blue"}
    alike(world)
    world.run("tag.rm", bucket=SOURCE, key=key.encode(), names=["class"])
    settle(world)
    assert world.current(key, DESTINATION).tags == {}
    alike(world)


def moved(world: World, kind: str) -> None:
    key, _ = made(world, kind)
    world.path(key).rename(world.path("moved"))
    alike(world)
    assert not os.path.lexists(world.path(key, DESTINATION))
    assert os.path.lexists(world.path("moved", DESTINATION))


def backfilled(world: World, kind: str) -> None:
    """Made before the rule."""
    world.run("replication.rm", source=SOURCE)
    key, _ = made(world, kind)
    world.configure(v1())
    settle(world)
    assert not os.path.lexists(world.path(key, DESTINATION))
    world.run("replication.backfill", source=SOURCE)
    alike(world)


def replicas_of_a_replica(world: World, kind: str) -> None:
    """A backfill sends a replica on."""
    key, _ = made(world, kind)
    world.run("bucket.create", bucket="west/third", versioning=True, trees=True)
    world.run("bucket.create", bucket="east/third", versioning=True, trees=True)
    world.configure(v1(to="east/third"), source=DESTINATION)
    world.run("replication.backfill", source=DESTINATION)
    settle(world)
    assert differences(world.path(), world.path(bucket="east/third")) == []
    assert world.current(key, "east/third").source == DESTINATION


def both_ways(world: World, kind: str) -> None:
    """Changed and removed on the other side."""
    world.configure(v1(to=SOURCE), source=DESTINATION)
    key, _ = made(world, kind)
    if kind == "directory":
        world.path(key, DESTINATION).chmod(0o711)
    elif kind == "symlink":
        world.link(key, "elsewhere", DESTINATION)
    else:
        world.path(key, DESTINATION).write_bytes(b"theirs")
    alike(world)
    assert world.current(key).origin is Origin.REPLICA
    remove(world, key, DESTINATION)
    alike(world)
    assert not os.path.lexists(world.path(key))


def without_journal(world: World, kind: str) -> None:
    key, change = made(world, kind)
    change(world, key)
    settle(world)
    ids = world.ids(SOURCE), world.ids(DESTINATION)
    world.restart(without_journal=True)
    alike(world)
    assert (world.ids(SOURCE), world.ids(DESTINATION)) == ids


def without_attributes(world: World, kind: str) -> None:
    """A copy of the destination's tree without attributes: records are rebuilt from the source's."""
    key, _ = made(world, kind)
    for path in world.path(".fsrepl/versions", DESTINATION).rglob("*;*"):
        for name in os.listxattr(path):
            os.removexattr(path, name)
    world.restart(without_journal=True)
    settle(world)
    assert world.current(key, DESTINATION).kind is world.current(key).kind
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert verify(world) == []


def store_lost(world: World, kind: str) -> None:
    """.fsrepl is removed, and adopted again with what the replica has."""
    key, _ = made(world, kind)
    shutil.rmtree(world.path(".fsrepl"))
    world.look()
    world.run("bucket.adopt", bucket=SOURCE)
    alike(world)
    assert world.engine.site.bucket(SOURCE).trees
    assert len(world.of(key)) == 1


def repaired(world: World, kind: str) -> None:
    """A lost version of the destination comes back, with its view."""
    key, _ = made(world, kind)
    name = f"{key};*" if key.endswith("/") else "key;*"
    (stored,) = world.path(".fsrepl/versions", DESTINATION).glob(name)
    stored.unlink()
    remove(world, key, DESTINATION)
    world.restart(without_journal=True)
    settle(world)
    assert any(problem == "Missing" for _, _, problem, _ in verify(world, repair=True))
    alike(world)


def expired(world: World, kind: str) -> None:
    key, _ = made(world, kind)
    rule = {"ID": "r", "Filter": {}, "Status": "Enabled", "Expiration": {"Date": "2020-01-01T00:00:00Z"}}
    world.run("lifecycle.put", bucket=SOURCE, document={"Rules": [rule]})
    world.run("lifecycle.run", bucket=SOURCE)
    assert not os.path.lexists(world.path(key))
    assert world.current(key).origin is Origin.LIFECYCLE


def listed(world: World, kind: str) -> None:
    key, _ = made(world, kind)
    with world.engine.site.bucket(DESTINATION).open() as bucket:
        entries, _ = listing.entries(bucket, b"key", versions=False, page=listing.Page())
        assert [entry.version.key for entry in entries] == [key.encode()]
        found = listing.find(bucket, key.encode(), None).version
        assert b"".join(listing.content(bucket, found)) == {
            Kind.FILE: b"content", Kind.LINK: b"target", Kind.DIRECTORY: b"",
        }[found.kind]  # fmt: skip


OPERATIONS = (
    by_prefix, changed, removed_and_restored, removed_by_command, undeleted, tagged, moved, backfilled,
    replicas_of_a_replica, both_ways, without_journal, without_attributes, store_lost, repaired, expired, listed,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_each_operation_knows_each_kind(memory: Path, operation: Callable[[World, str], None], kind: str) -> None:
    with World(memory / "world", trees=True) as world:
        operation(world, kind)
