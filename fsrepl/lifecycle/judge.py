"""Finds the lifecycle actions that are due in a bucket, from the journal: files are read only for keys with one.

The journal has the properties of versions that rules select by, except tags and storage classes changed since the
version was added, which are read from its record. This module changes nothing; act.py does, after reading the records.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model import keys
from fsrepl.model.lifecycle import Lifecycle
from fsrepl.model.version import EMPTY, NULL, Status, Version, Versioning
from fsrepl.s3 import due
from fsrepl.s3.due import Action, Facts, Kind
from fsrepl.storage import backfill_jobs, unversioned, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import read_tier, read_traits, traits_of
from fsrepl.storage.site import Site
from fsrepl.storage.walk import Walk

_ROWS = 1000
_HOLDS = "a directory that holds objects"


class Due(Struct, frozen=True):
    """An action that is due for a version of a key. facts: those that it was judged by; None where it is judged
    anew."""

    key: bytes
    action: Action
    facts: Facts | None = None

    @property
    def marker(self) -> bool | None:
        """Whether its version is a marker; None where that is unknown."""
        return None if self.facts is None else self.facts.marker


class Slice(Struct):
    """The result for a part of a bucket. last: the directory and name of its last key; is_over: the bucket ends there.
    read: key, version id and traits that the journal lacked."""

    due: list[Due] = field(default_factory=list)
    last: tuple[bytes, bytes] | None = None
    is_over: bool = False
    judged: int = 0
    read: list[tuple[bytes, str, str]] = field(default_factory=list)


_Asked = tuple[list[Facts], Sequence[Action]]
"""A key's versions by the journal, and the actions that may be due for them."""


