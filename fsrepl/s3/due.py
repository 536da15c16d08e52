"""Lifecycle actions: which ones the rules request for a key, and which are due at a given time. Pure: no I/O, no clock.

`asked` lists all actions that rules request for a key in its current state. `actions` lists the due ones, one per
version, with conflicts resolved. Source: s3-semantics, 5.2 to 5.5.

A rule with tags or sizes does not act on markers, which have neither. S3 documents this for some actions and is silent
on the others; a marker that is kept can still be removed later.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.model.clock import within
from fsrepl.model.lifecycle import Lifecycle, LifecycleRule, Term
from fsrepl.model.version import NULL, Status, Versioning
from fsrepl.s3.lifecycle import CLASSES, DAY_NS
from fsrepl.settings import ARCHIVES

SMALL_BYTES = 128 << 10
_BELOW: Mapping[str, frozenset[str]] = {
    "STANDARD_IA": frozenset({"INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"}),
    "INTELLIGENT_TIERING": frozenset({"ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"}),
    "ONEZONE_IA": frozenset({"GLACIER", "DEEP_ARCHIVE"}),
    "GLACIER_IR": frozenset({"GLACIER", "DEEP_ARCHIVE"}),
    "GLACIER": frozenset({"DEEP_ARCHIVE"}),
    "DEEP_ARCHIVE": frozenset(),
}
"""Storage classes that a version may move to, by its class; from any other class, which is STANDARD, to all."""
_CHEAPNESS = {name: number for number, name in enumerate(CLASSES)}
WAITS = frozenset({Status.PENDING, Status.FAILED})
"""Statuses that block every action on a version."""
BATCH_JOB = "BatchJob"
"""Why a replicated marker is not removed: a backfill into its bucket may still bring the versions below it."""


class Kind(enum.StrEnum):
    """Kinds of action on a version, named as in S3's rules."""

    EXPIRE = "Expiration"
    """A current version gets a marker on top; in a never-versioned bucket the file is removed permanently."""
    REMOVE_MARKER = "ExpiredObjectDeleteMarker"
    """A marker without versions is removed."""
    REMOVE_VERSION = "NoncurrentVersionExpiration"
    """A noncurrent version or marker is removed permanently."""
    TRANSITION = "Transition"
    TRANSITION_NONCURRENT = "NoncurrentVersionTransition"


class Action(Struct, frozen=True):
    """An action that a rule requests for one version. due_ns: the time it becomes due. blocked_by: why it waits all the
    same, empty where nothing blocks it."""

    version_id: str
    kind: Kind
    due_ns: int
    rule: str
    storage_class: str = ""
    blocked_by: str = ""


class Facts(NamedTuple):
    """Known facts about one version. Unknown tags are None, and so is an unknown class; rules that filter by them are
    then assumed to select the version. in_tier: whether its content lies in a tier, which matters to no rule."""

    id: str
    created_ns: int
    marker: bool = False
    size: int = 0
    tags: Mapping[str, str] | None = {}
    storage_class: str | None = ""
    status: Status | None = None
    in_tier: bool = False


def actions(
    lifecycle: Lifecycle, key: bytes, versions: Sequence[Facts], versioning: Versioning, now_ns: int,
    *, batch: bool = False,
) -> list[Action]:  # fmt: skip
    """The actions due for a key at a given time, newest version first. versions: all of the key's, newest first.

    batch: whether a backfill into the bucket is running.
    """
    due: dict[str, list[Action]] = {}
    for action in asked(lifecycle, key, versions, versioning):
        if action.due_ns <= now_ns:
            due.setdefault(action.version_id, []).append(action)
    if not due:
        return []
    chosen = [_holds(due[facts.id], versioning) for facts in versions if facts.id in due]
    if not batch and all(facts.status is None for facts in versions):
        return chosen
    return [replace(each, blocked_by=_blocked(each, versions, versioning, batch=batch)) for each in chosen]


def is_abandoned(lifecycle: Lifecycle, began_ns: int, now_ns: int) -> bool:
    """Whether a rule for the whole bucket ends an incomplete upload that began at a given time. Rules with a prefix do
    not apply, since a staged file has no key yet."""
    days = [rule.abort_days for rule in lifecycle.rules if rule.enabled and not rule.prefix and rule.abort_days]
    return bool(days) and _midnight(began_ns + min(days) * DAY_NS) <= now_ns


