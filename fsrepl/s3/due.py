"""What lifecycle rules ask for one key, and what is to be done about it at a moment.

Pure: no I/O, no clock. `asked` lists all that rules ask for a key as it is; `actions` is what of that is due, one
action a version, where they conflict the one that holds. Source: s3-semantics, 5.2 to 5.5.

A rule that names tags or sizes does not act on markers, which have neither; S3 says so of some actions and nothing
of the others, and what is kept can still be removed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fsrepl.model.clock import within
from fsrepl.model.lifecycle import Lifecycle, LifecycleRule, Term
from fsrepl.model.version import NULL, Status, Versioning
from fsrepl.s3.lifecycle import CLASSES, DAY_NS

SMALL_BYTES = 128 << 10
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
_BELOW: Mapping[str, frozenset[str]] = {
    "STANDARD_IA": frozenset({"INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"}),
    "INTELLIGENT_TIERING": frozenset({"ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"}),
    "ONEZONE_IA": frozenset({"GLACIER", "DEEP_ARCHIVE"}),
    "GLACIER_IR": frozenset({"GLACIER", "DEEP_ARCHIVE"}),
    "GLACIER": frozenset({"DEEP_ARCHIVE"}),
    "DEEP_ARCHIVE": frozenset(),
}
"""Where a version may move to from each class; from any other, which is STANDARD, to all."""
_CHEAPNESS = {name: number for number, name in enumerate(CLASSES)}
_WAITS = frozenset({Status.PENDING, Status.FAILED})
BATCH_JOB = "BatchJob"
"""What blocks the removal of a marker that came by replication, while a backfill into its bucket may still bring
the versions below it."""


class Kind(enum.StrEnum):
    """What is done to a version, in the words of S3's rules."""

    EXPIRE = "Expiration"
    """A current version gets a marker on top; in a bucket that was never versioned the file is removed for good."""
    REMOVE_MARKER = "ExpiredObjectDeleteMarker"
    """A marker of which no version is left is removed."""
    REMOVE_VERSION = "NoncurrentVersionExpiration"
    """A noncurrent version, or marker, is removed for good."""
    TRANSITION = "Transition"
    TRANSITION_NONCURRENT = "NoncurrentVersionTransition"


@dataclass(frozen=True, slots=True)
class Action:
    """What a rule asks for one version. due_ns: from when on. blocked_by: why it waits nevertheless, empty where
    nothing keeps it."""

    version_id: str
    kind: Kind
    due_ns: int
    rule: str
    storage_class: str = ""
    blocked_by: str = ""


class Facts(NamedTuple):
    """What is known of one version. Tags and class are None where they are not: then the rules that ask for them are
    taken to select it."""

    id: str
    created_ns: int
    marker: bool = False
    size: int = 0
    tags: Mapping[str, str] | None = {}
    storage_class: str | None = ""
    status: Status | None = None


def actions(
    lifecycle: Lifecycle, key: bytes, versions: Sequence[Facts], versioning: Versioning, now_ns: int,
    *, batch: bool = False,
) -> list[Action]:  # fmt: skip
    """What is due for a key at a moment, the newest version first. versions: all of them, the newest first.

    batch: whether a backfill into the bucket is under way.
    """
    due: dict[str, list[Action]] = {}
    for action in asked(lifecycle, key, versions, versioning):
        if action.due_ns <= now_ns:
            due.setdefault(action.version_id, []).append(action)
    if not due:
        return []
    chosen = [_holds(due[facts.id], versioning) for facts in versions if facts.id in due]
    return [replace(each, blocked_by=_blocked(each, versions, versioning, batch=batch)) for each in chosen]


def upcoming(
    lifecycle: Lifecycle, key: bytes, versions: Sequence[Facts], versioning: Versioning, *, batch: bool = False
) -> list[Action]:
    """All that rules ask for a key as it is now, the earliest first, and what would keep each."""
    found = sorted(asked(lifecycle, key, versions, versioning), key=lambda each: each.due_ns)
    return [replace(each, blocked_by=_blocked(each, versions, versioning, batch=batch)) for each in found]


def asked(
    lifecycle: Lifecycle, key: bytes, versions: Sequence[Facts], versioning: Versioning
) -> Iterator[Action]:  # fmt: skip
    """All that rules ask for a key as it is now, whenever it is due, also where it conflicts."""
    rules = [rule for rule in lifecycle.rules if rule.enabled and key.startswith(rule.prefix)]
    if not rules:
        return
    is_alone = len(versions) == 1
    for state, facts in enumerate(versions):
        for rule in rules:
            if not _selects(rule, facts):
                continue
            if state:
                yield from _of_noncurrent(lifecycle, rule, facts, versions[state - 1].created_ns, state - 1)
            elif facts.marker:
                if is_alone and (action := _of_lone_marker(rule, facts)) is not None:
                    yield action
            else:
                yield from _of_current(lifecycle, rule, facts, versioning)


