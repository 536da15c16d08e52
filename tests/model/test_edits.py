"""Which metadata was edited, which of two edits wins, and which destinations receive it: every case small; both sides
agree."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from fsrepl.model import attributes, metadata
from fsrepl.model.metadata import ACL, ATTRS, GROUPS, POSIX, TAGS
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import DeliveryRecord, Origin, Posix, Shortfall, Status, Version
from fsrepl.s3 import edit_rules

HERE, THERE, ELSEWHERE = "west/dst", "east/src", "north/far"
OBJECT = Posix(0o640, 7, 8, 9, b"acl")


def version(**more: object) -> Version:
    made: dict[str, object] = {
        "digest": b"d" * 32, "posix": OBJECT, "attrs": {"user.a": b"1"}, "tags": {"t": "1"}, **more,
    }  # fmt: skip
    return Version(b"k", "V", 1, **made)  # type: ignore[arg-type]


def rule(to: str, *, sync: bool = False, rule_id: str = "r", **more: object) -> Rule:
    return Rule(rule_id, True, b"", to, v2=True, replica_modifications=sync, **more)  # type: ignore[arg-type]


# -- what was edited


EDITS = {
    POSIX: {"posix": replace(OBJECT, mtime_ns=10)},
    ACL: {"posix": replace(OBJECT, acl=None)},
    ATTRS: {"attrs": {}},
    TAGS: {"tags": {"t": "2"}},
}


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_each_group_of_metadata_has_its_own_stamp(group: str) -> None:
    """s3-semantics 2.2: the removal of a value is an edit too."""
    assert metadata.changed(version(), version(**EDITS[group])) == {group}
    assert metadata.changed(version(), version()) == set()


def test_a_view_as_it_was_shown_is_no_edit() -> None:
    """Section 2: values that a view could not be given are no edit of its version."""
    short = Shortfall(Posix(0o600, 0, 0, 5, None), frozenset({"user.a", "user.fsrepl.tag.t", attributes.VERSION_ID}))
    was = version(shortfall=short)
    assert short.posix is not None
    assert metadata.seen(was, short.posix, {}, {}, labelled=False) == was


def test_an_edit_of_an_incomplete_view_changes_the_edited_value_alone() -> None:
    """Section 2: chmod where the owner could not be set edits the mode, and leaves the owner on the record."""
    short = Shortfall(Posix(0o600, 0, 0, 9, None), frozenset({"user.a"}))
    seen = metadata.seen(version(shortfall=short), Posix(0o400, 0, 0, 9, None), {"user.b": b"2"}, {"t": "1"})
    assert seen.posix == replace(OBJECT, mode=0o400)
    assert seen.attrs == {"user.a": b"1", "user.b": b"2"}
    assert seen.shortfall == Shortfall(Posix(0o400, 0, 0, 9, None), frozenset({"user.a"}))


def test_a_value_that_a_view_has_again_can_be_removed() -> None:
    """Once it is shown, its user may remove it."""
    short = version(shortfall=Shortfall(None, frozenset({"user.a"})))
    shown = metadata.seen(short, OBJECT, {"user.a": b"1"}, {"t": "1"})
    assert not metadata.changed(short, shown)
    assert not shown.shortfall
    assert metadata.changed(shown, metadata.seen(shown, OBJECT, {}, {"t": "1"})) == {ATTRS}


@pytest.mark.parametrize(
    ("tags", "labelled", "expected"),
    [
        ({}, True, {}),
        ({}, False, {"t": "1"}),  # another file took the place of the view
        ({"u": "2"}, False, {"u": "2"}),  # and brought tags of its own
        ({"t": "1", "u": "2"}, True, {"t": "1", "u": "2"}),
    ],
)
def test_tags_on_a_view(tags: Mapping[str, str], labelled: bool, expected: Mapping[str, str]) -> None:
    """Section 2: a tag attribute is a tag; a file without tags that replaces the view keeps the version's."""
    assert metadata.seen(version(), OBJECT, {"user.a": b"1"}, tags, labelled=labelled).tags == expected