def upcoming(
    lifecycle: Lifecycle, key: bytes, versions: Sequence[Facts], versioning: Versioning, *, batch: bool = False
) -> list[Action]:
    """All actions that rules request for a key in its current state, earliest first, each with the reason that blocks
    it."""
    found = sorted(asked(lifecycle, key, versions, versioning), key=lambda each: each.due_ns)
    return [replace(each, blocked_by=_blocked(each, versions, versioning, batch=batch)) for each in found]


def asked(
    lifecycle: Lifecycle, key: bytes, versions: Sequence[Facts], versioning: Versioning
) -> Iterator[Action]:  # fmt: skip
    """All actions that rules request for a key in its current state, at any time and including conflicting ones."""
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
        return  # a never-versioned bucket has no record for a class
    for transition in rule.transitions:
        if _may_move(lifecycle, rule, facts, transition.storage_class):
            due_ns = _due(transition.term, facts.created_ns)
            yield Action(facts.id, Kind.TRANSITION, due_ns, rule.id, transition.storage_class)


def _of_noncurrent(
    lifecycle: Lifecycle, rule: LifecycleRule, facts: Facts, since_ns: int, newer: int
) -> Iterator[Action]:
    """Actions on a noncurrent version. since_ns: when its successor was made. newer: the number of newer noncurrent
    versions."""
    term = rule.noncurrent_expiration
    if term is not None and newer >= term.newer:
        yield Action(facts.id, Kind.REMOVE_VERSION, _midnight(since_ns + term.days * DAY_NS), rule.id)
    for transition in rule.noncurrent_transitions if not facts.marker else ():
        term = transition.term
        if newer >= term.newer and _may_move(lifecycle, rule, facts, transition.storage_class):
            due_ns = _midnight(since_ns + term.days * DAY_NS)
            yield Action(facts.id, Kind.TRANSITION_NONCURRENT, due_ns, rule.id, transition.storage_class)


def _may_move(lifecycle: Lifecycle, rule: LifecycleRule, facts: Facts, to: str) -> bool:
    """Whether a transition is allowed: only to cheaper classes, and for small objects only where the rule filters by
    size."""
    if facts.size < SMALL_BYTES and not rule.has_size and not (lifecycle.small_to_archive and to in ARCHIVES):
        return False
    present = facts.storage_class or ""
    return present not in _BELOW or to in _BELOW[present]


def _due(term: Term, created_ns: int) -> int:
    return term.date_ns if term.date_ns is not None else _midnight(created_ns + term.days * DAY_NS)


def _midnight(ns: int) -> int:
    """The next midnight UTC, or the given time where it is midnight."""
    return within(-(-ns // DAY_NS) * DAY_NS)


def _holds(due: Sequence[Action], versioning: Versioning) -> Action:
    """The action that wins among several for one version: permanent removal before a transition, a transition before a
    marker, the earlier of two removals, the cheaper class of two transitions."""
    if len(due) == 1:
        return due[0]
    permanent = {Kind.REMOVE_VERSION, Kind.REMOVE_MARKER} | ({Kind.EXPIRE} if versioning is Versioning.OFF else set())
    removals = [each for each in due if each.kind in permanent]
    moves = [each for each in due if each.storage_class]
    if moves and not removals:
        return min(moves, key=lambda each: (-_CHEAPNESS[each.storage_class], each.due_ns))
    return min(removals or due, key=lambda each: each.due_ns)


def _blocked(action: Action, versions: Sequence[Facts], versioning: Versioning, *, batch: bool) -> str:
    """The reason that blocks an action, empty where nothing does."""
    gone = [facts for facts in versions if facts.id == action.version_id]
    if action.kind is Kind.EXPIRE and versioning is Versioning.SUSPENDED:
        gone += [facts for facts in versions if facts.id == NULL]  # the null marker replaces it
    for facts in gone:
        if facts.status in WAITS:
            return str(facts.status)
    if batch and action.kind is Kind.REMOVE_MARKER and gone[0].status is Status.REPLICA:
        return BATCH_JOB
    return ""
