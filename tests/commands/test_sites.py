"""Sites and regions: which are made, which are refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl import settings
from fsrepl.commands import sites
from fsrepl.daemon.lock import Lock
from fsrepl.errors import Usage
from fsrepl.model.version import Origin, Status
from fsrepl.settings import reading
from tests.verifying import verify
from tests.world import SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "site") as found:
        yield found


def everything(top: Path) -> dict[str, bytes | None]:
    """All paths below a folder, with the content of files."""
    return {str(p.relative_to(top)): p.read_bytes() if p.is_file() else None for p in sorted(top.rglob("*"))}


# -- the site


def test_a_refused_site_leaves_nothing_behind(tmp_path: Path) -> None:
    """Section 5: the first region is fine, the second cannot be; neither is made."""
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    before = everything(tmp_path)
    refused: list[dict[str, str | None]] = [
        {"a": str(tmp_path / "deep/a"), "b": str(tmp_path / "file")},
        {"a": str(tmp_path / "deep/a"), "b": str(tmp_path / "deep/a/b")},
        {"a": str(tmp_path / "real"), "b": str(tmp_path / "link/b")},
        {"a": str(tmp_path / "real"), "b": "/proc/b"},
        {"a b": None},
    ]
    for regions in refused:
        with pytest.raises(Usage):
            sites.init(tmp_path / "site", regions)
        assert everything(tmp_path) == before, regions


def test_settings_keep_their_owner_mode_and_place(world: World, tmp_path: Path) -> None:
    """A command that changes fsrepl.toml changes the file that a link leads to, and nothing else about it."""
    elsewhere = tmp_path / "managed.toml"
    file = world.home / settings.FILE
    assert file.stat().st_mode & 0o777 == 0o644
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    elsewhere.chmod(0o640)
    world.run("region.add", name="north", path=str(tmp_path / "north"))
    assert file.is_symlink()
    assert elsewhere.stat().st_mode & 0o777 == 0o640
    assert "[regions.north]" in elsewhere.read_text()


# -- regions


def test_a_region_belongs_to_one_site_at_a_time(world: World, tmp_path: Path) -> None:
    """Two daemons in one region would make two versions of each file: the second is refused while the first runs."""
    east = world.settings.regions["east"].path
    before = everything(east)
    with Lock(world.settings.state) as lock:
        lock.acquire()
        with pytest.raises(Usage, match="belongs to a site that is running"):
            sites.init(tmp_path / "other", {"north": None, "east": str(east)})
    assert everything(east) == before
    assert not (tmp_path / "other").exists()
    sites.init(tmp_path / "other", {"north": None, "east": str(east)})
    assert not world.engine.site.online("east"), "it was taken, and the first site keeps its hands off"
    world.run("region.add", name="east", path=str(east))
    assert world.engine.site.online("east")
    world.run("region.forget", name="east")
    assert "site" not in json.loads((east / ".fsrepl-region.json").read_text())


def test_regions_are_attached_again_after_the_state_was_lost(world: World) -> None:
    """The identities are in the regions: attaching these again finds the buckets, and their history is unchanged."""
    world.write("k", b"k")
    world.settle()
    before = world.ids(SOURCE)
    world.engine.close()
    for path in world.settings.state.iterdir():
        path.unlink()
    world.engine = type(world.engine)(world.settings)
    assert world.engine.site.buckets == {}
    for name, region in world.settings.regions.items():
        world.run("region.add", name=name, path=str(region.path))
    assert world.ids(SOURCE) == before
    world.write("new", b"new")
    world.settle()
    assert world.tree("west/dst") == {"k": b"k", "new": b"new"}


def lose(world: World, region: str) -> None:
    """Replace a dead disk with a new one."""
    shutil.rmtree(world.settings.regions[region].path)
    world.look()
    answer = world.run("region.add", name=region, path=str(world.settings.regions[region].path), replace=True)
    assert answer["NotAsked"] == []


def test_a_new_disk_keeps_the_settings_of_its_region(world: World, tmp_path: Path) -> None:
    """Section 4: --replace changes where a region is, and not how its files are shared."""
    world.set_sharing(west="private")
    world.run("region.add", name="west", path=str(tmp_path / "new"), replace=True)
    west = reading.load(world.settings.path).regions["west"]
    assert (west.path, west.sharing) == (tmp_path / "new", "private")


def test_what_a_daemon_makes_is_as_open_as_if_its_user_had_made_it(world: World, tmp_path: Path) -> None:
    """Section 1: people drop files into a bucket. The daemon's own umask would exclude all but its own user."""
    before = os.umask(0o077)
    try:
        world.run("region.add", name="north", path=str(tmp_path / "disk/north"), umask=0o022)
        world.run("bucket.create", bucket="north/open", versioning=True, umask=0o022)
        world.run("bucket.create", bucket="north/shut", versioning=True, umask=0o027)
    finally:
        os.umask(before)
    north = tmp_path / "disk/north"
    modes = {p.name: p.stat().st_mode & 0o777 for p in (north.parent, north, north / "open", north / "shut")}
    assert modes == {"disk": 0o755, "north": 0o755, "open": 0o755, "shut": 0o750}
    assert (north / "open/.fsrepl").stat().st_mode & 0o777 == 0o700