class Judge:
    """Judges the keys of a bucket at a moment, by its lifecycle as it was last read."""

    def __init__(
        self, site: Site, journal: Journal, bucket: OpenBucket, lifecycle: Lifecycle, now_ns: int
    ) -> None:  # fmt: skip
        self.bucket, self.journal, self.lifecycle, self.now_ns = bucket, journal, lifecycle, now_ns
        self._site = site
        self._versioning = bucket.bucket.versioning
        self._is_filled: bool | None = None

    # -- a bucket with versions

    def look(self, after: tuple[bytes, bytes] | None, until_s: float, most: int) -> Slice:
        """Judge the keys that come next in the journal, until a moment or until so many actions are due."""
        found = Slice(last=after)
        stacks = self.journal.versions.stacks(self.bucket.address, after, min(_ROWS, 2 * most))
        asked: dict[bytes, _Asked] = {}
        number = 0
        for at, rows in stacks:
            key, facts = keys.join(*at), [_facts(*row) for row in rows]
            found.last, found.judged = at, found.judged + 1
            if actions := self._asked(key, facts):
                asked[key] = facts, actions
                number += len(actions)
            if number >= most or time.monotonic() > until_s:
                break
        else:
            found.is_over = not stacks
        self._judge(asked, found)
        return found

    def look_at(self, keys_: Sequence[bytes]) -> Slice:
        """Judge some keys."""
        found, asked = Slice(is_over=True), {}
        for key in keys_:
            if actions := self._asked(key, facts := self.facts(key)):
                asked[key] = facts, actions
        self._judge(asked, found)
        return found

    def confirmed(self, wanted: Due, version: Version) -> Action | None:
        """An action as the record of its version has it; None where that says that it is not due."""
        if wanted.facts is not None and _says_the_same(version, wanted.facts):
            return wanted.action
        facts = [
            each._replace(
                created_ns=version.created_ns, tags=version.tags, storage_class=version.storage_class,
                status=version.status,
            )
            if each.id == version.id
            else each
            for each in self.whole(wanted.key, self.facts(wanted.key), set(), [])[0]
        ]  # fmt: skip
        actions = self._of_key(wanted.key, due.actions(
            self.lifecycle, wanted.key, facts, self._versioning, self.now_ns, batch=self.is_filled
        ))  # fmt: skip
        same = (each for each in actions if each.version_id == version.id and each.kind is wanted.action.kind)
        return next(same, None)

    def upcoming(self, key: bytes) -> list[Due]:
        """The actions for one key by its rules, the earliest first, due or not."""
        facts = self.facts(key)
        facts, unknown = self.whole(key, facts, {each.id for each in facts}, [])
        asked = due.upcoming(self.lifecycle, key, facts, self._versioning, batch=self.is_filled)
        held = {*asked} - {*self._of_key(key, asked)}
        asked = [replace(each, blocked_by=_HOLDS) if each in held else each for each in asked]
        return [Due(key, each) for each in asked if each.version_id not in unknown]

    def facts(self, key: bytes) -> list[Facts]:
        """The journal's facts about the versions of a key, the newest first."""
        return [_facts(*row) for row in self.journal.versions.stack_of(self.bucket.address, key)]

    def _asked(self, key: bytes, facts: Sequence[Facts]) -> Sequence[Action]:
        """The actions that may be due for a key: what the journal lacks may speak against them."""
        found = due.actions(self.lifecycle, key, facts, self._versioning, self.now_ns)
        return self._of_key(key, found) if found else found

    def _judge(self, asked: Mapping[bytes, _Asked], found: Slice) -> None:
        """Judge keys that have actions, with all that is known of them; most are as they were without."""
        statuses = self.journal.deliveries.unfinished_of(self.bucket.address, asked)
        for key, (facts, actions) in asked.items():
            if key not in statuses and not self.is_filled and all(each.tags is not None for each in facts):
                by_id = {each.id: each for each in facts}
                found.due += [Due(key, each, by_id[each.version_id]) for each in actions]
                continue
            ids = {each.version_id for each in actions}
            whole, unknown = self._completed(key, facts, ids, statuses.get(key, {}), found.read)
            if whole != facts or self.is_filled:
                whole_actions = due.actions(
                    self.lifecycle, key, whole, self._versioning, self.now_ns, batch=self.is_filled
                )
                actions = self._of_key(key, whole_actions)
            by_id = {each.id: each for each in whole}
            found.due += [Due(key, each, by_id[each.version_id]) for each in actions if each.version_id not in unknown]

    def _of_key(self, key: bytes, actions: Sequence[Action]) -> Sequence[Action]:
        """The actions without the expiration of a directory that holds objects."""
        if not keys.is_directory(key) or not any(each.kind is Kind.EXPIRE for each in actions):
            return actions
        if not self.journal.versions.holds_objects(self.bucket.address, key[:-1]):
            return actions
        return [each for each in actions if each.kind is not Kind.EXPIRE]

    def whole(
        self, key: bytes, facts: list[Facts], ids: set[str], read: list[tuple[bytes, str, str]]
    ) -> tuple[list[Facts], set[str]]:
        """The facts, completed from the records of versions with these ids; and the ids of unreadable versions, which
        get no action."""
        return self._completed(key, facts, ids, self.journal.deliveries.unfinished(self.bucket.address, key), read)

    def _completed(
        self, key: bytes, facts: list[Facts], ids: set[str], statuses: Mapping[str, Status],
        read: list[tuple[bytes, str, str]],
    ) -> tuple[list[Facts], set[str]]:  # fmt: skip
        whole, unknown = [], set()
        for each in facts:
            status = statuses.get(each.id)
            is_unread = each.tags is None or (each.marker and len(facts) == 1 and self.is_filled and status is None)
            if each.id in ids and is_unread:
                version = self._read(key, each)
                if version is None:
                    unknown.add(each.id)
                else:
                    read.append((key, each.id, traits_of(version)))
                    in_tier = version.place is not None
                    each = each._replace(tags=version.tags, storage_class=version.storage_class, in_tier=in_tier)
                    status = status or version.status
            whole.append(each._replace(status=status) if status is not each.status else each)
        return whole, unknown

    def _read(self, key: bytes, facts: Facts) -> Version | None:
        try:
            version = versions.read(self.bucket, key, facts.id, marker=facts.marker)
            return versions.ensure_whole(version) if version else None
        except StoreDamaged:
            return None

    @property
    def is_filled(self) -> bool:
        """Whether a backfill into the bucket is under way."""
        if self._is_filled is None:
            self._is_filled = backfill_jobs.is_filling(self._site, self.journal, self.bucket.address)
        return self._is_filled

    # -- a bucket that never had any

    def look_below(self, todo: list[bytes], until_s: float, most: int) -> Slice:
        """The actions due in some directories of a never-versioned bucket, which are taken from todo. Their
        subdirectories are added to it."""
        found, walk = Slice(), Walk(todo, keys.RESERVED)
        while todo:
            listed: list[Version] = []
            with contextlib.suppress(OSError), walk.step(self.bucket.fs, self.bucket.fd) as directory:
                listed += unversioned.in_directory(self.bucket, directory)
            for version in listed:
                found.due += self.of_file(version)
                found.judged += 1
            if len(found.due) >= most or time.monotonic() > until_s:
                break
        found.is_over = not todo
        return found

    def of_file(self, version: Version) -> list[Due]:
        """The actions due for one file."""
        facts = Facts(NULL, version.created_ns, size=version.size, tags=None)
        if not due.actions(self.lifecycle, version.key, [facts], Versioning.OFF, self.now_ns):
            return []
        facts = facts._replace(tags=unversioned.tags(self.bucket, version.key))
        actions = due.actions(self.lifecycle, version.key, [facts], Versioning.OFF, self.now_ns)
        return [Due(version.key, each) for each in actions]


def _says_the_same(version: Version, facts: Facts) -> bool:
    """Whether the record of a version has the facts by which it was judged, and nothing blocks an action on it."""
    return (
        facts.status is None
        and version.status not in due.WAITS
        and (version.created_ns, version.marker, version.size) == (facts.created_ns, facts.marker, facts.size)
        and (version.tags, version.storage_class) == (facts.tags, facts.storage_class)
    )


def _facts(version_id: str, created_ns: int, marker: int, size: int, traits: str | None) -> Facts:
    if traits == "":
        return Facts(version_id, created_ns, bool(marker), size, EMPTY, "")
    storage_class, tags = read_traits(traits)
    return Facts(version_id, created_ns, bool(marker), size, tags, storage_class, in_tier=bool(read_tier(traits)))
