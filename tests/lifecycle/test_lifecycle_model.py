"""Random weeks of a source and its replica: after each run both buckets have the versions that a model of S3's text
predicts, and each version's content lies, and can be read, where its storage class and the tiers that are there say."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from fsrepl.errors import Refused, Unavailable
from fsrepl.model.version import Version
from fsrepl.settings import ARCHIVES
from tests.doubles import DyingFs, PowerCut
from tests.lifecycle.test_tiers import content
from tests.lifecycle_model import HeldVersion, midnight, run
from tests.world import DESTINATION, SOURCE, World, v1

Json = dict[str, Any]
KEYS = ("a", "d/b", "d/c")
FILTERS: tuple[Json, ...] = (
    {}, {}, {"Prefix": "d/"}, {"Tag": {"Key": "t", "Value": "1"}}, {"ObjectSizeLessThan": 6000},
)  # fmt: skip
DAYS = 14
TIERS = {SOURCE: {"GLACIER_IR": "none", "GLACIER": "zstd"}, DESTINATION: {"GLACIER": "none", "DEEP_ARCHIVE": "zstd"}}
"""By bucket, the storage classes with a tier; the others are labels."""


def rules(chance: random.Random) -> list[Json]:
    """Two or three rules of any kind, and one that moves content."""
    found: list[Json] = [
        {
            "ID": "moves",
            "Status": "Enabled",
            "Filter": {"ObjectSizeGreaterThan": 0},
            "Transitions": [{"Days": 1, "StorageClass": chance.choice(["GLACIER_IR", "GLACIER"])}],
            "NoncurrentVersionTransitions": [{"NoncurrentDays": 1, "StorageClass": "DEEP_ARCHIVE"}],
        }
    ]
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
        self.absent: set[tuple[str, str]] = set()
        """The tiers that are away, by bucket and class."""
        self.restored: dict[tuple[str, str], datetime] = {}
        """By bucket and version id, until when archived content can be read."""
        for bucket, classes in TIERS.items():
            for name, compress in classes.items():
                path = str(self.tier(bucket, name))
                world.run("tier.add", tier=f"{bucket.partition('/')[0]}/{name}", path=path, compress=compress)
        world.settings = world.engine.settings
        world.configure(v1())

    def pass_hours(self, hours: float) -> None:
        self.now += timedelta(hours=hours)
        self.set_clock(self.now.isoformat())

    # -- actions of users, and faults

    def do_something(self) -> None:
        deed = self.chance.choice(
            [
                *(self.write, self.write, self.write, self.write, self.delete, self.tag, self.outage, self.role_gone),
                *(self.tier_gone, self.restore, self.restore),
            ]
        )
        key = self.chance.choice(KEYS)
        self.said.append(f"{self.now:%d %H:%M} {deed.__name__} {key}")
        deed(key)
        self.settle()

    def write(self, key: str) -> None:
        tags = self.chance.choice([{}, {"t": "1"}, {"t": "2"}])
        data = b"%d" % self.chance.randrange(10 ** self.chance.randint(4, 8)) * self.chance.choice([500, 1000, 1000])
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

    def tier(self, bucket: str, name: str) -> Path:
        return self.world.home / "tiers" / f"{bucket.partition('/')[0]}-{name}"

    def tier_gone(self, _: str) -> None:
        """A tier's disk goes, or comes back."""
        bucket = self.chance.choice([SOURCE, DESTINATION])
        name = self.chance.choice([*TIERS[bucket]])
        path, at = self.tier(bucket, name), (bucket, name)
        aside = path.with_name(path.name + ".away")
        aside.rename(path) if at in self.absent else path.rename(aside)
        self.absent ^= {at}
        self.said.append(f"away: {sorted(self.absent)}")

    def restore(self, _: str) -> None:
        """Archived content is asked for, for some days."""
        held = [
            (bucket, key, version)
            for bucket in [SOURCE, *([] if self.is_away else [DESTINATION])]
            for key, found in self.world.history(bucket).items()
            for version in found
            if version.place and version.place.is_archived and (bucket, version.place.tier) not in self.absent
        ]
        if not held:
            return
        (bucket, at, wanted), days = self.chance.choice(held), self.chance.randint(1, 3)
        self.world.run("object.restore_archived", bucket=bucket, key=at, version_id=wanted.id, days=days)
        until = midnight(self.now + timedelta(days))
        self.restored[bucket, wanted.id] = max(until, self.restored.get((bucket, wanted.id), until))
        self.said.append(f"restored in {bucket}: {wanted.id} until {until}")

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
            if is_cut := self.chance.random() < 0.4:
                self.cut(bucket)
            while any((answer := self.world.run("lifecycle.run", bucket=bucket))["Done"].values()) and is_cut:
                assert answer["Busy"] == [], self.said
            self.world.run("lifecycle.rm", bucket=bucket)
            assert answer["Busy"] == [], self.said
            while self.follow_all(bucket, document) and is_cut:
                pass  # a second run finds due what gave way to another action in the one that was cut

    def follow_all(self, bucket: str, document: Json) -> bool:
        """Carry out a run in the model; whether it did anything."""
        is_done = False
        for key in list(self.stacks[bucket]):
            done = run(document, key, self.stacks[bucket][key], "Enabled", self.now, batch=False)
            self.follow(bucket, key, done)
            is_done |= any(not blocked for *_, blocked in done)
        return is_done

    def cut(self, bucket: str) -> None:
        """A run, and the moves that follow, up to a power cut; the next run and the next start do the rest."""
        self.world.restart(fs=(fs := DyingFs(1 << 60)))
        self.world.settle()
        fs.calls_left = self.chance.randint(0, 120)
        self.said.append(f"cut in {bucket} after {fs.calls_left} changes")
        with contextlib.suppress(PowerCut):
            self.world.run("lifecycle.run", bucket=bucket)
            self.world.settle()
        self.world.restart(without_journal=self.chance.random() < 0.3)
        self.world.settle()

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
            self.compare_contents(bucket)

    def compare_contents(self, bucket: str) -> None:
        """Every content lies where it should, and can be read where it may; views show the current ones."""
        why = "\n".join([bucket, *self.said])
        shown, links = {}, set()
        for key, versions_ in self.world.history(bucket).items():
            for version in (each for each in versions_ if not each.marker):
                data, place = self.contents[version.id], version.place.tier if version.place else ""
                wanted = version.storage_class if version.storage_class in TIERS[bucket] and len(data) >= 4096 else ""
                until = self.restored.get((bucket, version.id), self.now)
                is_lent = until > self.now and place in ARCHIVES and wanted in ARCHIVES
                if not is_lent and not {(bucket, wanted), (bucket, place)} & self.absent:
                    assert place == wanted, why
                found = self.read(bucket, version)
                if (bucket, place) in self.absent:
                    assert found == "Unavailable", why
                elif place in ARCHIVES and until <= self.now:
                    assert found == "InvalidObjectState", why
                else:
                    assert found == data, why
                if version == versions_[-1]:
                    links |= {key.decode()} if place else set()
                    shown |= {} if place else {key.decode(): data}
                    if place and isinstance(found, bytes):
                        assert self.world.path(key.decode(), bucket).read_bytes() == data, why
        assert self.world.tree(bucket) == shown, why
        assert self.world.links(bucket).keys() == links, why

    def read(self, bucket: str, version: Version) -> bytes | str:
        try:
            return content(self.world, version, bucket)
        except Unavailable:
            return "Unavailable"
        except Refused as error:
            return error.code

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
    """S25, S26, 5.1 to 5.5: rules on both sides, replicas that arrive late, outages, failures and retries; tiers that
    go and come back, archives, restores for some days, and power cuts."""
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
            weeks.settle()  # content moves after the run
            weeks.compare()
