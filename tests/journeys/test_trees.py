"""Whole trees with real programs: what is used in one region is used in the other."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles import DyingFs, PowerCut
from tests.site import DESTINATION, SOURCE, Site
from tests.tree_deeds import Deeds, differences
from tests.world import World

ROUNDS = int(os.environ.get("FSREPL_TREE_ROUNDS", "40"))
"""Rounds of random acts, of some six acts each. The definition of done asks for 10,000 acts: 1,700 rounds."""
SEED = int(os.environ.get("FSREPL_TREE_SEED", "1"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as found:
        for bucket in (SOURCE, DESTINATION):
            found.must("bucket", "trees", bucket, "on")
        found.start()
        yield found


def run(*command: object, cwd: Path) -> str:
    environ = {
        **os.environ, "HOME": str(cwd), "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
        "npm_config_loglevel": "error", "npm_config_update_notifier": "false", "npm_config_offline": "true",
    }  # fmt: skip
    done = subprocess.run([str(each) for each in command], cwd=cwd, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def alike(site: Site) -> None:
    site.settle()
    assert differences(site.path(), site.path(bucket=DESTINATION)) == [], site.tail()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("git") and shutil.which("rsync")), reason="needs git and rsync")
def test_a_git_repository_works_in_the_replica(site: Site) -> None:
    """Cloned, committed to and packed at the source: sound and clean in the replica, whose `.git/refs` has no file."""
    origin = site.home / "origin"
    origin.mkdir()
    run("git", "init", "-q", "-b", "main", cwd=origin)
    for number in range(20):
        (origin / f"file{number}").write_text(f"{number}\n" * 100)
    (origin / "link").symlink_to("file1")
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    run("git", "add", "-A", cwd=origin)
    run("git", *author, "commit", "-qm", "one", cwd=origin)
    run("git", "clone", "-q", origin, site.path("clone"), cwd=site.home)
    (site.path("clone") / "file1").write_text("changed\n")
    run("git", *author, "commit", "-qam", "two", cwd=site.path("clone"))
    run("git", "gc", "-q", "--prune=now", cwd=site.path("clone"))
    alike(site)
    replica = site.path("clone", DESTINATION)
    assert run("git", "status", "--porcelain", cwd=replica) == ""
    run("git", "fsck", "--full", "--strict", cwd=replica)
    assert run("git", "log", "--format=%s", cwd=replica) == "two\none\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")
def test_a_virtual_environment_and_node_modules_work_in_the_replica(site: Site) -> None:
    """Their interpreters and programs are symlinks, relative and absolute."""
    run(sys.executable, "-m", "venv", "--without-pip", site.path("venv"), cwd=site.home)
    with_npm = shutil.which("npm") and shutil.which("node")
    if with_npm:
        package = site.home / "package"
        package.mkdir()
        (package / "package.json").write_text('{"name": "hello", "version": "1.0.0", "bin": {"hello": "hello.js"}}')
        (package / "hello.js").write_text("#!/usr/bin/env node\nconsole.log('hello');\n")
        run("npm", "pack", cwd=package)
        site.path("app").mkdir()
        site.write("app/package.json", b'{"name": "app", "version": "1.0.0"}')
        offline = ("--offline", "--no-audit", "--no-fund", "--silent")
        run("npm", "install", *offline, package / "hello-1.0.0.tgz", cwd=site.path("app"))
    alike(site)
    python = site.path("venv/bin/python", DESTINATION)
    assert python.is_symlink()
    assert run(python, "-c", "import sys; print(sys.prefix)", cwd=site.home).strip() == str(
        site.path("venv", DESTINATION)
    )
    if with_npm:
        assert run(site.path("app/node_modules/.bin/hello", DESTINATION), cwd=site.home) == "hello\n"


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")
@pytest.mark.parametrize("two_way", [False, True], ids=["one-way", "two-way"])
def test_rsync_finds_nothing_to_do_after_random_acts(memory: Path, two_way: bool) -> None:
    """Acts of all kinds with power cuts at any change, and lost journals: both sides are alike, links included."""
    chance = random.Random(SEED)
    with World(memory / "world", trees=True) as world:
        deeds = [Deeds(world.path("a"), SEED)]
        if two_way:
            world.run("replication.enable", source=DESTINATION, destination=SOURCE)
            deeds.append(Deeds(world.path("b", DESTINATION), SEED + 1))
        for _ in range(ROUNDS):
            for each in deeds:
                each.act(chance.randrange(1, 12))
            if chance.random() < 0.3:
                world.restart(fs=DyingFs(chance.randrange(1, 300)))
                with contextlib.suppress(PowerCut):
                    world.settle()
                world.restart(without_journal=chance.random() < min(0.3, 100 / ROUNDS))
            if chance.random() < 0.5:
                world.settle()
        for _ in range(4):
            world.settle()
        assert differences(world.path(), world.path(bucket=DESTINATION)) == []
        assert differences(world.path(bucket=DESTINATION), world.path()) == []
        assert not world.state(SOURCE).views.stale
        assert not world.state(DESTINATION).views.stale
        world.stays_quiet()


def wrong_records(world: World) -> list[bytes]:
    """Keys of a replica whose record says that they were edited there, or has another owner or time than the view."""
    wrong = []
    for key, found in world.history(DESTINATION).items():
        version, posix = found[-1], found[-1].posix
        if any(stamp.endswith(DESTINATION) for stamp in version.edited.values()):
            wrong.append(key)
        if posix is not None and not key.endswith(b"/"):
            looks = world.path(os.fsdecode(key), DESTINATION).lstat()
            if (looks.st_uid, looks.st_gid, looks.st_mtime_ns) != (posix.uid, posix.gid, posix.mtime_ns):
                wrong.append(key)
    return wrong


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")
def test_names_of_few_files_are_alike_after_random_acts(memory: Path) -> None:
    """Files with several names, all of them edited while versions, edits and removals of others are on their way, with
    power cuts: the replica is as the source, as its records say, and no edit was made there."""
    chance = random.Random(SEED)
    with World(memory / "world", trees=True) as world:
        deeds = Deeds(world.path("a"), SEED, names=12)
        for _ in range(ROUNDS):
            deeds.act(chance.randrange(1, 8))
            for _ in range(chance.randrange(4)):
                world.capture(SOURCE)
                deeds.act(chance.randrange(5))
            for _ in range(chance.randrange(3)):
                world.restart(fs=DyingFs(chance.randrange(1, 120)))
                with contextlib.suppress(PowerCut):
                    world.settle()
                deeds.act(chance.randrange(4))
            world.restart()
            for _ in range(2):
                world.settle()
            assert differences(world.path(), world.path(bucket=DESTINATION)) == []
            assert wrong_records(world) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("rsync"), reason="needs rsync")
@pytest.mark.parametrize("two_way", [False, True], ids=["one-way", "two-way"])
def test_rsync_finds_nothing_to_do_after_random_acts_and_kills(site: Site, two_way: bool) -> None:
    """The same with a daemon that is killed while the acts go on."""
    deeds = [Deeds(site.path("a"), SEED)]
    if two_way:
        site.must("replication", "enable", DESTINATION, SOURCE)
        deeds.append(Deeds(site.path("b", DESTINATION), SEED + 1))

    def act(number: int) -> None:
        for each in deeds:
            each.act(number // len(deeds))

    for _ in range(max(3, ROUNDS // 4)):
        act(25)
        site.kill()
        act(6)
        site.start(ready=False)
        act(10)
    site.until(site._is_ready, "the daemon is ready")
    alike(site)
