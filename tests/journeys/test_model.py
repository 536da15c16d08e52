"""Random actions on two and on three buckets: the result is what a small model of S3 says.

Long histories are drawn by seed, with the important actions most often; a failed one is printed action by action.
Hypothesis looks for short ones with a wrong result, and only for a moment, since the long ones do all that they do: of
20,248 branches of fsrepl all but 3, which other tests take. With FSREPL_LONG=1 it looks for longer.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from fsrepl.commands.documents import objects as documents
from fsrepl.model.version import NULL, Origin, Version
from fsrepl.storage import listing
from tests.s3_model import Held, Model, ModelRule
from tests.world import Json, World, v1, v2

KEYS = ("a", "a/b", "c")
PLACES = (0, 1, 2, 3)
TAGS: tuple[dict[str, str], ...] = ({}, {"t": "1"})
OPERATIONS = ("disable", "enable", "rm")

Configuration = list[tuple[int, ModelRule]]
"""Rules, with the place of their destination among the other buckets."""


def configuration(choose: Callable[[Sequence[Any]], Any]) -> Configuration:
    """V1 or V2, with whatever `choose` chooses."""
    if choose([True, False]):
        to, prefixes = choose([0, 1]), choose([("",), ("a",), ("a/", "c")])
        return [(to, ModelRule(f"v1-{i}", "", prefix)) for i, prefix in enumerate(prefixes)]
    names, rules = choose([("r1",), ("r1", "r2"), ("r2", "r1"), ("r3", "r1", "r2")]), []
    for priority, name in enumerate(names, 1):
        tags, prefix, storage_class = choose(TAGS), choose(["", "a", "a/", "c"]), choose(["", "STANDARD_IA"])
        markers, enabled = not tags and choose([True, False]), choose([True, True, True, False])
        rules.append((choose([0, 1]), ModelRule(name, "", prefix, priority, tags, markers, enabled, storage_class)))
    return rules


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    return configuration(lambda options: draw(st.sampled_from(options)))


def document(rule: ModelRule) -> Json:
    given: Json = {"StorageClass": rule.storage_class} if rule.storage_class else {}
    status = "Enabled" if rule.enabled else "Disabled"
    if not rule.priority:
        return {**v1(rule.prefix, to=rule.to, status=status, **given), "ID": rule.id}
    v2_rule = v2(rule.prefix, rule.priority, to=rule.to, markers=rule.markers, status=status, tags=rule.tags, **given)
    return {**v2_rule, "ID": rule.id}


def found(version: Version) -> dict[str, object]:
    """The compared properties of a version."""
    return {
        "content": None if version.marker else version.digest.hex(),
        "tags": dict(version.tags),
        "replica": version.origin is Origin.REPLICA,
        "null": version.id == NULL,
        "class": version.storage_class,
        "owes": {to: (delivery.rule, delivery.status) for to, delivery in version.deliveries.items()},
    }


def expected(held: Held) -> dict[str, object]:
    content = held.made.content
    return {
        "content": None if content is None else blake3(content).hexdigest(),
        "tags": held.tags,
        "replica": held.replica,
        "null": held.null,
        "class": held.storage_class,
        "owes": {to: (owed.rule, owed.status) for to, owed in held.owes.items()},
    }


class Deeds(RuleBasedStateMachine):
    """Each action is carried out on the site and on the model; deliveries are made when the site settles.

    An action on a bucket that is away, or on an object that does not exist, does nothing.
    """

    addresses: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="fsrepl-model-"))
        self.world = World(self.home, replicate=False, buckets=self.addresses)
        self.model = Model(*self.addresses)
        self.unseen: dict[str, dict[str, tuple[bytes | None, dict[str, str]]]] = {}
        """What was done to files since the last capture: content, None where it was removed, and tags."""
        self.written = 0
        self.ids: dict[int, str] = {}

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.close()

    def close(self) -> None:
        self.world.engine.close()
        shutil.rmtree(self.home, ignore_errors=True)

    # -- targets of actions

    def bucket(self, number: int) -> str:
        """The address of a bucket; empty where it is away. Changes of its files are captured first."""
        name = self.addresses[number % len(self.addresses)]
        if not self.model.buckets[name].up:
            return ""
        self.world.region(name).flush(name)
        self.captured(name)
        return name

    def captured(self, name: str) -> None:
        for key, (content, tags) in self.unseen.pop(name, {}).items():
            self.model.write(name, key, content, tags)

    def version(self, name: str, key: str, place: int) -> tuple[Held, str] | None:
        """One of a key's versions in the model, and its id."""
        stack = self.model.buckets[name].versions.get(key, []) if name else []
        return (stack[place], self.world.of(key, name)[place].id) if place < len(stack) else None

    # -- actions of users

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), tags=st.sampled_from(TAGS), seen=st.booleans())
    def write(self, number: int, key: str, tags: dict[str, str], seen: bool) -> None:
        name = self.bucket(number)
        if not name:
            return
        path = self.world.path(key, name)
        with contextlib.suppress(OSError):
            path.rmdir()  # an empty directory is removed, as a user would do
        if path.is_dir() or (key == "a/b" and self.world.path("a", name).is_file()):
            return
        self.written += 1
        self.world.drop(key, b"%d" % self.written, name, tags=tags)
        self.unseen[name] = {key: (b"%d" % self.written, tags)}
        if seen:
            self.bucket(number)

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), seen=st.booleans())
    def unlink(self, number: int, key: str, seen: bool) -> None:
        name = self.bucket(number)
        if name and self.world.path(key, name).is_file():
            self.world.unlink(key, name)
            self.unseen[name] = {key: (None, {})}
            if seen:
                self.bucket(number)

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS))
    def delete(self, number: int, key: str) -> None:
        if name := self.bucket(number):
            self.world.remove(key, name)
            self.model.write(name, key, None, {})

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), place=st.sampled_from(PLACES))
    def remove(self, number: int, key: str, place: int) -> None:
        name = self.bucket(number)
        if chosen := self.version(name, key, place):
            self.world.remove(key, name, chosen[1])
            self.model.remove(name, chosen[0])

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), place=st.sampled_from(PLACES))
    def restore(self, number: int, key: str, place: int) -> None:
        name = self.bucket(number)
        chosen = self.version(name, key, place)
        if chosen and chosen[0].made.content is not None:
            held, version_id = chosen
            done = self.world.run("object.restore", bucket=name, key=key.encode(), version_id=version_id)
            assert done["Changed"] is (place != 0)
            if place:
                self.model.write(name, key, held.made.content, held.tags)

    @rule(
        number=st.integers(0, 2),
        key=st.sampled_from(KEYS),
        place=st.sampled_from(PLACES),
        tags=st.sampled_from(TAGS),
    )
    def tag(self, number: int, key: str, place: int, tags: dict[str, str]) -> None:
        name = self.bucket(number)
        chosen = self.version(name, key, place)
        if chosen and chosen[0].made.content is not None:
            what: Json = {"bucket": name, "key": key.encode(), "version_id": chosen[1]}
            self.world.run("tag.set", **what, tags=tags) if tags else self.world.run("tag.rm", **what, names=["t"])
            self.model.tag(name, chosen[0], tags)

    # -- actions of administrators

    @rule(number=st.integers(0, 2), wanted=configurations())
    def configure(self, number: int, wanted: Configuration) -> None:
        if not all(bucket.up for bucket in self.model.buckets.values()):
            return
        name = self.bucket(number)
        others = [each for each in self.addresses if each != name]
        rules = tuple(replace(each, to=others[to % len(others)]) for to, each in wanted)
        documents = [document(each) for each in rules]
        if all(self.model.buckets[each].enabled for each in {name, *(each.to for each in rules)}):
            self.world.configure(*documents, source=name)
            self.configured(name, rules)
        else:
            refused: Json = {"Role": "arn:aws:iam::000000000000:role/any", "Rules": documents}
            assert self.world.refused("replication.put", source=name, document=refused) == "InvalidRequest"

    @rule(number=st.integers(0, 2), operation=st.sampled_from(OPERATIONS))
    def switch(self, number: int, operation: str) -> None:
        name = self.bucket(number)
        rules = self.model.buckets[name].rules if name else None
        if rules is None:
            return
        theirs = [self.model.buckets[each.to] for each in rules]
        if operation != "rm" and any(bucket.up and not bucket.enabled for bucket in theirs):
            assert self.world.refused(f"replication.{operation}", source=name) == "InvalidRequest"
        else:
            self.world.run(f"replication.{operation}", source=name)
            switched = tuple(replace(each, enabled=operation == "enable") for each in rules)
            self.configured(name, None if operation == "rm" else switched)

    def configured(self, name: str, rules: tuple[ModelRule, ...] | None) -> None:
        self.model.configure(name, rules)
        self.world.region(name).last_turn()  # what its rule took along is written down before anything else happens

    @rule(number=st.integers(0, 2), enabled=st.booleans())
    def versioning(self, number: int, enabled: bool) -> None:
        name = self.bucket(number)
        if not name:
            return
        wanted = {"bucket": name, "status": "Enabled" if enabled else "Suspended"}
        if not enabled and self.model.buckets[name].rules is not None:
            assert self.world.refused("versioning.set", **wanted) == "InvalidBucketState"
        else:
            self.world.run("versioning.set", **wanted)
            self.model.buckets[name].enabled = enabled

    @rule(number=st.integers(0, 2))
    def retry(self, number: int) -> None:
        if name := self.bucket(number):
            self.world.run("retry", scope=name)
            self.model.retry(name)

    # -- outages and restarts

    @rule(number=st.integers(0, 2))
    def away(self, number: int) -> None:
        if name := self.bucket(number):
            self.world.away(name.partition("/")[0])
            self.model.buckets[name].up = False

    @rule()
    def back(self) -> None:
        for name, bucket in self.model.buckets.items():
            if not bucket.up:
                self.world.back(name.partition("/")[0])
                bucket.up = True

    @rule(without_journal=st.booleans())
    def restart(self, without_journal: bool) -> None:
        self.world.restart(without_journal=without_journal)

    # -- comparison

    @rule()
    def settle(self) -> None:
        self.world.settle()
        for name in sorted(self.unseen):  # in the order in which the regions work
            self.captured(name)
        self.model.deliver()
        for name, bucket in self.model.buckets.items():
            if bucket.up:
                self.histories_are_equal(name)
                self.views_show_what_is_current(name)
                self.journal_says_the_same(name)

    def histories_are_equal(self, name: str) -> None:
        there = {key.decode(): versions[::-1] for key, versions in self.world.history(name).items()}
        for key in KEYS:
            stack, versions = self.model.buckets[name].versions.get(key, []), there.get(key, [])
            assert list(map(found, versions)) == list(map(expected, stack)), f"{key} in {name}"
            for held, version in zip(stack, versions, strict=True):
                assert self.ids.setdefault(held.made.at, version.id) == version.id
        ids = [version_id for version_id in self.ids.values() if version_id != NULL]
        assert len(set(ids)) == len(ids)

    def views_show_what_is_current(self, name: str) -> None:
        """Of `a` and `a/b` a tree shows the first; a directory that a user made stays, too."""
        stacks = self.model.buckets[name].versions.items()
        current = {key: stack[0].made.content for key, stack in stacks if stack and stack[0].made.content is not None}
        shown = self.world.tree(name)
        assert shown.items() <= current.items(), name
        hidden = current.keys() - shown.keys()
        for key in hidden:
            in_the_way = self.world.path("a", name)
            assert in_the_way.is_dir() if key == "a" else in_the_way.is_file(), f"{key} in {name}"
        if not hidden:
            assert self.world.leftovers(name) == []

    def journal_says_the_same(self, name: str) -> None:
        """G11."""
        recorded = {
            (v.key, v.id, to): str(delivery.status)
            for versions in self.world.history(name).values()
            for v in versions
            for to, delivery in v.deliveries.items()
        }
        assert {
            (d.key, d.id, d.destination): d.status for d in self.world.engine.journal.deliveries.select(name)
        } == recorded
        with self.world.engine.site.bucket(name).open() as opened:
            for versions in (False, True):
                known = self.world.engine.journal.listed(name)
                of_journal, of_records = (
                    documents.list_document(
                        *listing.entries(opened, b"", versions=versions, page=listing.Page(), known=each),
                        versions=versions,
                    )
                    for each in (known, None)
                )
                assert of_journal == of_records


