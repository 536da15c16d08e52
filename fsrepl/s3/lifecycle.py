"""Lifecycle configurations in S3's JSON: parsed, refused with S3's codes, and returned unchanged. Pure.

s3/schema.py has their form. `_faults` checks what types cannot express in one rule, and `_faults_together` across all
rules. s3/due.py applies the rules. Source: s3-semantics, 5.1 and 5.6.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from fsrepl.errors import Refused
from fsrepl.model import clock, lifecycle
from fsrepl.model.lifecycle import Lifecycle, Noncurrent, NoncurrentTransition, Term
from fsrepl.s3 import faults
from fsrepl.s3.conform import conform, quoted
from fsrepl.s3.faults import Fault, key_prefix
from fsrepl.s3.replication import RULES_MAX
from fsrepl.s3.schema import (
    Expiration,
    LifecycleConfiguration,
    LifecycleFilter,
    LifecycleRule,
    NoncurrentVersionExpiration,
    NoncurrentVersionTransition,
    Tag,
    Transition,
)

DAY_NS = 86_400 * 1_000_000_000
CLASSES = ("STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE")
"""Storage classes that a transition may name, in order of falling cost."""
_IA_DAYS_MIN = 30
_IA = ("STANDARD_IA", "ONEZONE_IA")
_NEWER_MAX = 100
_ACTIONS = (
    "Expiration",
    "Transitions",
    "NoncurrentVersionExpiration",
    "NoncurrentVersionTransitions",
    "AbortIncompleteMultipartUpload",
)
_EXPIRATIONS = ("Days", "Date", "ExpiredObjectDeleteMarker")
_BOUNDS = ("ObjectSizeGreaterThan", "ObjectSizeLessThan")


def read_lifecycle(document: object) -> Lifecycle:
    """A configuration, with or without the wrapper that `aws s3api` accepts.

    The result's document is the one to save and to return: unchanged, except that missing ids are added. Raises Refused
    with the codes of s3-semantics, 5.6.
    """
    return _read(document)


def read_new(document: object) -> Lifecycle:
    """A configuration that is to be saved: refused also where one action of a rule leaves nothing for another.

    What is saved already is not refused for that, since earlier builds accepted it. Raises Refused.
    """
    return _read(document, _faults_of_order)


def _read(document: object, further: Callable[[LifecycleRule], Iterator[Fault]] = lambda _: iter(())) -> Lifecycle:
    inner = faults.unwrapped(document, "LifecycleConfiguration")
    found = copy.deepcopy(conform(inner, LifecycleConfiguration, "MalformedXML"))
    rules = found["Rules"]
    if not rules:
        raise Refused("MalformedXML", "Rules is empty; a configuration has at least one, and `rm` removes it")
    if len(rules) > RULES_MAX:
        raise Refused("MalformedXML", f"a configuration may have {RULES_MAX:,} rules, and this has {len(rules):,}")
    for number, rule in enumerate(rules):
        found_in = itertools.chain(_faults(rule), further(rule))
        faults.refuse_first(found_in, f"{faults.named(rule.get('ID'), number)}: ")
    faults.refuse_first(_faults_together(rules))
    taken = {rule.get("ID", "") for rule in rules}
    fresh = (name for number in itertools.count(1) if (name := f"rule-{number}") not in taken)
    for rule in rules:
        rule["ID"] = rule.get("ID") or next(fresh)
    varies = found.get("TransitionDefaultMinimumObjectSize") == "varies_by_storage_class"
    return Lifecycle(tuple(map(_rule, rules)), cast(Mapping[str, object], found), small_to_archive=varies)


# -- a rule as a value


def _rule(written: LifecycleRule) -> lifecycle.LifecycleRule:
    prefix, tags, bounds = _selection(written)
    expiration = written.get("Expiration", {})
    abort = written.get("AbortIncompleteMultipartUpload")
    return lifecycle.LifecycleRule(
        id=written["ID"],
        enabled=written["Status"] == "Enabled",
        prefix=key_prefix(prefix),
        tags={tag["Key"]: tag["Value"] for tag in tags},
        larger_than=bounds.get("ObjectSizeGreaterThan"),
        smaller_than=bounds.get("ObjectSizeLessThan"),
        expiration=_term(expiration) if "Days" in expiration or "Date" in expiration else None,
        expired_markers=expiration.get("ExpiredObjectDeleteMarker", False),
        transitions=tuple(
            lifecycle.Transition(each["StorageClass"], _term(each)) for each in written.get("Transitions", [])
        ),
        noncurrent_expiration=_noncurrent(written.get("NoncurrentVersionExpiration")),
        noncurrent_transitions=tuple(
            NoncurrentTransition(
                each["StorageClass"], Noncurrent(each["NoncurrentDays"], each.get("NewerNoncurrentVersions", 0))
            )
            for each in written.get("NoncurrentVersionTransitions", [])
        ),
        abort_days=abort["DaysAfterInitiation"] if abort else None,
    )


def _selection(rule: LifecycleRule) -> tuple[str, list[Tag], dict[str, int]]:
    """The prefix, tags and size bounds of a rule, in whichever form the rule has them."""
    found = rule.get("Filter", {})
    several = found.get("And", {})
    prefix = rule.get("Prefix") or found.get("Prefix") or several.get("Prefix") or ""
    both = {**found, **several}
    bounds = {name: cast(int, both[name]) for name in _BOUNDS if name in both}
    return prefix, [found["Tag"]] if "Tag" in found else several.get("Tags", []), bounds


def _term(written: Expiration | Transition) -> Term:
    return Term(date_ns=_date(written["Date"])) if "Date" in written else Term(written["Days"])


def _noncurrent(written: NoncurrentVersionExpiration | None) -> Noncurrent | None:
    return Noncurrent(written["NoncurrentDays"], written.get("NewerNoncurrentVersions", 0)) if written else None


def _date(text: str) -> int:
    """A date, or a time as `aws s3api` prints it. Raises ValueError."""
    with_time = text if len(text) > len("2026-01-01") else f"{text}T00:00:00Z"
    return clock.parse(with_time)


# -- checks of a configuration in the right form. Source: s3-semantics, 5.6


def _faults(rule: LifecycleRule) -> Iterator[Fault]:
    """Faults within one rule."""
    yield from _faults_of_selection(rule)
    if not any(rule.get(name) for name in _ACTIONS if name != "Expiration") and "Expiration" not in rule:
        yield "InvalidRequest", f"At least one action needs to be specified in a rule: {', '.join(_ACTIONS)}"
    yield from _faults_of_expiration(rule)
    for transition in rule.get("Transitions", []):
        yield from _faults_of_transition(transition)
    for noncurrent in rule.get("NoncurrentVersionTransitions", []):
        yield from _faults_of_class(noncurrent["StorageClass"], noncurrent["NoncurrentDays"], "NoncurrentDays")
        yield from _faults_of_newer(rule, noncurrent)
    if "NoncurrentVersionExpiration" in rule:
        expiration = rule["NoncurrentVersionExpiration"]
        if expiration["NoncurrentDays"] < 1:
            yield (
                "InvalidArgument",
                "'NoncurrentDays' for NoncurrentVersionExpiration action must be a positive integer",
            )
        yield from _faults_of_newer(rule, expiration)
    abort = rule.get("AbortIncompleteMultipartUpload")
    if abort and abort["DaysAfterInitiation"] < 1:
        yield "InvalidArgument", "'DaysAfterInitiation' for AbortIncompleteMultipartUpload must be a positive integer"
    _, tags, bounds = _selection(rule)
    if abort and (tags or bounds):
        yield "InvalidRequest", f"AbortIncompleteMultipartUpload cannot be specified with {_of_what(tags)}"


def _of_what(tags: Sequence[Tag]) -> str:
    return "Tags: an upload has none yet" if tags else "Object Size: an upload has none yet"


def _faults_of_selection(rule: LifecycleRule) -> Iterator[Fault]:
    """Faults in a rule's filter and id."""
    if "Prefix" in rule and "Filter" in rule:
        yield "InvalidRequest", "it has both Prefix and Filter; Filter alone is the present form"
    if "Prefix" not in rule and "Filter" not in rule:
        yield (
            "MalformedXML",
            "it has neither Prefix nor Filter; Filter is the present form, an empty one means the whole bucket",
        )
    found: LifecycleFilter = rule.get("Filter", {})
    if len(found) > 1:
        yield "MalformedXML", f"Filter has {' and '.join(found)}; several predicates belong in Filter.And"
    several = found.get("And", {})
    predicates = len(several) - ("Tags" in several) + len(several.get("Tags", []))
    if "And" in found and predicates < 2:
        yield "MalformedXML", "Filter.And needs two predicates; a single one belongs in Filter itself"
    prefix, tags, bounds = _selection(rule)
    yield from faults.of_tags([tag["Key"] for tag in tags])
    yield from faults.of_prefix(prefix)
    yield from faults.of_id(rule.get("ID", ""))
    for name, size_bytes in bounds.items():
        if size_bytes < (0 if name == "ObjectSizeGreaterThan" else 1):
            yield "InvalidRequest", f"{name} must be a positive number of bytes, not {size_bytes}"
    if len(bounds) == 2 and bounds["ObjectSizeLessThan"] <= bounds["ObjectSizeGreaterThan"]:
        yield "InvalidRequest", "ObjectSizeLessThan has to be a value greater than ObjectSizeGreaterThan"


