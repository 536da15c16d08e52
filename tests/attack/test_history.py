"""The checker of the attack is itself checked: it finds each kind of violation, and none in a history without."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.attack.history import EMPTY, NULL, History, Kind, Listed, check, out_of_step
from tests.attack.ledger import REST_S, File, Rest

EAST, WEST = "east/src", "west/dst"

ONE = Listed("k", "01A", 1, "one", EAST, completed=frozenset({WEST}))
TWO = Listed("k", "01B", 2, "two", EAST, completed=frozenset({WEST}))
MARKER = Listed("k", "01C", 3, "", EAST, is_marker=True, completed=frozenset({WEST}))


def rest(digest: str, since_s: float, until_s: float, bucket: str = EAST) -> Rest:
    return Rest(bucket, "k", File(1, 1, digest), since_s, until_s)


def history(*source: Listed, replicas: tuple[Listed, ...] | None = None, before: tuple[Listed, ...] = ()) -> History:
    """Two saves and a deletion, each at rest for long, and these versions in the end."""
    there = replicas if replicas is not None else tuple(replace(each, completed=frozenset()) for each in source)
    return History(
        rests=[rest("one", 0, 2 * REST_S), rest("two", 2 * REST_S, 4 * REST_S)],
        contents={"one": 0, "two": 2 * REST_S},
        listings=[{EAST: before, WEST: before}, {EAST: source, WEST: there}],
        up=[(0, 100)],
    )


def kinds(found: History) -> set[Kind]:
    return {each.kind for each in check(found)}


def test_a_history_in_order_has_no_violation() -> None:
    """Also with a content of a moment, with the same content again after another, and with a marker of each side."""
    assert check(history(ONE, TWO, MARKER)) == []
    empty = Listed("k", "01AA", 1, EMPTY, EAST)
    assert check(history(ONE, empty, TWO, MARKER)) == []
    again = history(ONE, TWO, replace(ONE, id="01D", created_ns=4))
    assert kinds(again) == {Kind.SWAPPED}
    again.rests.append(rest("one", 5 * REST_S, 6 * REST_S))
    assert check(again) == []
    again.rests.pop()
    again.copied = {"one"}
    assert check(again) == []
    elsewhere = Listed("k", "01D", 4, "", WEST, is_marker=True)
    assert check(history(ONE, TWO, MARKER, elsewhere)) == []


@pytest.mark.parametrize(
    ("kind", "source", "more"),
    [
        (Kind.LOST, (ONE, MARKER), {}),
        (Kind.LOST, (ONE, replace(TWO, key="other")), {}),
        (Kind.MIXED, (ONE, replace(TWO, id="01AB", digest="on-wo"), TWO), {}),
        (Kind.SWAPPED, (replace(ONE, created_ns=2, id="01B"), replace(TWO, created_ns=1, id="01A")), {}),
        (Kind.DOUBLED, (ONE, TWO, replace(TWO, id="01C", created_ns=3)), {}),
        (Kind.DOUBLED, (ONE, TWO, MARKER, replace(MARKER, id="01D", created_ns=4)), {}),
        (Kind.UNREPLICATED, (ONE, TWO), {"replicas": (ONE,)}),
        (Kind.UNREPLICATED, (ONE, TWO), {"replicas": (ONE, replace(TWO, is_whole=False))}),
        (Kind.UNREPLICATED, (ONE, TWO, MARKER), {"replicas": (ONE, TWO)}),
        (Kind.DIFFERENT, (ONE, TWO), {"replicas": (ONE, replace(TWO, digest="one"))}),
        (Kind.DIFFERENT, (ONE, TWO), {"replicas": (ONE, replace(TWO, created_ns=3))}),
        (Kind.GONE, (ONE, TWO), {"before": (ONE, TWO, MARKER)}),
        (Kind.BACKDATED, (ONE, TWO), {"before": (TWO,)}),
        (Kind.DAMAGED, (replace(ONE, is_whole=False), TWO), {}),
    ],
)
def test_each_kind_of_violation_is_found(
    kind: Kind, source: tuple[Listed, ...], more: dict[str, tuple[Listed, ...]]
) -> None:
    """One thing is wrong, and that is what is said."""
    assert kind in kinds(history(*source, **more))


def test_a_violation_in_an_earlier_listing_counts() -> None:
    """COMPLETED too early is wrong, even where the replica is there in the end."""
    found = history(ONE, TWO)
    found.listings[0] = {EAST: (ONE,), WEST: ()}
    assert kinds(found) == {Kind.UNREPLICATED}


def test_null_versions_are_replaced_by_the_next() -> None:
    """While versioning is suspended a key has one version with the id null, which each save replaces."""
    null = Listed("k", NULL, 2, "two", EAST)
    found = history(ONE, null, replicas=(ONE,), before=(replace(ONE, id=NULL),))
    assert check(found) == []
    lost = history(ONE, null)
    lost.rests.append(rest("between", 20 * REST_S, 22 * REST_S))
    lost.up = [(0, 30 * REST_S)]
    assert kinds(lost) == {Kind.LOST}
    lost.suspended = [(19 * REST_S, 21 * REST_S)]
    assert check(lost) == []


def test_a_name_that_joins_or_leaves_the_names_of_a_file_is_a_version_in_tree_buckets() -> None:
    """The content is the same, and what changed is recorded; without other names it is one save, captured twice."""
    found = history(ONE, TWO, replace(TWO, id="01C", created_ns=3))
    found.groups_links = True
    assert kinds(found) == {Kind.DOUBLED}
    found.rests.append(replace(rest("two", 4 * REST_S, 5 * REST_S), file=File(1, 1, "two", names=2)))
    assert check(found) == []
    found.groups_links = False
    assert kinds(found) == {Kind.DOUBLED}


def test_content_that_came_back_after_a_null_version_is_no_doubled_save() -> None:
    """The null version that was between has been replaced since; only a key whose content went and came back may."""
    found = history(ONE, TWO, replace(TWO, id="01C", created_ns=3))
    found.suspended = [(90, 91)]
    assert kinds(found) == {Kind.DOUBLED}
    found.rests.append(rest("two", 5 * REST_S, 6 * REST_S))
    assert check(found) == []


def test_content_overwritten_in_place_is_not_promised_where_files_are_linked() -> None:
    found = history(replace(ONE, is_whole=False), TWO)
    found.overwritten = {"one"}
    assert check(found) == []


def test_at_rest_every_content_is_everywhere_and_markers_where_they_were_due() -> None:
    """A marker from while the rule was disabled stays here; a content from then comes with a backfill."""
    unsent = replace(MARKER, completed=frozenset())
    listing = {EAST: (ONE, TWO, unsent), WEST: (replace(ONE, completed=frozenset()),)}
    both = {EAST: (WEST,), WEST: (EAST,)}
    assert [each.kind for each in out_of_step(listing, both)] == [Kind.UNREPLICATED]
    assert out_of_step(listing, both, {"other"}) != []
    assert out_of_step(listing, both, {TWO.digest}) == []
    assert out_of_step({EAST: (ONE, TWO, unsent), WEST: (ONE, TWO)}, both) == []


UNREAD = Listed("k", ONE.id, 0, "", "", is_whole=False, is_unread=True)


def test_a_version_whose_record_could_not_be_read_before_is_not_backdated() -> None:
    """Where files are linked, a user may have written another version's record over it; it is repaired later."""
    assert kinds(history(ONE, TWO, before=(TWO,))) == {Kind.BACKDATED}
    assert kinds(history(ONE, TWO, before=(UNREAD, TWO))) == set()


def test_a_version_whose_record_cannot_be_read_is_there() -> None:
    """Its name is, and so its source may say that it is COMPLETED; of content and order nothing is known."""
    there = (UNREAD, replace(TWO, completed=frozenset()))
    assert kinds(history(ONE, TWO, replicas=there)) == set()
    assert out_of_step({EAST: (ONE, TWO), WEST: there}, {EAST: (WEST,), WEST: (EAST,)}) == []
    assert kinds(history(ONE, TWO, before=(replace(ONE, key="other"),), replicas=there)) == {Kind.GONE}
    assert kinds(history(UNREAD, TWO)) == {Kind.LOST}