class TwoBuckets(Deeds):
    addresses = ("east/one", "west/two")


class ThreeBuckets(Deeds):
    addresses = ("east/one", "west/two", "north/three")


BOUNDED = settings(
    max_examples=60 if os.environ.get("FSREPL_LONG") else 5,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestTwoBuckets = TwoBuckets.TestCase
TestTwoBuckets.settings = BOUNDED
TestThreeBuckets = ThreeBuckets.TestCase
TestThreeBuckets.settings = BOUNDED


# -- long histories, by seed

OFTEN = {
    "write": 9, "settle": 6, "configure": 5, "unlink": 4, "tag": 4, "delete": 3, "remove": 3, "restore": 3, "back": 3,
    "switch": 2, "versioning": 2, "retry": 2, "away": 2, "restart": 2,
}  # fmt: skip
WITH: Mapping[str, Callable[[random.Random], object]] = {
    "number": lambda chance: chance.randrange(3),
    "key": lambda chance: chance.choice(KEYS),
    "tags": lambda chance: chance.choice(TAGS),
    "place": lambda chance: chance.choice(PLACES),
    "seen": lambda chance: chance.random() < 0.7,
    "enabled": lambda chance: chance.random() < 0.6,
    "operation": lambda chance: chance.choice(OPERATIONS),
    "without_journal": lambda chance: chance.random() < 0.5,
    "wanted": lambda chance: configuration(chance.choice),
}


@pytest.mark.parametrize("deeds", [TwoBuckets, ThreeBuckets])
@pytest.mark.parametrize("seed", range(60))
def test_a_long_history_ends_as_the_model_says(deeds: type[Deeds], seed: int) -> None:
    """Sections 1 to 4, G1, G5, G6, G7, G11."""
    chance, history = random.Random(seed), list[str]()
    machine = deeds()
    try:
        for name in chance.choices(list(OFTEN), list(OFTEN.values()), k=60):
            wants = inspect.signature(getattr(machine, name)).parameters
            given = {each: WITH[each](chance) for each in wants}
            history.append(f"{name} {given}")
            getattr(machine, name)(**given)
        machine.settle()
    except BaseException as error:
        error.add_note("\n".join(history))
        raise
    finally:
        machine.close()
