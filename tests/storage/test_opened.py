"""`.fsrepl` and the state are made private again when a user opens them; where a person must act, a command is
printed."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.commands import doctor, doctor_facts, status
from fsrepl.commands.doctor import Finding, Level
from fsrepl.daemon import live
from fsrepl.storage import privacy
from tests.doubles import UnsyncedFs
from tests.storage.test_privacy import ACL_NAME
from tests.views.test_directories import LETS_1001_IN
from tests.world import DESTINATION, SOURCE, USER, World

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


@pytest.fixture
def world(memory: Path) -> Iterator[World]:
    with World(memory) as made:
        made.write("d/k", b"k")
        made.write("gone", b"private")
        made.settle()
        made.unlink("gone")
        made.settle()
        yield made


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def probe(world: World) -> None:
    """Run the check that each region makes every second."""
    for region in world.engine.regions.values():
        region.probe_buckets()


def is_closed(world: World, bucket: str) -> bool:
    """Whether other users have no access, and nothing in it is open that is not a view too."""
    meta = world.path(".fsrepl", bucket)
    below = [path for path in meta.rglob("*") if path.is_dir() or path.stat().st_nlink == 1]
    return not any(path.stat().st_mode & 0o077 for path in [meta, *below])


def found(world: World) -> list[Finding]:
    site = world.engine.site
    return doctor.findings(doctor_facts.facts(site, live.status(world.engine), None))


def typed(finding: Finding) -> str:
    """The command that a finding recommends."""
    match = re.search("`([^`]+)`", finding.do)
    assert match, finding
    return match[1]


@pytest.mark.parametrize("acl", [False, True], ids=["chmod", "setfacl"])
def test_what_opens_a_whole_bucket_opens_no_stored_version(
    world: World, acl: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Section 2: `chmod -R a+rX` and `setfacl -R` are undone on the store, and that is reported."""
    caplog.set_level(logging.INFO)
    top = world.path()
    if acl:
        for path in (top, *top.rglob("*")):
            os.setxattr(path, ACL_NAME, LETS_1001_IN)
    else:
        sh(f"chmod -R a+rX {top}")
    probe(world)
    assert is_closed(world, SOURCE)
    assert ACL_NAME not in os.listxattr(world.path(".fsrepl"))
    assert f"opened bucket={SOURCE}: others could look into .fsrepl" in caplog.text
    shown = next(
        b for b in status.status(world.engine.site, live.status(world.engine))["buckets"] if b["bucket"] == SOURCE
    )
    assert "it is closed again" in shown["exposed"]
    assert [f.level for f in found(world) if (f.area, f.where) == ("privacy", SOURCE)] == [Level.WARNING]
    world.settle()
    assert world.tree(DESTINATION) == {"d/k": b"k"}


class RacingFs(UnsyncedFs):
    """What is closed first is removed by another step just before."""

    raced = False

    def open_inode(self, at: int, name: bytes) -> int:
        if not self.raced:
            self.raced = True
            os.unlink(name, dir_fd=at)
        return super().open_inode(at, name)


def test_what_goes_meanwhile_keeps_nothing_else_open(tmp_path: Path) -> None:
    """Section 2: the daemon removes staged files all the time; those beside them are closed all the same."""
    for name in ("a", "b", "c"):
        (tmp_path / name).touch(0o644)
    top = os.open(tmp_path, os.O_RDONLY)
    try:
        assert privacy.close_below(RacingFs(), top) == 2
    finally:
        os.close(top)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600, 0o600]


def test_the_command_that_leaves_it_out(world: World) -> None:
    """The recommended command opens the bucket and nothing of the daemon's."""
    sh(f"chmod -R a+rX {world.path()}")
    probe(world)
    world.path("d/k").chmod(0o600)
    sh(typed(next(f for f in found(world) if f.area == "privacy")))
    assert world.path("d/k").stat().st_mode & 0o777 == 0o644
    assert is_closed(world, SOURCE)


BREAKS = {
    "chown": "chown -R {user} {top}",
    "chown-documents": "chown {user} {top}/.fsrepl/*.json",
    "chmod": "chmod -R a+rwX {top}",
}


@pytest.mark.parametrize("command", BREAKS.values(), ids=BREAKS.keys())
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_doctor_prints_the_command_that_repairs_it(world: World, bucket: str, command: str) -> None:
    """Section 2: files that other users could have written are not trusted until a person runs the command that doctor
    prints."""
    sh(command.format(user=USER, top=world.path(bucket=bucket)))
    probe(world)
    assert world.state(bucket).bucket.trouble
    assert not world.path(".fsrepl", bucket).stat().st_mode & 0o055
    finding = next(f for f in found(world) if (f.area, f.where) == ("bucket", bucket))
    assert finding.level is Level.ERROR
    sh(typed(finding))
    world.settle()
    assert not world.state(bucket).bucket.trouble
    assert is_closed(world, bucket)
    world.write("new", b"n")
    world.settle()
    assert world.tree(DESTINATION) == {"d/k": b"k", "new": b"n"}
    assert [f for f in found(world) if f.level is Level.ERROR] == []


@pytest.mark.parametrize("owner", [0, USER])
@pytest.mark.parametrize("document", [None, 0, USER], ids=["empty", "another-bucket", "forged"])
def test_another_directory_of_that_name_is_left_as_it_is(world: World, owner: int, document: int | None) -> None:
    """G9: the owner of a bucket's folder can name any directory `.fsrepl`; that one is not made private."""
    meta = world.path(".fsrepl")
    meta.rename(world.path("aside"))
    meta.mkdir()
    meta.chmod(0o755)
    os.setxattr(meta, ACL_NAME, LETS_1001_IN)
    if document is not None:
        whose = SOURCE if document == USER else DESTINATION
        (meta / "bucket.json").write_text(json.dumps({"uuid": world.state(whose).bucket.uuid}))
        os.chown(meta / "bucket.json", document, document)
    os.chown(meta, owner, owner)
    before = meta.stat()
    probe(world)
    assert world.state(SOURCE).bucket.trouble
    assert (meta.stat().st_mode, meta.stat().st_ctime_ns) == (before.st_mode, before.st_ctime_ns)
    assert ACL_NAME in os.listxattr(meta)


def test_the_state_is_closed_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Section 2: the state contains the name of every file of the site."""
    state = Path(world.engine.site.state)
    sh(f"chmod -R a+rX {state}")
    probe(world)
    assert state.stat().st_mode & 0o777 == 0o700
    assert "opened state" in caplog.text


def test_without_a_daemon_doctor_says_that_it_is_open(world: World) -> None:
    """A command that only reads changes nothing."""
    sh(f"chmod -R a+rX {world.path()}")
    world.engine.site.keeps_private = False
    finding = next(f for f in found(world) if f.area == "privacy")
    assert finding.level is Level.ERROR
    sh(typed(finding))
    assert is_closed(world, SOURCE)


def test_a_bucket_whose_folder_is_wider_than_its_source(world: World) -> None:
    """A bucket's folder belongs to its administrator: doctor says where replicas in it can be read by more users."""
    world.path().chmod(0o750)
    finding = next(f for f in found(world) if f.area == "privacy")
    assert (finding.level, finding.where) == (Level.WARNING, DESTINATION)
    sh(typed(finding))
    assert world.path(bucket=DESTINATION).stat().st_mode & 0o777 == 0o750
    assert not [f for f in found(world) if f.area == "privacy"]
