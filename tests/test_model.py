"""Random deeds on two and on three buckets: what is there afterwards is what a small model of S3 says."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

from blake3 import blake3
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from fsrepl.model import NULL, Origin, Version
from tests.model import Held, Model, ModelRule
from tests.world import Json, World, v1, v2

KEYS = ("a", "a/b", "c")
TAGS = ({}, {"t": "1"})


@st.composite
def configurations(draw: st.DrawFn) -> list[tuple[int, ModelRule]]:
    """Rules, with the number of their destination among the other buckets: V1 or V2."""
    if draw(st.booleans()):
        prefixes = draw(st.sampled_from([("",), ("a",), ("a/", "c")]))
        to = draw(st.integers(0, 1))
        return [(to, ModelRule(f"v1-{i}", "", prefix)) for i, prefix in enumerate(prefixes)]
    rules = []
    names = draw(st.permutations(["r1", "r2", "r3"]))
    for priority, name in enumerate(names[: draw(st.integers(1, 3))], 1):
        tags = draw(st.sampled_from(TAGS))
        rules.append((
            draw(st.integers(0, 1)),
            ModelRule(
                name,
                "",
                draw(st.sampled_from(["", "a", "a/", "c"])),
                priority,
                tags,
                markers=not tags and draw(st.booleans()),
                enabled=draw(st.integers(0, 3)) > 0,
                storage_class=draw(st.sampled_from(["", "STANDARD_IA"])),
            ),
        ))  # fmt: skip
    return rules


def seen(version: Version) -> dict[str, object]:
    """What there is to compare of a version."""
    return {
        "content": None if version.marker else version.digest.hex(),
        "tags": dict(version.tags),
        "replica": version.origin is Origin.REPLICA,
        "null": version.id == NULL,
        "class": version.storage_class,
        "owes": {to: (d.rule, d.status) for to, d in version.deliveries.items()},
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
    """Every deed is done to the site and to the model; what must travel does so when the site settles."""

    addresses: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="fsrepl-model-"))
        self.world = World(self.home, replicate=False, buckets=self.addresses)
        self.model = Model(*self.addresses)
        self.written = 0
        self.ids: dict[int, str] = {}

    def teardown(self) -> None:
        try:
            self.settle()
        finally:
            self.world.engine.close()
            shutil.rmtree(self.home, ignore_errors=True)

    # -- what to do it to

    def bucket(self, number: int) -> str:
        """The address of a bucket that is not away; empty where this one is."""
        name = self.addresses[number % len(self.addresses)]
        return name if self.model.buckets[name].up else ""

    def version(self, name: str, key: str, number: int) -> tuple[Held, str] | None:
        """One of a key's versions in the model, and its id."""
        stack = self.model.buckets[name].versions.get(key, []) if name else []
        if not stack:
            return None
        place = number % len(stack)
        return stack[place], self.world.of(key, name)[place].id

    def captured(self, name: str) -> None:
        self.world.region(name).flush(name)

    # -- deeds

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), tags=st.sampled_from(TAGS))
    def write(self, number: int, key: str, tags: dict[str, str]) -> None:
        name = self.bucket(number)
        if not name:
            return
        path = self.world.path(key, name)
        with contextlib.suppress(OSError):
            path.rmdir()  # a directory that holds nothing makes way, as it would for a person
        if path.is_dir() or (key == "a/b" and self.world.path("a", name).is_file()):
            return
        self.written += 1
        self.world.drop(key, b"%d" % self.written, name, tags=tags)
        self.captured(name)
        self.model.write(name, key, b"%d" % self.written, tags)

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS))
    def unlink(self, number: int, key: str) -> None:
        name = self.bucket(number)
        if name and self.world.path(key, name).is_file():
            self.world.unlink(key, name)
            self.captured(name)
            self.model.write(name, key, None, {})

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS))
    def delete(self, number: int, key: str) -> None:
        name = self.bucket(number)
        if name:
            self.world.remove(key, name)
            self.model.write(name, key, None, {})

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), place=st.integers(0, 4))
    def remove(self, number: int, key: str, place: int) -> None:
        name = self.bucket(number)
        if chosen := self.version(name, key, place):
            self.world.remove(key, name, chosen[1])
            self.model.remove(name, chosen[0])

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), place=st.integers(0, 4))
    def restore(self, number: int, key: str, place: int) -> None:
        name = self.bucket(number)
        chosen = self.version(name, key, place)
        if chosen and chosen[0].made.content is not None:
            held, version_id = chosen
            current = self.model.buckets[name].versions[key][0]
            done = self.world.run("object.restore", bucket=name, key=key.encode(), version_id=version_id)
            assert done["Changed"] is (held is not current)
            if held is not current:
                self.model.write(name, key, held.made.content, held.tags)

    @rule(number=st.integers(0, 2), key=st.sampled_from(KEYS), place=st.integers(0, 4), tags=st.sampled_from(TAGS))
    def tag(self, number: int, key: str, place: int, tags: dict[str, str]) -> None:
        name = self.bucket(number)
        chosen = self.version(name, key, place)
        if chosen and chosen[0].made.content is not None:
            held, version_id = chosen
            self.world.run(
                "tag.rm", bucket=name, key=key.encode(), version_id=version_id, names=["t"]
            ) if not tags else (
                self.world.run("tag.set", bucket=name, key=key.encode(), version_id=version_id, tags=tags)
            )
            self.model.tag(name, held, tags)

    @rule(number=st.integers(0, 2), wanted=configurations())
    def configure(self, number: int, wanted: list[tuple[int, ModelRule]]) -> None:
        if not all(bucket.up for bucket in self.model.buckets.values()):
            return
        name = self.bucket(number)
        others = [each for each in self.addresses if each != name]
        rules, documents = [], list[Json]()
        for to, each in wanted:
            each = ModelRule(**{**vars(each), "to": others[to % len(others)]})
            to_class = {"StorageClass": each.storage_class} if each.storage_class else {}
            status = "Enabled" if each.enabled else "Disabled"
            document = (
                v2(
                    each.prefix,
                    each.priority,
                    to=each.to,
                    markers=each.markers,
                    status=status,
                    tags=each.tags,
                    **to_class,
                )
                if each.priority
                else v1(each.prefix, to=each.to, status=status, **to_class)
            )
            rules.append(each)
            documents.append({**document, "ID": each.id})
        wrong = not all(self.model.buckets[each].enabled for each in {name, *(each.to for each in rules)})
        if wrong:
            document = {"Role": "arn:aws:iam::000000000000:role/any", "Rules": documents}
            assert self.world.refused("replication.put", source=name, document=document) == "InvalidRequest"
            return
        self.world.configure(*documents, source=name)
        self.reconfigured(name, tuple(rules))

    @rule(number=st.integers(0, 2), operation=st.sampled_from(["disable", "enable", "rm"]))
    def switch(self, number: int, operation: str) -> None:
        name = self.bucket(number)
        if not name or self.model.buckets[name].rules is None:
            return
        found = self.model.buckets[name].rules or ()
        blocked = any(self.model.buckets[r.to].up and not self.model.buckets[r.to].enabled for r in found)
        if operation != "rm" and blocked:
            assert self.world.refused(f"replication.{operation}", source=name) == "InvalidRequest"
            return
        self.world.run(f"replication.{operation}", source=name)
        switched = tuple(ModelRule(**{**vars(r), "enabled": operation == "enable"}) for r in found)
        self.reconfigured(name, None if operation == "rm" else switched)

    def reconfigured(self, name: str, rules: tuple[ModelRule, ...] | None) -> None:
        self.model.configure(name, rules)
        self.world.region(name).last_turn()  # what went with its rule is written down before anything else happens

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
    def away(self, number: int) -> None:
        if name := self.bucket(number):
            self.world.away(name.partition("/")[0])
            self.model.buckets[name].up = False

    @precondition(lambda self: not all(bucket.up for bucket in self.model.buckets.values()))
    @rule()
    def back(self) -> None:
        for name, bucket in self.model.buckets.items():
            if not bucket.up:
                self.world.back(name.partition("/")[0])
                bucket.up = True

    @rule(number=st.integers(0, 2))
    def retry(self, number: int) -> None:
        if name := self.bucket(number):
            self.world.run("retry", scope=name)
            self.model.retry(name)

    @rule(without_journal=st.booleans())
    def restart(self, without_journal: bool) -> None:
        self.world.restart(without_journal=without_journal)

    # -- what must be there

    @rule()
    def settle(self) -> None:
        self.world.settle()
        self.model.deliver()
        for name, bucket in self.model.buckets.items():
            if bucket.up:
                self.histories_are_equal(name)
                self.views_show_what_is_current(name)
                self.journal_says_the_same(name)

    def histories_are_equal(self, name: str) -> None:
        found = {key.decode(): versions[::-1] for key, versions in self.world.history(name).items()}
        for key in KEYS:
            stack, versions = self.model.buckets[name].versions.get(key, []), found.get(key, [])
            assert list(map(seen, versions)) == list(map(expected, stack)), f"{key} in {name}"
            for held, version in zip(stack, versions, strict=True):
                assert self.ids.setdefault(held.made.at, version.id) == version.id
        ids = [version_id for version_id in self.ids.values() if version_id != NULL]
        assert len(set(ids)) == len(ids)

    def views_show_what_is_current(self, name: str) -> None:
        """Of `a` and `a/b` a tree shows one, whichever came first; a directory that a user made stays, too."""
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
            (v.key, v.id, to): str(d.status)
            for versions in self.world.history(name).values()
            for v in versions
            for to, d in v.deliveries.items()
        }
        assert {(d.key, d.id, d.destination): d.status for d in self.world.engine.journal.deliveries(name)} == recorded


class TwoBuckets(Deeds):
    addresses = ("east/one", "west/two")


class ThreeBuckets(Deeds):
    addresses = ("east/one", "west/two", "north/three")


BOUNDED = settings(
    max_examples=150, stateful_step_count=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestTwoBuckets = TwoBuckets.TestCase
TestTwoBuckets.settings = BOUNDED
TestThreeBuckets = ThreeBuckets.TestCase
TestThreeBuckets.settings = BOUNDED