def test_a_new_disk_is_filled_with_what_was_delivered(world: World) -> None:
    """Section 5, --replace: every version and marker is delivered again, with the ids and times that it had."""
    for data in (b"1", b"2"):
        world.write("k", data)
        world.write("gone", data)
        world.settle()
    world.path("gone").unlink()
    world.settle()
    before = world.ids(SOURCE)
    lose(world, "west")
    world.settle()
    assert world.ids("west/dst") == before == world.ids(SOURCE)
    assert world.tree("west/dst") == {"k": b"2"}
    assert world.statuses() == {Status.COMPLETED}


def test_a_new_disk_gets_back_versions_written_on_the_lost_one(world: World) -> None:
    """Section 5, --replace: where rules lead both ways, the other side has them."""
    world.run("replication.enable", source="west/dst", destination=SOURCE)
    world.write("here", b"here")
    world.write("there", b"there", "west/dst")
    world.settle()
    before = world.ids(SOURCE)
    lose(world, "east")
    world.settle()
    assert world.ids(SOURCE) == before == world.ids("west/dst")
    assert world.tree(SOURCE) == {"here": b"here", "there": b"there"}
    origins = {(key, at): world.of(key, at)[0].origin for key in ("here", "there") for at in (SOURCE, "west/dst")}
    assert origins["here", SOURCE] is origins["there", "west/dst"] is Origin.USER, "each version is its maker's own"
    assert origins["there", SOURCE] is origins["here", "west/dst"] is Origin.REPLICA
    assert world.of("here")[0].status is Status.COMPLETED
    assert verify(world) == []
    world.stays_quiet()


def test_a_source_that_is_away_is_named(tmp_path: Path) -> None:
    """Section 5, --replace: the other sources fill the disk; versions from the one that is away come by `verify
    --repair`."""
    with World(tmp_path, buckets=(SOURCE, "west/dst", "north/src")) as world:
        world.run("replication.enable", source="north/src", destination="west/dst")
        world.write("a", b"a")
        world.write("b", b"b", "north/src")
        world.settle()
        north = world.settings.regions["north"].path
        north.rename(tmp_path / "away")
        west = world.settings.regions["west"].path
        shutil.rmtree(west)
        world.look()
        answer = world.run("region.add", name="west", path=str(west), replace=True)
        (away,) = answer["NotAsked"]  # type: ignore[misc]
        assert away.startswith("north/src: region north is offline")
        world.settle()
        assert world.tree("west/dst") == {"a": b"a"}