def test_an_unreadable_view_still_shows_its_mode() -> None:
    """Section 2: chmod 0000 is an edit, and does not change the attributes that cannot be read."""
    seen = metadata.seen(version(), replace(OBJECT, mode=0))
    assert metadata.changed(version(), seen) == {POSIX}


# -- which edit wins


def test_an_edit_is_later_than_the_one_it_replaces() -> None:
    """s3-semantics 2.2: an edit made with knowledge of another wins, also where the clock was set back."""
    first = metadata.stamped(version(), {TAGS}, 1000, THERE)
    second = metadata.stamped(first, {TAGS, ACL}, 10, HERE)
    assert second.edited == {TAGS: f"1001 {HERE}", ACL: f"1001 {HERE}"}
    assert metadata.merged(first, second).edited[TAGS] == second.edited[TAGS]
    assert metadata.merged(second, first) == second


changes = st.fixed_dictionaries(
    {
        "posix": st.builds(Posix, st.integers(0, 7), st.just(1), st.just(1), st.just(0), st.sampled_from([None, b"a"])),
        "attrs": st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.sampled_from([b"1", b"2"])),
        "tags": st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"])),
    }
)
steps = st.lists(st.tuples(st.sampled_from([HERE, THERE, ELSEWHERE]), st.integers(1, 4), changes), max_size=6)


@given(steps, st.randoms())
def test_sides_that_received_all_edits_agree(made: list[tuple[str, int, dict[str, object]]], random: object) -> None:
    """s3-semantics 2.2: edits on any side, delivered in any order and any number of times, lead to the same state on
    all."""
    sides = dict.fromkeys((HERE, THERE, ELSEWHERE), version())
    for place, now_ns, change in made:
        edited = replace(sides[place], **change)  # type: ignore[arg-type]
        sides[place] = metadata.stamped(edited, metadata.changed(sides[place], edited), now_ns, place)
        a, b = random.sample(list(sides), 2)  # type: ignore[attr-defined]
        sides[b] = metadata.merged(sides[b], sides[a])
    for a, b in [*itertools.permutations(sides, 2)] * 2:
        sides[b] = metadata.merged(sides[b], sides[a])
    assert len({(v.posix, *sorted(v.attrs.items()), *sorted(v.tags.items()), *sorted(v.edited.items()))
                for v in sides.values()}) == 1  # fmt: skip


def test_a_group_that_is_not_permitted_leaves_the_other_side_unchanged() -> None:
    """s3-semantics 6.1: without the permission for tags an object is sent without them, and the replica loses none."""
    there = version(tags={"kept": "1"})
    sent = metadata.without(metadata.stamped(version(attrs={}), {ATTRS, TAGS}, 5, THERE), TAGS)
    now = metadata.merged(there, sent, GROUPS - {TAGS})
    assert (now.tags, now.attrs, now.edited) == ({"kept": "1"}, {}, {ATTRS: f"5 {THERE}"})


# -- which edits are sent


DONE, WAITS = DeliveryRecord("r", Status.COMPLETED), DeliveryRecord("r", Status.PENDING)
REFUSED, EDIT_REFUSED = DeliveryRecord("r", Status.FAILED, "x"), DeliveryRecord("r", Status.FAILED, "x", edit=True)


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        (DONE, (Status.PENDING, True)),
        (EDIT_REFUSED, (Status.PENDING, True)),  # another edit is another operation
        (WAITS, (Status.PENDING, False)),  # the delivery includes the edit
        (REFUSED, (Status.FAILED, False)),  # s3-semantics 0.8: it never arrived, and FAILED is for good
    ],
)
def test_every_destination_that_has_the_version_receives_the_edit(
    recorded: DeliveryRecord, expected: tuple[Status, bool]
) -> None:
    """s3-semantics 2: tags and ACLs that change later reach replicated versions, under the same id."""
    was = version(deliveries={HERE: recorded})
    now = metadata.stamped(replace(was, tags={}), {TAGS}, 5, THERE)
    delivery = edit_rules.edit_deliveries(was, now, Replication("role", (rule(HERE),)), home=THERE)[HERE]
    assert (delivery.status, delivery.edit) == expected
    assert delivery.since_ns == (5 if recorded.settled and expected[1] else 0)


