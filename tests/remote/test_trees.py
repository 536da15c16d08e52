"""A tree bucket that is replicated to an S3 service: directories, symlinks and hard links are objects there as well."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fsrepl.model.version import Status
from tests.remote.conftest import EACH
from tests.services import RemoteWorld, Service, found_in
from tests.tree_deeds import differences
from tests.verifying import verify
from tests.world import SOURCE


def filled(world: RemoteWorld) -> None:
    top = world.path()
    world.write("d/file", b"content")
    world.path("empty/below").mkdir(parents=True)
    world.path("empty").chmod(0o2750)
    os.setxattr(world.path("empty"), "user.note", b"\xff\x00")
    world.link("d/link", "../nothing")
    world.link("absolute", "/etc/hostname")
    world.settle()
    os.link(top / "d/file", top / "other name")
    world.settle()
    world.path("empty").chmod(0o700)
    world.path("gone").mkdir()
    world.link("gone link", "x")
    world.settle()
    world.path("gone").rmdir()
    world.path("gone link").unlink()
    if os.geteuid() == 0:
        os.chown(world.path("empty"), 1000, 1001)
        os.chown(world.path("d/link"), 1000, 1001, follow_symlinks=False)
    os.utime(world.path("d/link"), ns=(0, 1_700_000_000_123_456_789), follow_symlinks=False)
    world.settle()


@EACH
def test_a_tree_is_objects_of_the_kinds_that_s3_knows(tmp_path: Path, service: Service) -> None:
    """A folder object ends in a slash and is empty; a symlink has its target as content; their Content-Type says so."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service, trees=True) as world:
        filled(world)
        assert world.statuses() == {Status.COMPLETED}
        found = {each.key: each for each in found_in(bucket) if each.latest}
        assert sorted(key for key in found if not found[key].marker) == [
            "absolute", "d/", "d/file", "d/link", "empty/", "empty/below/", "other name",
        ]  # fmt: skip
        assert found["gone/"].marker
        assert found["gone link"].marker
        assert (found["empty/"].data, found["empty/"].metadata["mode"]) == (b"", "40700")
        assert (found["d/link"].data, found["d/link"].metadata["mode"]) == (b"../nothing", "120777")
        assert (found["other name"].data, found["d/file"].data) == (b"content", b"content")
        kinds = {}
        for row in bucket.all_versions():
            if row.latest and not row.marker:
                head = bucket.client.call("head_object", Bucket=bucket.name, Key=row.name)
                kinds[row.name] = head["ContentType"]
        assert {key: kind for key, kind in kinds.items() if "link" in kind or "directory" in kind} == {
            "absolute": "inode/symlink", "d/link": "inode/symlink",
            "d/": "application/x-directory", "empty/": "application/x-directory",
            "empty/below/": "application/x-directory",
        }  # fmt: skip
        assert verify(world) == []


@EACH
@pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")
@pytest.mark.parametrize("without_journal", [False, True])
def test_a_lost_tree_comes_back_whole(tmp_path: Path, service: Service, without_journal: bool) -> None:
    """G5, G7: with empty directories, symlinks, owners and hard links; rsync finds nothing to do."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path / "site", service, trees=True) as world:
        filled(world)
        was = tmp_path / "was"
        there, ids = found_in(bucket), world.ids(SOURCE)
        world.settings.regions["east"].path.rename(was)
        world.restart(without_journal=without_journal)
        answer = world.run("region.add", name="east", path=str(tmp_path / "disk2"), replace=True)
        assert answer["NotAsked"] == []
        world.settings = world.engine.settings
        for _ in range(3):
            world.settle()
        assert world.engine.site.bucket(SOURCE).trees
        assert differences(was / "src", world.path()) == []
        assert world.path("other name").stat().st_ino == world.path("d/file").stat().st_ino
        if not without_journal:
            assert world.ids(SOURCE) == ids
        assert world.statuses() == {Status.COMPLETED}
        assert found_in(bucket) == there
        assert verify(world) == []
        world.stays_quiet()
