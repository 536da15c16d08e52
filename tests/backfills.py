"""Backfills in a world, and their results."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsrepl.model.version import Version
from fsrepl.storage import records
from tests.world import DESTINATION, SOURCE, Json, World, v2

OTHER = "west/other"
THIRD = "west/third"


def enable(world: World, source: str = SOURCE, destination: str = DESTINATION, **more: object) -> None:
    world.run("replication.enable", source=source, destination=destination, **more)


def rule(rule_id: str, to: str = DESTINATION, priority: int = 1, **more: Any) -> Json:
    return {"ID": rule_id, **v2("", priority, to=to, **more)}


def backfill(world: World, *statuses: str, source: str = SOURCE, rules: tuple[str, ...] = ()) -> Json:
    """Request a backfill and run it to its end. Returns the job."""
    accepted = world.run("replication.backfill", source=source, statuses=statuses, rules=rules)
    world.engine.run_until_idle()
    return job(world, str(accepted["JobId"]))


def deliver_late(world: World) -> None:
    """Versions of two keys that arrive after the newer ones: after a version of `k`, and after a marker of `gone`."""
    world.run("replication.disable", source=SOURCE)
    for data in (b"one", b"two"):
        world.write("k", data)
        world.write("gone", data)
        world.settle()
    world.run("replication.enable", source=SOURCE)
    world.write("k", b"three")
    world.unlink("gone")
    world.settle()
    world.run("replication.backfill", source=SOURCE)
    world.settle()


def listed(world: World, **params: object) -> list[Json]:
    found = world.run("replication.jobs", **params)["Jobs"]
    assert isinstance(found, list)
    return found


def job(world: World, job_id: str) -> Json:
    (found,) = listed(world, job=job_id)
    return found


def tasks(found: Json) -> tuple[int, int, int]:
    """The number of tasks in all, succeeded and failed."""
    summary = found["ProgressSummary"]
    return summary["TotalNumberOfTasks"], summary["NumberOfTasksSucceeded"], summary["NumberOfTasksFailed"]


def deliveries(world: World, key: str, destination: str = DESTINATION, bucket: str = SOURCE) -> list[tuple[str, str]]:
    """Status and reason of a destination's delivery, of each version of a key; empty where it has none."""
    found = [v.deliveries.get(destination) for v in world.history(bucket)[key.encode()]]
    return [(str(d.status), d.reason) if d else ("", "") for d in found]


def change(world: World, key: str, make: Callable[[Version], Version], bucket: str = SOURCE) -> None:
    """Rewrite the record of a key's newest version, as another program would."""
    with world.engine.site.bucket(bucket).open() as opened:
        version = world.history(bucket)[key.encode()][-1]
        now = make(version)
        records.amend(opened, now)
        world.engine.recent.forget(bucket, version.key, version.id)


def adopted(tmp_path: Path, *buckets: str, **keys: bytes) -> World:
    """A world whose buckets were folders with files."""
    world = World(tmp_path / "site", replicate=False)
    for bucket in buckets:
        region, name = bucket.split("/")
        for key, data in keys.items():
            world.write(key, data + region.encode(), bucket)
            os.utime(world.path(key, bucket), ns=(10**18, 10**18))
        world.run("bucket.adopt", bucket=f"{region}/{name}")
    world.engine.run_until_idle()
    return world
