"""Random weeks of a source and its replica: after each run both buckets have the versions that a model of S3's text
predicts."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from fsrepl.model.version import Version
from tests.lifecycle_model import HeldVersion, run
from tests.world import DESTINATION, SOURCE, World, v1

Json = dict[str, Any]
KEYS = ("a", "d/b", "d/c")
FILTERS: tuple[Json, ...] = ({}, {}, {"Prefix": "d/"}, {"Tag": {"Key": "t", "Value": "1"}}, {"ObjectSizeLessThan": 6})
DAYS = 14


def rules(chance: random.Random) -> list[Json]:
    """Two or three rules of any kind."""
    found: list[Json] = []
    for number in range(chance.choice([2, 3])):
        newer = chance.choice([{}, {}, {"NewerNoncurrentVersions": 1}, {"NewerNoncurrentVersions": 2}])
        sized = {"And": {"Prefix": chance.choice(["a", "d/"]), "ObjectSizeGreaterThan": 0}}
        to = {"StorageClass": chance.choice(["GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"])}
        days = chance.randint(1, 4)
        rule = chance.choice(
            [
                {"Filter": chance.choice(FILTERS), "Expiration": {"Days": days}},
                {"Filter": {}, "Expiration": {"ExpiredObjectDeleteMarker": True}},
                {
                    "Filter": chance.choice(FILTERS),
                    "NoncurrentVersionExpiration": {"NoncurrentDays": days, **newer},
                },
                {"Filter": sized, "Transitions": [{"Days": days, **to}]},
                {"Filter": sized, "NoncurrentVersionTransitions": [{"NoncurrentDays": days, **to, **newer}]},
            ]
        )
        found.append({"ID": f"{number}", "Status": "Enabled", **rule})
    return found


class Weeks:
    """A site and its model: for each bucket and key the versions, the newest first."""

    def __init__(self, world: World, set_clock: Callable[[str], object], seed: int) -> None:
        self.world, self.set_clock, self.chance = world, set_clock, random.Random(seed)
        self.now = datetime(2026, 5, 1, 1, tzinfo=UTC)
        self.stacks: dict[str, dict[str, list[HeldVersion]]] = {SOURCE: {}, DESTINATION: {}}
        self.contents: dict[str, bytes] = {}
        self.documents = {bucket: {"Rules": rules(self.chance)} for bucket in self.stacks}
        self.role = world.settings.roles / "courier-east-src.json"
        self.is_away = False
        self.said = [f"seed {seed}: {self.documents}"]
        world.configure(v1())

    def pass_hours(self, hours: float) -> None:
        self.now += timedelta(hours=hours)
        self.set_clock(self.now.isoformat())

    # -- actions of users, and faults

    def do_something(self) -> None:
        deed = self.chance.choice(
            [self.write, self.write, self.write, self.delete, self.tag, self.outage, self.role_gone]
        )
        key = self.chance.choice(KEYS)
        self.said.append(f"{self.now:%d %H:%M} {deed.__name__} {key}")
        deed(key)
        self.settle()

    def write(self, key: str) -> None:
        tags = self.chance.choice([{}, {"t": "1"}, {"t": "2"}])
        data = b"%d" % self.chance.randrange(10 ** self.chance.randint(4, 8))
        current = self.stacks[SOURCE].get(key, [])[:1]
        if current and not current[0].marker and self.contents[current[0].id] == data:
            return
        self.world.drop(key, data, tags=tags)
        self.world.capture(SOURCE)
        held = HeldVersion(self.world.current(key).id, self.now, size=len(data), tags=tags, status="PENDING")
        self.contents[held.id] = data
        self.stacks[SOURCE].setdefault(key, []).insert(0, held)

    def delete(self, key: str) -> None:
        current = self.stacks[SOURCE].get(key, [])[:1]
        if current and not current[0].marker:
            self.world.unlink(key)
            self.world.capture(SOURCE)
            marker = HeldVersion(self.world.current(key).id, self.now, marker=True, status="PENDING")
            self.stacks[SOURCE][key].insert(0, marker)

    def tag(self, key: str) -> None:
        """Tag a version that has been delivered: an edit during a delivery is another test."""
        current = self.stacks[SOURCE].get(key, [])[:1]
        if (
            not current
            or current[0].marker
            or current[0].status != "COMPLETED"
            or self.is_away
            or not self.role.exists()
        ):
            return
        there = [each for each in self.stacks[DESTINATION].get(key, []) if each.id == current[0].id]
        if there and current[0].storage_class == "STANDARD":
            tags = {"t": self.chance.choice("123")}
            self.world.run("tag.set", bucket=SOURCE, key=key.encode(), tags=tags)
            current[0].tags = there[0].tags = tags

    def outage(self, _: str) -> None:
        self.world.back("west") if self.is_away else self.world.away("west")
        self.is_away = not self.is_away

    def role_gone(self, _: str) -> None:
        """Versions sent meanwhile are FAILED, and are retried once the role is back."""
        aside = self.role.with_suffix(".away")
        if self.is_away:
            return
        if self.role.exists():
            self.role.rename(aside)
            return
        aside.rename(self.role)
        self.world.run("retry", scope=SOURCE)
        for held in (held for stack in self.stacks[SOURCE].values() for held in stack):
            held.status = held.status.replace("FAILED", "PENDING")

    def settle(self) -> None:
        self.world.settle()
        if self.is_away:
            return
        for key, stack in self.stacks[SOURCE].items():
            for held in (held for held in stack if held.status == "PENDING"):
                if not self.role.exists():
                    held.status = "FAILED"
                    continue
                held.status = "COMPLETED"
                there = self.stacks[DESTINATION].setdefault(key, [])
                there.append(replace(held, status="REPLICA"))
                there.sort(key=lambda each: (each.created, each.id), reverse=True)

    # -- midnight

    def run(self) -> None:
        for bucket, document in self.documents.items():
            if bucket == DESTINATION and self.is_away:
                continue
            self.pass_hours(0.1)
            self.world.run("lifecycle.put", bucket=bucket, document=document)
            answer = self.world.run("lifecycle.run", bucket=bucket)
            self.world.run("lifecycle.rm", bucket=bucket)
            assert answer["Busy"] == [], self.said
            for key in list(self.stacks[bucket]):
                self.follow(bucket, key, run(document, key, self.stacks[bucket][key], "Enabled", self.now, batch=False))

    def follow(self, bucket: str, key: str, done: list[tuple[str, str, str, str]]) -> None:
        """Carry out in the model what S3's text says."""
        stack = self.stacks[bucket][key]
        for version_id, action, storage_class, blocked in done:
            self.said.append(f"{self.now:%d %H:%M} {bucket} {action} {key} {storage_class} {blocked}")
            if blocked:
                continue
            if action == "Expiration":
                marker = self.world.current(key, bucket)
                stack.insert(0, HeldVersion(marker.id, self.now, marker=True))
            elif storage_class:
                next(each for each in stack if each.id == version_id).storage_class = storage_class
            else:
                stack[:] = [each for each in stack if each.id != version_id]
        if not stack:
            del self.stacks[bucket][key]

    # -- comparison

    def compare(self) -> None:
        for bucket, stacks in self.stacks.items():
            if bucket == DESTINATION and self.is_away:
                continue
            there = {
                key.decode(): [_seen(version) for version in versions[::-1]]
                for key, versions in self.world.history(bucket).items()
            }
            expected = {key: [self._expected(each) for each in stack] for key, stack in stacks.items()}
            assert there == expected, "\n".join([bucket, *self.said])
            shown = {key: self.contents[stack[0].id] for key, stack in stacks.items() if stack and not stack[0].marker}
            assert self.world.tree(bucket) == shown, "\n".join([bucket, *self.said])

    def _expected(self, held: HeldVersion) -> tuple[object, ...]:
        digest = b"" if held.marker else blake3(self.contents[held.id]).digest()
        created_ns = int(held.created.timestamp()) * 10**9
        return held.id, created_ns, held.marker, digest, dict(held.tags or {}), held.storage_class, held.status


def _seen(version: Version) -> tuple[object, ...]:
    status, storage_class = str(version.status or ""), version.storage_class or "STANDARD"
    return (
        version.id, version.created_ns, version.marker, version.digest, dict(version.tags), storage_class, status,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_random_weeks(memory: Path, clock: Callable[[str], object], seed: int) -> None:
    """S25, S26, 5.1 to 5.5: rules on both sides, replicas that arrive late, outages, failures and retries."""
    with World(memory / "world", replicate=False) as world:
        weeks = Weeks(world, clock, seed)
        for _ in range(DAYS):
            for _ in range(weeks.chance.randint(1, 3)):
                weeks.pass_hours(2)
                weeks.do_something()
                weeks.compare()
            weeks.now = datetime.combine(weeks.now.date() + timedelta(days=1), datetime.min.time(), UTC)
            weeks.pass_hours(0.1)
            weeks.run()
            weeks.compare()
