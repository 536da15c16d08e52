"""A small model of S3: the content of buckets after users' actions. No files, no journal, no threads.

A bucket's versions of a key are listed newest first. A replica shares its `Made` with its original, and so their place
in time. Source: s3-semantics, sections 1 to 4.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from fsrepl.model.version import Status

PENDING, COMPLETED, FAILED = Status.PENDING, Status.COMPLETED, Status.FAILED


@dataclass(frozen=True)
class ModelRule:
    id: str
    to: str
    prefix: str = ""
    priority: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)
    markers: bool = True
    enabled: bool = True
    storage_class: str = ""

    def takes(self, key: str, tags: Mapping[str, str], marker: bool) -> bool:
        tagged = not self.tags if marker else self.tags.items() <= tags.items()
        return self.enabled and key.startswith(self.prefix) and tagged


@dataclass(frozen=True)
class Made:
    """The properties of a version that are the same in every bucket. content is None for a marker."""

    at: int
    key: str
    content: bytes | None


@dataclass
class Delivery:
    rule: str
    storage_class: str
    status: Status = PENDING
    edit: bool = False


@dataclass
class Held:
    """A version in one bucket. edited: when its tags were last edited, here or at its source."""

    made: Made
    tags: dict[str, str]
    edited: int = 0
    storage_class: str = ""
    replica: bool = False
    null: bool = False
    owes: dict[str, Delivery] = field(default_factory=dict)


@dataclass
class ModelBucket:
    versions: dict[str, list[Held]] = field(default_factory=dict)
    rules: tuple[ModelRule, ...] | None = None
    enabled: bool = True
    up: bool = True
    removed: set[Made] = field(default_factory=set)

    def winners(self, key: str, tags: Mapping[str, str], marker: bool) -> dict[str, ModelRule]:
        best: dict[str, ModelRule] = {}
        for rule in sorted(self.rules or (), key=lambda rule: rule.priority):
            if rule.takes(key, tags, marker):
                best[rule.to] = rule
        return {to: rule for to, rule in best.items() if rule.markers or not marker}

    def stands(self, rule: str, to: str) -> bool:
        return any(r.id == rule and r.to == to and r.enabled for r in self.rules or ())

    def put(self, held: Held) -> None:
        stack = self.versions.setdefault(held.made.key, [])
        stack.append(held)
        stack.sort(key=lambda each: each.made.at, reverse=True)


class Model:
    def __init__(self, *buckets: str) -> None:
        self.buckets = {name: ModelBucket() for name in buckets}
        self.clock = itertools.count(1)

    def write(self, name: str, key: str, content: bytes | None, tags: Mapping[str, str]) -> None:
        """A new version; with content None a marker."""
        bucket = self.buckets[name]
        if not bucket.enabled:
            bucket.versions[key] = [held for held in bucket.versions.get(key, []) if not held.null]
        chosen = bucket.winners(key, tags, content is None) if bucket.enabled else {}
        owes = {to: Delivery(rule.id, rule.storage_class) for to, rule in chosen.items()}
        bucket.put(Held(Made(next(self.clock), key, content), dict(tags), null=not bucket.enabled, owes=owes))

    def remove(self, name: str, held: Held) -> None:
        bucket = self.buckets[name]
        bucket.versions[held.made.key].remove(held)
        bucket.removed.add(held.made)

    def tag(self, name: str, held: Held, tags: Mapping[str, str]) -> None:
        bucket, before = self.buckets[name], held.tags
        if tags == before:
            return
        held.tags, held.edited = dict(tags), next(self.clock)
        for to, owed in held.owes.items():
            rule = next((r.id for r in bucket.rules or () if bucket.stands(owed.rule, to) and r.id == owed.rule), None)
            for state in (before, tags):
                winner = bucket.winners(held.made.key, state, False).get(to)
                rule = rule or (winner.id if winner else None)
            if rule and not held.replica and (owed.edit or owed.status is COMPLETED):
                owed.rule, owed.status, owed.edit = rule, PENDING, True

    def configure(self, name: str, rules: tuple[ModelRule, ...] | None) -> None:
        bucket = self.buckets[name]
        bucket.rules = rules
        for owed, to in self._delivery(bucket, PENDING):
            if not bucket.stands(owed.rule, to):
                owed.status = FAILED

    def retry(self, name: str) -> None:
        bucket = self.buckets[name]
        for owed, to in self._delivery(bucket, FAILED):
            owed.status = PENDING if bucket.stands(owed.rule, to) else FAILED

    @staticmethod
    def _delivery(bucket: ModelBucket, status: Status) -> list[tuple[Delivery, str]]:
        every = (held for stack in bucket.versions.values() for held in stack)
        return [(owed, to) for held in every for to, owed in held.owes.items() if owed.status is status]

    def deliver(self) -> None:
        """Make all deliveries that are possible."""
        for bucket in [bucket for bucket in self.buckets.values() if bucket.up]:
            for held in [held for stack in bucket.versions.values() for held in stack]:
                for to, owed in held.owes.items():
                    if owed.status is PENDING and self.buckets[to].up:
                        owed.status = COMPLETED if self._arrives(held, owed, self.buckets[to]) else FAILED

    @staticmethod
    def _arrives(held: Held, owed: Delivery, there: ModelBucket) -> bool:
        replica = next((each for each in there.versions.get(held.made.key, []) if each.made is held.made), None)
        if not there.enabled or (replica is None and (owed.edit or held.made in there.removed)):
            return False
        if replica is None:
            there.put(Held(held.made, dict(held.tags), held.edited, owed.storage_class, replica=True))
        elif held.edited >= replica.edited:
            replica.tags, replica.edited = dict(held.tags), held.edited
        return True