def _faults_of_expiration(rule: LifecycleRule) -> Iterator[Fault]:
    if "Expiration" not in rule:
        return
    expiration = rule["Expiration"]
    if len(expiration) != 1:
        given = " and ".join(expiration) or "nothing"
        yield "MalformedXML", f"Expiration has {given}; it needs exactly one of {', '.join(_EXPIRATIONS)}"
    _, tags, bounds = _selection(rule)
    if "ExpiredObjectDeleteMarker" in expiration and (tags or bounds):
        what = "tags" if tags else "object sizes"
        yield "InvalidRequest", f"ExpiredObjectDeleteMarker cannot be specified with {what}: a marker has none"
    if "Days" in expiration and expiration["Days"] < 1:
        yield "InvalidArgument", "'Days' for Expiration action must be a positive integer"
    yield from _faults_of_date(expiration.get("Date"), "Expiration")


def _faults_of_transition(written: Transition) -> Iterator[Fault]:
    if ("Days" in written) == ("Date" in written):
        both = "both Days and Date" if "Date" in written else "neither Days nor Date"
        yield "MalformedXML", f"a transition to {written['StorageClass']} has {both}"
    yield from _faults_of_class(written["StorageClass"], written.get("Days"), "Days")
    yield from _faults_of_date(written.get("Date"), "Transition")