def _selects(rule: LifecycleRule, facts: Facts) -> bool:
    if not rule.tags and not rule.has_size:
        return True
    if facts.marker:
        return False
    if rule.larger_than is not None and facts.size <= rule.larger_than:
        return False
    if rule.smaller_than is not None and facts.size >= rule.smaller_than:
        return False
    return facts.tags is None or all(facts.tags.get(name) == value for name, value in rule.tags.items())


def _of_lone_marker(rule: LifecycleRule, facts: Facts) -> Action | None:
    if rule.expired_markers:
        return Action(facts.id, Kind.REMOVE_MARKER, facts.created_ns, rule.id)
    if rule.expiration is not None:
        return Action(facts.id, Kind.REMOVE_MARKER, _due(rule.expiration, facts.created_ns), rule.id)
    return None


def _of_current(lifecycle: Lifecycle, rule: LifecycleRule, facts: Facts, versioning: Versioning) -> Iterator[Action]:
    if rule.expiration is not None:
        yield Action(facts.id, Kind.EXPIRE, _due(rule.expiration, facts.created_ns), rule.id)
    if versioning is Versioning.OFF:
        return  # there is no record to write a class on
    for transition in rule.transitions:
        if _may_move(lifecycle, rule, facts, transition.storage_class):
            due_ns = _due(transition.term, facts.created_ns)
            yield Action(facts.id, Kind.TRANSITION, due_ns, rule.id, transition.storage_class)


def _of_noncurrent(
    lifecycle: Lifecycle, rule: LifecycleRule, facts: Facts, since_ns: int, newer: int
) -> Iterator[Action]:
    """since_ns: when its successor was made. newer: how many noncurrent versions are newer."""
    term = rule.noncurrent_expiration
    if term is not None and newer >= term.newer:
        yield Action(facts.id, Kind.REMOVE_VERSION, _midnight(since_ns + term.days * DAY_NS), rule.id)
    for transition in rule.noncurrent_transitions if not facts.marker else ():
        term = transition.term
        if newer >= term.newer and _may_move(lifecycle, rule, facts, transition.storage_class):
            due_ns = _midnight(since_ns + term.days * DAY_NS)
            yield Action(facts.id, Kind.TRANSITION_NONCURRENT, due_ns, rule.id, transition.storage_class)


def _may_move(lifecycle: Lifecycle, rule: LifecycleRule, facts: Facts, to: str) -> bool:
    """Only to cheaper classes, and small objects only where the rule says something of their size."""
    if facts.size < SMALL_BYTES and not rule.has_size and not (lifecycle.small_to_archive and to in _ARCHIVES):
        return False
    present = facts.storage_class or ""
    return present not in _BELOW or to in _BELOW[present]


def _due(term: Term, created_ns: int) -> int:
    return term.date_ns if term.date_ns is not None else _midnight(created_ns + term.days * DAY_NS)


def _midnight(ns: int) -> int:
    """The next midnight UTC; one that it is already."""
    return within(-(-ns // DAY_NS) * DAY_NS)


def _holds(due: Sequence[Action], versioning: Versioning) -> Action:
    """Of several actions for one version the one that holds: removal for good before a transition, and that before a
    marker; the earlier of two removals, the cheaper class of two transitions."""
    permanent = {Kind.REMOVE_VERSION, Kind.REMOVE_MARKER} | ({Kind.EXPIRE} if versioning is Versioning.OFF else set())
    removals = [each for each in due if each.kind in permanent]
    moves = [each for each in due if each.storage_class]
    if moves and not removals:
        return min(moves, key=lambda each: (-_CHEAPNESS[each.storage_class], each.due_ns))
    return min(removals or due, key=lambda each: each.due_ns)


def _blocked(action: Action, versions: Sequence[Facts], versioning: Versioning, *, batch: bool) -> str:
    """What keeps an action from being carried out, empty where nothing does."""
    gone = [facts for facts in versions if facts.id == action.version_id]
    if action.kind is Kind.EXPIRE and versioning is Versioning.SUSPENDED:
        gone += [facts for facts in versions if facts.id == NULL]  # the null marker takes its place
    for facts in gone:
        if facts.status in _WAITS:
            return str(facts.status)
    if batch and action.kind is Kind.REMOVE_MARKER and gone[0].status is Status.REPLICA:
        return BATCH_JOB
    return ""