@pytest.mark.parametrize(
    ("rules", "travels"),
    [
        ((rule(HERE),), True),
        ((replace(rule(HERE), enabled=False),), False),
        ((rule(ELSEWHERE),), False),  # its destination was changed
        ((rule(HERE, rule_id="new"),), True),  # it was replaced by another to the same destination
        ((replace(rule(HERE, rule_id="new"), prefix=b"other"),), False),
        ((rule(HERE, rule_id="new", tags={"t": "1"}),), True),  # chosen by the tags from before the edit
        ((rule(HERE, rule_id="new", tags={"t": "2"}),), True),  # or after it
        ((rule(HERE, rule_id="new", tags={"t": "3"}),), False),
        ((), False),
    ],
)
def test_an_edit_needs_a_rule_in_effect(rules: tuple[Rule, ...], travels: bool) -> None:
    """s3-semantics 1.5: a rule that is disabled, or has another destination, sends nothing."""
    was = version(deliveries={HERE: DONE})
    now = metadata.stamped(replace(was, tags={"t": "2"}), {TAGS}, 5, THERE)
    delivery = edit_rules.edit_deliveries(was, now, Replication("role", rules), home=THERE)
    assert (delivery[HERE].status is Status.PENDING) is travels


def test_owner_override_stops_edits_of_the_acl_alone() -> None:
    """s3-semantics 1.5: the ACL of such a replica belongs to its owner; all other edits are sent."""
    was = version(deliveries={HERE: replace(DONE, owner="Destination")})
    for change, travels in ((EDITS[ACL], False), (EDITS[POSIX], True), ({**EDITS[ACL], **EDITS[TAGS]}, True)):
        now = metadata.stamped(replace(was, **change), metadata.changed(was, replace(was, **change)), 5, THERE)  # type: ignore[arg-type]
        delivery = edit_rules.edit_deliveries(was, now, Replication("role", (rule(HERE),)), home=THERE)
        assert (delivery[HERE].status is Status.PENDING) is travels, change


@pytest.mark.parametrize(("back", "forth"), [*itertools.product([False, True], repeat=2)])
def test_a_replicas_edit_goes_back_where_both_sides_say_so(back: bool, forth: bool) -> None:
    """s3-semantics 2.2: ReplicaModifications must be Enabled in the rules on both buckets."""
    was = version(origin=Origin.REPLICA, source=THERE)
    now = metadata.stamped(replace(was, tags={}), {TAGS}, 5, HERE)
    here, there = Replication("role", (rule(THERE, sync=back),)), Replication("role", (rule(HERE, sync=forth),))
    delivery = edit_rules.edit_deliveries(was, now, here, home=HERE, original=there)
    expected = {THERE: DeliveryRecord("r", Status.PENDING, since_ns=5, edit=True)} if back and forth else {}
    assert delivery == expected
    assert edit_rules.edit_deliveries(was, now, here, home=HERE) == {}
    assert edit_rules.edit_deliveries(was, now, None, home=HERE, original=there) == {}
    assert edit_rules.edit_deliveries(was, now, here, home=HERE, original=there, but=THERE) == {}
    assert edit_rules.edit_deliveries(was, was, here, home=HERE, original=there) == {}


def test_a_replica_is_not_handed_on() -> None:
    """s3-semantics 0.4: a copy that a backfill made from a replica gets the replica's edits only where the rule says
    so."""
    was = version(origin=Origin.REPLICA, source=THERE, deliveries={ELSEWHERE: replace(DONE, job="job")})
    now = metadata.stamped(replace(was, tags={}), {TAGS}, 5, HERE)
    for sync in (False, True):
        delivery = edit_rules.edit_deliveries(was, now, Replication("role", (rule(ELSEWHERE, sync=sync),)), home=HERE)[
            ELSEWHERE
        ]
        assert (delivery.status is Status.PENDING) is sync
        assert delivery.job == ("" if sync else "job")