def _faults_of_class(storage_class: str, days: int | None, name: str) -> Iterator[Fault]:
    if storage_class not in CLASSES:
        yield "MalformedXML", f"StorageClass {quoted(storage_class)} is none of {', '.join(CLASSES)}"
    if days is None:
        return
    if days < 0:
        yield "InvalidArgument", f"'{name}' in Transition action must be nonnegative"
    if storage_class in _IA and days < _IA_DAYS_MIN:
        yield (
            "InvalidArgument",
            f"'{name}' in Transition action must be greater than or equal to {_IA_DAYS_MIN} for storageClass "
            f"'{storage_class}', and is {days}",
        )


def _faults_of_date(date: str | None, action: str) -> Iterator[Fault]:
    if date is None:
        return
    try:
        found = _date(date)
    except ValueError:
        yield "MalformedXML", f"Date {quoted(date)} is no date such as 2026-01-01T00:00:00Z"
        return
    if found % DAY_NS:
        yield "InvalidArgument", f"'Date' of {action} must be at midnight GMT, and is {quoted(date)}"


def _faults_of_order(rule: LifecycleRule) -> Iterator[Fault]:
    """Faults of actions together: what expires first is never moved.

    Source: answers of S3, quoted in public reports of Terraform and CDK.
    """
    prefix = quoted(_selection(rule)[0])[1:-1]
    where = f"filter '(prefix={prefix})'" if "Filter" in rule else f"prefix '{prefix}'"
    transitions, expiration = rule.get("Transitions", []), rule.get("Expiration", {})
    if len({"Date" in each for each in transitions}) > 1:
        yield "InvalidRequest", f"Found mixed 'Date' and 'Days' based Transition actions in lifecycle rule for {where}"
        return
    term = next((name for name in ("Days", "Date") if name in expiration), "")
    if transitions and term and term not in transitions[0]:
        what = "Found mixed 'Date' and 'Days' based Expiration and Transition actions in lifecycle rule for"
        yield "InvalidRequest", f"{what} {where}"
    elif transitions and term:
        latest = max(transitions, key=lambda each: _due_in(each))
        if _due_in(expiration) <= _due_in(latest):
            yield _too_soon(term, ("Expiration", expiration), ("Transition", latest), where)
    ends, moves = rule.get("NoncurrentVersionExpiration"), rule.get("NoncurrentVersionTransitions", [])
    if ends is not None and moves:
        last = max(moves, key=lambda each: each["NoncurrentDays"])
        if ends["NoncurrentDays"] <= last["NoncurrentDays"]:
            actions = ("NoncurrentVersionExpiration", ends), ("NoncurrentVersionTransition", last)
            yield _too_soon("NoncurrentDays", *actions, where)


