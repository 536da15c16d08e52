"""A source whose disk is dead is filled again from an S3 service."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fsrepl.errors import Refused
from fsrepl.model import attributes
from fsrepl.model.version import Status
from fsrepl.remote.bucket import sums_of
from fsrepl.repair import from_services
from tests.remote.conftest import EACH
from tests.services import RemoteWorld, Service, found_in
from tests.verifying import verify
from tests.world import SOURCE


@EACH
@pytest.mark.parametrize("without_journal", [False, True])
def test_a_dead_source_comes_back_from_the_service(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch, without_journal: bool
) -> None:
    """G5, G7: all versions, with ids, times and metadata; what was deleted stays so, and nothing is sent again."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path / "site", service) as world:
        for data in (b"one", b"two"):
            world.write("d/k", data)
            world.write("gone", data)
            world.settle()
        world.unlink("gone")
        world.write("big", os.urandom(1 << 20) * 2)
        world.write(os.fsdecode(b"caf\xe9"), b"latin")
        world.drop("tagged", b"tagged", tags={"class": "blue"})
        path = world.path("d/k")
        path.chmod(0o640)
        os.utime(path, ns=(0, 1_700_000_000_123_456_789))
        os.setxattr(path, "user.long", b"x" * 3000)
        world.settle()
        tree, ids, records = world.tree(SOURCE), world.ids(SOURCE), world.records(SOURCE)
        look, there = world.look_of("d/k"), found_in(bucket)
        monkeypatch.setattr(from_services, "_SMALL_BYTES", 5)
        shutil.rmtree(world.settings.regions["east"].path)
        world.restart(without_journal=without_journal)
        answer = world.run("region.add", name="east", path=str(tmp_path / "disk2"), replace=True)
        assert answer["NotAsked"] == []
        world.settings = world.engine.settings
        world.settle()
        assert world.tree(SOURCE) == tree
        assert world.look_of("d/k") == look
        assert os.getxattr(world.path("tagged"), attributes.TAG + "class") == b"blue"
        if without_journal:  # then a marker's id is a new one
            is_marker = {at for at in world.records(SOURCE) if world.records(SOURCE)[at][0] is None}
            assert {at for at in world.records(SOURCE) if at not in is_marker} <= records.keys()
            assert [v.marker for v in world.of("gone")] == [True, False, False]
        else:
            assert world.ids(SOURCE) == ids
        posix = {at: record[:3] for at, record in records.items() if record[0] is not None}
        assert {at: record[:3] for at, record in world.records(SOURCE).items() if record[0] is not None} == posix
        assert world.statuses() == {Status.COMPLETED}
        assert found_in(bucket) == there
        assert verify(world) == []


def test_damage_there_is_not_restored(tmp_path: Path, service: Service) -> None:
    """G3: content that does not match its BLAKE3 is left out, and the number of lost versions says so."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path / "site", service) as world:
        world.write("k", b"data")
        world.settle()
        (row,) = bucket.all_versions()
        head = bucket.head("k", row.id)
        assert head is not None
        bucket.put("k", b"atad", 4, sums_of(b"atad"), head.metadata)
        bucket.remove("k", row.id)
        shutil.rmtree(world.path(bucket=SOURCE))
        answer = world.run("bucket.adopt", bucket=SOURCE, although_away=True)
        assert (answer["Fetched"], answer["Lost"]) == (0, 1)
        world.settle()
        assert world.tree(SOURCE) == {}


def test_a_service_that_is_away_is_said_before_anything_is_restored(tmp_path: Path, service: Service) -> None:
    """Without it versions would be lost: that is a decision of a person."""
    service.make_bucket()
    with RemoteWorld(tmp_path / "site", service) as world:
        world.write("k", b"data")
        world.settle()
        shutil.rmtree(world.path(bucket=SOURCE))
        service.stop()
        with pytest.raises(Refused, match="cannot be reached"):
            world.run("bucket.adopt", bucket=SOURCE)
        service.start()
        service.make_bucket()
        assert world.run("bucket.adopt", bucket=SOURCE)["Fetched"] == 0


def test_a_new_site_is_filled_from_the_service(tmp_path: Path, service: Service) -> None:
    """G5, G7: disk, settings and journal are gone; the service has all of it but the markers' ids."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path / "old", service) as world:
        for data in (b"one", b"two"):
            world.write("d/k", data)
            world.write("gone", data)
            world.settle()
        world.unlink("gone")
        world.settle()
        tree = world.tree(SOURCE)
        ids = {at for at, record in world.records(SOURCE).items() if record[0] is not None}
    shutil.rmtree(tmp_path / "old")
    there = found_in(bucket)
    with RemoteWorld(tmp_path / "new", service) as world:
        answer = world.run("region.add", name="east", path=str(tmp_path / "disk2"), replace=True)
        assert (answer["Refilled"], answer["NotAsked"]) == (5, [])
        world.settings = world.engine.settings
        world.settle()
        assert world.tree(SOURCE) == tree
        assert {at for at, record in world.records(SOURCE).items() if record[0] is not None} == ids
        assert [v.marker for v in world.of("gone")] == [True, False, False]
        world.run("replication.backfill", source=SOURCE, statuses=["COMPLETED"])
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert found_in(bucket) == there
