"""Lifecycle actions on a key, and their times: s3-semantics, 5.2 to 5.5, line by line, and compared with a model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrepl.model import clock
from fsrepl.model.version import Status, Versioning
from fsrepl.s3 import due
from fsrepl.s3.due import Action, Facts, Kind
from fsrepl.s3.lifecycle import CLASSES, read_lifecycle
from tests import lifecycle_model

Json = dict[str, Any]
OFF, ENABLED, SUSPENDED = Versioning.OFF, Versioning.ENABLED, Versioning.SUSPENDED
LARGE = 1 << 20


def at(text: str) -> int:
    return clock.parse(text if "T" in text else f"{text}T00:00:00Z")


def rule(filter_: Json | None = None, **actions: object) -> Json:
    return {"Rules": [{"ID": "r", "Filter": filter_ or {}, "Status": "Enabled", **actions}]}


def days(number: int) -> Json:
    return rule(Expiration={"Days": number})


def noncurrent(number: int, newer: int = 0, filter_: Json | None = None) -> Json:
    more = {"NewerNoncurrentVersions": newer} if newer else {}
    return rule(filter_, NoncurrentVersionExpiration={"NoncurrentDays": number, **more})


def stack(*created: str, markers: str = "", **more: Any) -> list[Facts]:
    """Versions of a key, the newest first, called a, b, c; those named in `markers` are markers."""
    return [
        Facts(name, at(when), name in markers, 0 if name in markers else LARGE, **more)
        for name, when in zip("abcdefgh", created, strict=False)
    ]


def actions(
    document: Json, versions: list[Facts], now: str, versioning: Versioning = ENABLED, *, batch: bool = False
) -> list[Action]:
    return due.actions(read_lifecycle(document), b"k/1", versions, versioning, at(now), batch=batch)


def done(*args: Any, **more: Any) -> list[tuple[str, Kind]]:
    return [(each.version_id, each.kind) for each in actions(*args, **more)]


MAY_1 = "2026-05-01T10:00:00Z"


# -- 5.1: what a rule selects


@pytest.mark.parametrize(
    ("filter_", "facts", "selected"),
    [
        ({}, {}, True),
        ({"Prefix": "k/"}, {}, True),
        ({"Prefix": "k"}, {}, True),
        ({"Prefix": "K/"}, {}, False),
        ({"Tag": {"Key": "a", "Value": "1"}}, {"tags": {"a": "1", "b": "2"}}, True),
        ({"Tag": {"Key": "a", "Value": "1"}}, {"tags": {"a": "2"}}, False),
        ({"Tag": {"Key": "a", "Value": "1"}}, {}, False),
        ({"Tag": {"Key": "a", "Value": ""}}, {}, False),
        ({"ObjectSizeGreaterThan": 100}, {"size": 100}, False),
        ({"ObjectSizeGreaterThan": 100}, {"size": 101}, True),
        ({"ObjectSizeLessThan": 100}, {"size": 100}, False),
        ({"ObjectSizeLessThan": 100}, {"size": 99}, True),
        ({"And": {"Prefix": "k/", "ObjectSizeLessThan": 100}}, {"size": 99}, True),
        ({"And": {"Prefix": "x/", "ObjectSizeLessThan": 100}}, {"size": 99}, False),
        ({"And": {"Tags": [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]}}, {"tags": {"a": "1"}}, False),
    ],
)
def test_what_a_rule_selects(filter_: Json, facts: Json, selected: bool) -> None:
    """5.1: prefix byte for byte, tags by key and value, sizes as exclusive bounds."""
    versions = [Facts("a", at(MAY_1), **facts)]
    assert bool(done(rule(filter_, Expiration={"Days": 1}), versions, "2027-01-01")) is selected


def test_a_disabled_rule_does_nothing() -> None:
    """5.1: Status."""
    off = days(1)
    off["Rules"][0]["Status"] = "Disabled"
    assert done(off, stack(MAY_1), "2027-01-01") == []


def test_tags_that_are_not_known_may_be_the_right_ones() -> None:
    """5.1: where tags have not been read yet, the answer says to read them."""
    tagged = rule({"Tag": {"Key": "a", "Value": "1"}}, Expiration={"Days": 1})
    assert done(tagged, [Facts("a", at(MAY_1), tags=None)], "2027-01-01")


# -- 5.2: each action


@pytest.mark.parametrize("versioning", [OFF, ENABLED, SUSPENDED])
def test_expiration_of_a_current_version(versioning: Versioning) -> None:
    """5.2, the first row: of the current version alone."""
    assert done(days(1), stack(MAY_1), "2026-05-03", versioning) == [("a", Kind.EXPIRE)]


@pytest.mark.parametrize("versioning", [ENABLED, SUSPENDED])
def test_expiration_passes_over_a_marker_with_versions_below(versioning: Versioning) -> None:
    """5.2, the second row."""
    versions = stack(MAY_1, "2026-04-01", markers="a")
    assert done(days(1), versions, "2027-01-01", versioning) == []
    assert done(rule(Expiration={"ExpiredObjectDeleteMarker": True}), versions, "2027-01-01", versioning) == []


@pytest.mark.parametrize("versioning", [ENABLED, SUSPENDED])
def test_a_marker_of_which_no_version_is_left(versioning: Versioning) -> None:
    """5.2, the third row: with Days once it is that old, with ExpiredObjectDeleteMarker as soon as it is seen."""
    alone = stack(MAY_1, markers="a")
    assert done(days(2), alone, "2026-05-03", versioning) == []
    assert done(days(2), alone, "2026-05-04", versioning) == [("a", Kind.REMOVE_MARKER)]
    seen = rule(Expiration={"ExpiredObjectDeleteMarker": True})
    assert done(seen, alone, MAY_1, versioning) == [("a", Kind.REMOVE_MARKER)]
    assert done(rule(Expiration={"ExpiredObjectDeleteMarker": False}), alone, "2027-01-01", versioning) == []


@pytest.mark.parametrize("filter_", [{"Tag": {"Key": "a", "Value": "1"}}, {"ObjectSizeLessThan": 100}])
def test_rules_with_tags_or_sizes_leave_markers_alone(filter_: Json) -> None:
    """s3/due.py: a marker has neither."""
    assert done(rule(filter_, Expiration={"Days": 1}), stack(MAY_1, markers="a"), "2027-01-01") == []
    assert done(noncurrent(1, filter_=filter_), stack(MAY_1, MAY_1, markers="b"), "2027-01-01") == []


@pytest.mark.parametrize("versioning", [ENABLED, SUSPENDED])
def test_noncurrent_versions_and_markers_go(versioning: Versioning) -> None:
    """5.2, the last row: markers count as versions, and the current version stays."""
    versions = stack("2026-05-03", "2026-05-02", "2026-05-01", markers="b")
    gone = [("b", Kind.REMOVE_VERSION), ("c", Kind.REMOVE_VERSION)]
    assert done(noncurrent(1), versions, "2027-01-01", versioning) == gone


def test_where_nothing_was_ever_versioned_nothing_is_noncurrent() -> None:
    """5.2, the last row, the first column; and no version has a class there."""
    assert done(noncurrent(1), stack(MAY_1), "2027-01-01", OFF) == []
    assert done(rule(Transitions=[{"Days": 0, "StorageClass": "GLACIER"}]), stack(MAY_1), "2027-01-01", OFF) == []


# -- 5.3: when


@pytest.mark.parametrize(
    ("created", "after", "when"),
    [
        ("2026-01-15T10:30:00Z", 3, "2026-01-19"),
        ("2026-01-15T00:00:00Z", 3, "2026-01-18"),
        ("2026-01-15T00:00:00.000000001Z", 3, "2026-01-19"),
        ("2026-01-15T23:59:59.999999999Z", 1, "2026-01-17"),
        ("2024-02-28T12:00:00Z", 1, "2024-03-01"),
    ],
)
def test_due_times_are_rounded_up_to_midnight(created: str, after: int, when: str) -> None:
    """5.3, the first line: never a nanosecond earlier."""
    (found,) = due.asked(read_lifecycle(days(after)), b"k", stack(created), ENABLED)
    assert found.due_ns == at(when)
    assert due.actions(read_lifecycle(days(after)), b"k", stack(created), ENABLED, at(when) - 1) == []
    assert due.actions(read_lifecycle(days(after)), b"k", stack(created), ENABLED, at(when)) == [found]


def test_a_transition_after_no_days() -> None:
    """5.1, 5.3: at the next midnight."""
    at_once = rule(Transitions=[{"Days": 0, "StorageClass": "GLACIER"}])
    assert done(at_once, stack(MAY_1), "2026-05-01T23:59:59Z") == []
    assert done(at_once, stack(MAY_1), "2026-05-02") == [("a", Kind.TRANSITION)]


def test_a_noncurrent_version_counts_from_its_successor() -> None:
    """5.3: an object or a marker; where the successor is removed, the next newer version; without one no age counts."""
    versions = stack("2026-05-10T10:00:00Z", "2026-05-05T10:00:00Z", "2026-01-01", markers="b")
    due_of = {each.version_id: each.due_ns for each in actions(noncurrent(3), versions, "2027-01-01")}
    assert due_of == {"b": at("2026-05-14"), "c": at("2026-05-09")}
    without = [versions[0], versions[2]]
    assert [each.due_ns for each in actions(noncurrent(3), without, "2027-01-01")] == [at("2026-05-14")]
    assert actions(noncurrent(3), versions[2:], "2027-01-01") == []


def test_a_date() -> None:
    """5.3: a date in the past makes all versions due, also later ones; a future date none."""
    on = rule(Expiration={"Date": "2026-05-01T00:00:00Z"})
    assert done(on, stack("2026-01-01"), "2026-04-30T23:59:59Z") == []
    assert done(on, stack("2026-01-01"), "2026-05-01") == [("a", Kind.EXPIRE)]
    assert done(on, stack("2026-06-01"), "2026-06-02") == [("a", Kind.EXPIRE)]


def test_newer_noncurrent_versions_are_kept() -> None:
    """5.3: both conditions must hold, enough days and enough newer versions; so the newest are kept for ever."""
    versions = stack("2026-05-05", "2026-05-04", "2026-05-03", "2026-05-02", "2026-05-01")
    assert done(noncurrent(1, 2), versions, "2027-01-01") == [("d", Kind.REMOVE_VERSION), ("e", Kind.REMOVE_VERSION)]
    assert done(noncurrent(1, 2), versions, "2026-05-03") == [("e", Kind.REMOVE_VERSION)]
    assert done(noncurrent(1, 2), versions[:3], "2027-01-01") == []


def test_abandoned_uploads_are_removed() -> None:
    """5.1: days after they began, rounded as all ages are; by the shortest of the rules for the whole bucket."""

    def rule_of(number: int, prefix: str, status: str = "Enabled") -> Json:
        abort = {"DaysAfterInitiation": number}
        return {
            "ID": f"{number}{prefix}",
            "Filter": {"Prefix": prefix},
            "Status": status,
            "AbortIncompleteMultipartUpload": abort,
        }

    rules = [rule_of(9, ""), rule_of(3, ""), rule_of(1, "k/"), rule_of(2, "", "Disabled")]
    lifecycle = read_lifecycle({"Rules": rules})
    assert not due.is_abandoned(lifecycle, at(MAY_1), at("2026-05-05") - 1)
    assert due.is_abandoned(lifecycle, at(MAY_1), at("2026-05-05"))
    assert not due.is_abandoned(read_lifecycle(days(1)), at(MAY_1), at("2030-01-01"))


# -- 5.4: conflicts


GLACIER_30 = {"Days": 30, "StorageClass": "GLACIER"}


def test_permanent_removal_is_before_a_transition() -> None:
    """5.4, the first sentence."""
    both = noncurrent(30)
    both["Rules"][0]["NoncurrentVersionTransitions"] = [{"NoncurrentDays": 1, "StorageClass": "GLACIER"}]
    versions = stack("2026-05-02", "2026-05-01")
    assert done(both, versions, "2026-05-04") == [("b", Kind.TRANSITION_NONCURRENT)]
    assert done(both, versions, "2027-01-01") == [("b", Kind.REMOVE_VERSION)]


def test_a_transition_is_before_a_marker() -> None:
    """5.4: at the next run, when no transition is left, the marker is made."""
    both = rule(Expiration={"Days": 30}, Transitions=[GLACIER_30])
    assert done(both, stack(MAY_1), "2027-01-01") == [("a", Kind.TRANSITION)]
    assert done(both, stack(MAY_1, storage_class="GLACIER"), "2027-01-01") == [("a", Kind.EXPIRE)]


def test_of_two_expirations_the_earlier_wins() -> None:
    """5.4: and its rule is named."""
    late, early = days(9)["Rules"][0], {**days(3)["Rules"][0], "ID": "early"}
    (found,) = actions({"Rules": [late, early]}, stack(MAY_1), "2027-01-01")
    assert (found.rule, found.due_ns) == ("early", at("2026-05-05"))


def test_of_two_transitions_the_cheaper_class_wins() -> None:
    """5.4: GLACIER over IA."""
    two = rule(Transitions=[GLACIER_30, {"Days": 30, "StorageClass": "STANDARD_IA"}])
    (found,) = actions(two, stack(MAY_1), "2027-01-01")
    assert found.storage_class == "GLACIER"


DOWN = {
    "": set(CLASSES),
    "STANDARD_IA": {"INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"},
    "INTELLIGENT_TIERING": {"ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"},
    "ONEZONE_IA": {"GLACIER", "DEEP_ARCHIVE"},
    "GLACIER_IR": {"GLACIER", "DEEP_ARCHIVE"},
    "GLACIER": {"DEEP_ARCHIVE"},
    "DEEP_ARCHIVE": set(),
}


@pytest.mark.parametrize("before", DOWN)
@pytest.mark.parametrize("to", CLASSES)
def test_transitions_only_go_down(before: str, to: str) -> None:
    """5.4."""
    move = rule(Transitions=[{"Days": 30, "StorageClass": to}])
    found = done(move, stack(MAY_1, storage_class=before), "2027-01-01")
    assert bool(found) is (to in DOWN[before])


def test_small_objects_do_not_move() -> None:
    """5.4: under 128 KB, unless the rule limits their size."""
    move = {"Transitions": [GLACIER_30]}
    small, limit = [Facts("a", at(MAY_1), size=131071)], [Facts("a", at(MAY_1), size=131072)]
    assert done(rule(**move), small, "2027-01-01") == []
    assert done(rule(**move), limit, "2027-01-01") == [("a", Kind.TRANSITION)]
    assert done(rule({"ObjectSizeGreaterThan": 0}, **move), small, "2027-01-01") == [("a", Kind.TRANSITION)]
    varies = {**rule(**move), "TransitionDefaultMinimumObjectSize": "varies_by_storage_class"}
    assert done(varies, small, "2027-01-01") == [("a", Kind.TRANSITION)]


# -- 5.5: together with replication


BLOCKS = {None: "", Status.COMPLETED: "", Status.REPLICA: "", Status.PENDING: "PENDING", Status.FAILED: "FAILED"}


@pytest.mark.parametrize("status", BLOCKS)
@pytest.mark.parametrize(
    ("document", "versions"),
    [
        (days(1), stack(MAY_1)),
        (rule(Transitions=[GLACIER_30]), stack(MAY_1)),
        (noncurrent(1), stack("2026-05-02", MAY_1)),
        (
            rule(NoncurrentVersionTransitions=[{"NoncurrentDays": 1, "StorageClass": "GLACIER"}]),
            stack("2026-05-02", MAY_1),
        ),
        (days(1), stack(MAY_1, markers="a")),
    ],
    ids=[str(kind) for kind in (Kind.EXPIRE, Kind.TRANSITION, Kind.REMOVE_VERSION, Kind.TRANSITION_NONCURRENT, "lone")],
)
def test_what_is_not_replicated_yet_waits(document: Json, versions: list[Facts], status: Status | None) -> None:
    """5.5, 1, 2, 3 and 7: PENDING and FAILED block, REPLICA does not; the due time stays what it was."""
    free = actions(document, versions, "2027-01-01")
    held = actions(document, [each._replace(status=status) for each in versions], "2027-01-01")
    assert [each.blocked_by for each in free] == [""]
    assert [each.blocked_by for each in held] == [BLOCKS[status]]
    assert [each.due_ns for each in held] == [each.due_ns for each in free]


def test_a_null_marker_waits_for_the_null_version_that_it_replaces() -> None:
    """5.2, 5.5: in a suspended bucket it would permanently remove that version."""
    versions = [Facts("a", at("2026-05-02")), Facts("null", at(MAY_1), status=Status.PENDING)]
    assert [each.blocked_by for each in actions(days(1), versions, "2027-01-01", SUSPENDED)] == ["PENDING"]
    assert [each.blocked_by for each in actions(days(1), versions, "2027-01-01", ENABLED)] == [""]


@pytest.mark.parametrize(("status", "blocked"), [(Status.REPLICA, "BatchJob"), (None, ""), (Status.PENDING, "PENDING")])
def test_replicated_markers_stay_during_a_backfill(status: Status | None, blocked: str) -> None:
    """5.5, 6: the versions below them may still arrive."""
    alone = [Facts("a", at(MAY_1), marker=True, status=status)]
    assert [each.blocked_by for each in actions(days(1), alone, "2027-01-01", batch=True)] == [blocked]


# -- against the model


# Strategies are made once: Hypothesis checks and measures each one anew, for longer than all else here takes.
_TAG = st.builds(lambda k, v: {"Key": k, "Value": v}, st.sampled_from("ab"), st.sampled_from("12"))
_PREFIX = st.sampled_from(["", "k", "k/", "x"])
_FILTERS = st.one_of(
    st.just({}),
    st.builds(lambda p: {"Prefix": p}, _PREFIX),
    st.builds(lambda t: {"Tag": t}, _TAG),
    st.builds(lambda n: {"ObjectSizeGreaterThan": n}, st.sampled_from([0, 5, 200_000])),
    st.builds(lambda n: {"ObjectSizeLessThan": n}, st.sampled_from([5, 200_000])),
    st.builds(lambda p, t: {"And": {"Prefix": p, "Tags": [t]}}, _PREFIX, _TAG),
    st.builds(lambda p: {"And": {"Prefix": p, "ObjectSizeGreaterThan": 5, "ObjectSizeLessThan": 300_000}}, _PREFIX),
)
_DATES = st.sampled_from(["2026-05-01T00:00:00+00:00", "2026-05-09T00:00:00+00:00"])
_SOME_DAYS = st.integers(1, 6)
_EXPIRATIONS = [st.builds(lambda d: {"Days": d}, _SOME_DAYS), st.builds(lambda d: {"Date": d}, _DATES)]
_ARCHIVE = st.sampled_from(["INTELLIGENT_TIERING", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"])
_NEWER = st.sampled_from([{}, {"NewerNoncurrentVersions": 1}, {"NewerNoncurrentVersions": 2}])
_ACTIONS = {
    "Expiration": st.one_of(_EXPIRATIONS),
    "Transitions": st.lists(
        st.one_of(
            st.builds(lambda d, c: {"Days": d, "StorageClass": c}, st.integers(0, 5), _ARCHIVE),
            st.builds(lambda d, c: {"Date": d, "StorageClass": c}, _DATES, st.sampled_from(CLASSES)),
        ),
        min_size=1,
        max_size=2,
    ),
    "NoncurrentVersionExpiration": st.builds(lambda d, n: {"NoncurrentDays": d, **n}, _SOME_DAYS, _NEWER),
    "NoncurrentVersionTransitions": st.lists(
        st.builds(lambda d, c, n: {"NoncurrentDays": d, "StorageClass": c, **n}, _SOME_DAYS, _ARCHIVE, _NEWER),
        min_size=1,
        max_size=2,
    ),
}
_ACTIONS_OF_PLAIN_FILTERS = {
    **_ACTIONS,
    "Expiration": st.one_of([*_EXPIRATIONS, st.just({"ExpiredObjectDeleteMarker": True})]),
}
_NAMES = st.sets(st.sampled_from(sorted(_ACTIONS)), min_size=1)
_STATUS = st.sampled_from(["Enabled"] * 5 + ["Disabled"])


@st.composite
def _rules(draw: st.DrawFn) -> Json:
    found: Json = {"Filter": draw(_FILTERS), "Status": draw(_STATUS)}
    plain = not {"Tag", "ObjectSizeGreaterThan", "ObjectSizeLessThan", "And"} & set(found["Filter"])
    actions = _ACTIONS_OF_PLAIN_FILTERS if plain else _ACTIONS
    for name in draw(_NAMES):
        found[name] = draw(actions[name])
    return found


_FLAG = st.booleans()
_NUMBER = st.integers(1, 4)
_SIZES = st.sampled_from([0, 5, 6, 131_071, 131_072, 250_000])
_TAGS = st.dictionaries(st.sampled_from("ab"), st.sampled_from("12"))
_CLASSES = st.sampled_from(["STANDARD", *CLASSES])
_STATUSES = st.sampled_from(["", "", "COMPLETED", "REPLICA", "PENDING", "FAILED"])
_HOURS = st.integers(0, 60)


@st.composite
def _stacks(draw: st.DrawFn) -> list[lifecycle_model.HeldVersion]:
    """Versions of one key, the newest first, hours apart; one of them may be `null`."""
    moment = datetime(2026, 5, 1, 22, tzinfo=UTC)
    versions = []
    for number in range(draw(_NUMBER)):
        marker = draw(_FLAG)
        versions.append(
            lifecycle_model.HeldVersion(
                str(number),
                moment,
                marker,
                0 if marker else draw(_SIZES),
                {} if marker else draw(_TAGS),
                "STANDARD" if marker else draw(_CLASSES),
                draw(_STATUSES),
            )
        )
        moment += timedelta(hours=draw(_HOURS))
    if draw(_FLAG):
        draw(st.sampled_from(versions)).id = "null"
    return versions[::-1]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(_rules(), min_size=1, max_size=3), _stacks(), st.sampled_from(Versioning), st.integers(0, 24 * 14),
    st.booleans(),
)  # fmt: skip
def test_the_same_actions_as_a_model_of_the_text(
    rules: list[Json], held: list[lifecycle_model.HeldVersion], versioning: Versioning, hours: int, batch: bool
) -> None:
    """5.1 to 5.5: which action is due, for which version, and what keeps it, for any rules."""
    if versioning is OFF:
        held = [each for each in held if not each.marker][:1]
    document = {"Rules": [{"ID": str(number), **each} for number, each in enumerate(rules)]}
    now = datetime(2026, 5, 1, tzinfo=UTC) + timedelta(hours=hours)
    facts = [
        Facts(
            each.id, int(each.created.timestamp()) * 10**9, each.marker, each.size, each.tags,
            "" if each.storage_class == "STANDARD" else each.storage_class,
            Status(each.status) if each.status else None,
        )
        for each in held
    ]  # fmt: skip
    found = due.actions(read_lifecycle(document), b"k/1", facts, versioning, int(now.timestamp()) * 10**9, batch=batch)
    got = [(each.version_id, str(each.kind), each.storage_class, each.blocked_by) for each in found]
    assert got == lifecycle_model.run(document, "k/1", held, str(versioning), now, batch=batch)