def _due_in(written: Expiration | Transition) -> int:
    """When an action is due, in the unit that the rule uses, for comparison."""
    return _date(written["Date"]) if "Date" in written else written["Days"]


def _too_soon(
    term: str, expiration: tuple[str, Mapping[str, Any]], transition: tuple[str, Mapping[str, Any]], where: str
) -> Fault:
    (ends, end), (moves, move) = expiration, transition
    return (
        "InvalidArgument",
        f"'{term}' in the {ends} action for {where} must be greater than '{term}' in the {moves} action, and is "
        f"{end[term]} where that to {move['StorageClass']} has {move[term]}",
    )


def _faults_of_newer(
    rule: LifecycleRule, written: NoncurrentVersionExpiration | NoncurrentVersionTransition
) -> Iterator[Fault]:
    if "NewerNoncurrentVersions" not in written:
        return
    if "Filter" not in rule:
        yield "InvalidRequest", "NewerNoncurrentVersions needs a Filter instead of Prefix"
    if not 1 <= written["NewerNoncurrentVersions"] <= _NEWER_MAX:
        yield (
            "InvalidArgument",
            f"NewerNoncurrentVersions must be between 1 and {_NEWER_MAX}, not {written['NewerNoncurrentVersions']}",
        )


def _faults_together(rules: Sequence[LifecycleRule]) -> Iterator[Fault]:
    """Faults across rules that are valid one by one. Disabled rules count."""
    yield from faults.of_ids(rule.get("ID") for rule in rules)
    filtered = sum("Filter" in rule for rule in rules)
    if 0 < filtered < len(rules):
        yield "InvalidRequest", "some rules have a Prefix of their own and others a Filter; give all of them a Filter"
    if filtered:
        return
    for action in _ACTIONS:
        prefixes = sorted((key_prefix(rule["Prefix"]), rule["Prefix"]) for rule in rules if rule.get(action))
        for (shorter, one), (longer, other) in itertools.pairwise(prefixes):
            if longer.startswith(shorter):
                yield (
                    "InvalidRequest",
                    f"Found overlapping prefixes {quoted(one)} and {quoted(other)} for same action type "
                    f"'{action.removesuffix('s')}'; only a Filter may overlap",
                )
