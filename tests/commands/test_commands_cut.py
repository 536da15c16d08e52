"""Power cuts at every change that a command makes: the same command run again finishes any half-made change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fsrepl.errors import FsreplError
from fsrepl.s3 import arn
from tests.doubles import DyingFs, PowerCut, Tried
from tests.world import ROLE, SOURCE, World, v1, worlds

PLAIN, FAR = "east/plain", "west/far"


@dataclass(frozen=True)
class Command:
    """What exists before the command, and the request."""

    name: str
    prepare: Callable[[World], None]
    parameters: Callable[[World], dict[str, Any]]
    between: bool = False
    """What it leaves when cut short need be neither the state before nor the one after it."""


def _two_versions(world: World) -> None:
    for data in (b"one", b"two, longer"):
        world.write("d/k", data)
        world.settle()


def _deleted(world: World) -> None:
    _two_versions(world)
    world.unlink("d/k")
    world.settle()


def _plain_files(world: World) -> None:
    """A folder with files that is no bucket yet."""
    for key in ("a", "d/b", "d/e/c"):
        world.write(key, key.encode(), PLAIN)


def _unversioned(world: World) -> None:
    world.run("bucket.create", bucket=PLAIN, versioning=False)
    _plain_files(world)


def _unruled(world: World) -> None:
    world.write("before", b"before")
    world.run("bucket.create", bucket=FAR, versioning=True)
    world.run("bucket.create", bucket=PLAIN, versioning=True)
    world.settle()


def _bucket_with_objects(world: World) -> None:
    world.run("bucket.create", bucket=PLAIN, versioning=True)
    _plain_files(world)
    world.settle()


def _role(world: World) -> None:
    _unruled(world)
    world.run("role.create", name=ROLE, source=PLAIN, destinations=[FAR])


def _document(*_: World) -> dict[str, Any]:
    return {"source": PLAIN, "document": {"Role": arn.role_arn(ROLE), "Rules": [v1(to=FAR)]}}


def _oldest(world: World) -> dict[str, Any]:
    return {"bucket": SOURCE, "key": b"d/k", "version_id": world.of("d/k")[-1].id}


def _newest(world: World) -> dict[str, Any]:
    return {"bucket": SOURCE, "key": b"d/k", "version_id": world.of("d/k")[0].id}


COMMANDS = {
    "restore": Command("object.restore", _two_versions, _oldest),
    "undelete": Command("object.restore", _deleted, lambda _: {"bucket": SOURCE, "key": b"d/k", "version_id": None}),
    "rm": Command("object.rm", _two_versions, lambda _: {"bucket": SOURCE, "key": b"d/k", "version_id": None}),
    "rm-version": Command("object.rm", _two_versions, _newest),
    "rm-older-version": Command("object.rm", _two_versions, _oldest),
    "tag": Command("tag.set", _two_versions, lambda _: {"bucket": SOURCE, "key": b"d/k", "tags": {"class": "blue"}}),
    "create": Command("bucket.create", lambda _: None, lambda _: {"bucket": PLAIN, "versioning": True}, between=True),
    "adopt": Command("bucket.adopt", _plain_files, lambda _: {"bucket": PLAIN}, between=True),
    "remove": Command("bucket.rm", _bucket_with_objects, lambda _: {"bucket": PLAIN, "purge": True}, between=True),
    "versioning": Command(
        "versioning.set", _unversioned, lambda _: {"bucket": PLAIN, "status": "Enabled"}, between=True
    ),
    "enable": Command("replication.enable", _unruled, lambda _: {"source": PLAIN, "destination": FAR}, between=True),
    "put": Command("replication.put", _role, _document),
    "disable": Command("replication.disable", _two_versions, lambda _: {"source": SOURCE}),
    "unruled": Command("replication.rm", _two_versions, lambda _: {"source": SOURCE}),
}


def _state(world: World) -> dict[str, Any]:
    """All that a user would notice, without values that differ in each run."""
    found: dict[str, Any] = {"roles": sorted(path.name for path in world.settings.roles.glob("*"))}
    for bucket, known in sorted(world.engine.site.buckets.items()):
        with contextlib.suppress(FsreplError):
            known.open().close()
        rules = known.replication.document if known.replication else None
        found[bucket] = [world.tree(bucket), str(known.versioning), json.dumps(rules, sort_keys=True), known.trouble]
        if known.versioning:
            found[bucket] += [
                {
                    key: [(v.marker, v.digest, v.origin, dict(v.tags), v.status) for v in versions]
                    for key, versions in world.history(bucket).items()
                },
                world.leftovers(bucket),
            ]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_cut_short(memory: Path, what: str, tried: Callable[..., Tried]) -> None:
    """G1, G2, G7: the command is carried out or not; run again it is carried out, and both regions agree as without the
    cut."""
    command = COMMANDS[what]
    after: dict[str, Any] = {}
    others = tried()
    for calls, world in worlds(memory):
        command.prepare(world)
        world.settle()
        before = _state(world)
        parameters = command.parameters(world)
        fs = DyingFs(1 << 60, but=others)
        world.restart(fs=fs)
        world.settle()
        fs.calls_left = calls - 1 if calls else 1 << 60  # the first run is without a cut, and shows the expected state
        with contextlib.suppress(PowerCut):
            world.run(command.name, **parameters)
            world.settle()
        world.restart(without_journal=calls % 2 == 0)
        for _ in range(2):
            world.settle()
        found, where = _state(world), f"{what}: cut at change {calls - 1}, in {fs.died_in}"
        if not calls:
            after = found
            assert after != before
            continue
        if found != after:
            assert found == before or command.between, where
            world.run(command.name, **parameters)
            for _ in range(2):
                world.settle()
            assert _state(world) == after, where
        if not fs.died:
            return
