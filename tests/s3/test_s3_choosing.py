"""Which versions are replicated, and why: s3-semantics, 1.3, 1.5 and 2, row by row, through a whole site."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.commands import why
from fsrepl.model.version import Status
from tests.world import DESTINATION, SOURCE, Json, World, at, v1, v2

FAR = "north/far"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False, buckets=(SOURCE, DESTINATION, FAR)) as found:
        yield found


def crossed(world: World, bucket: str = DESTINATION) -> set[str]:
    return set(world.tree(bucket))


# -- 1.3: choosing the rule


KEYS = ["Tax/doc1", "Taxes/x", "Tax2", "tax/doc1", "Legal/Tax", "logs/a", "logs", "é/1", "e/1"]


@pytest.mark.parametrize(
    ("prefix", "chosen"),
    [
        ("", KEYS),
        ("Tax", ["Tax/doc1", "Taxes/x", "Tax2"]),
        ("Tax/", ["Tax/doc1"]),
        ("/Tax", []),
        ("logs", ["logs/a", "logs"]),
        ("logs/", ["logs/a"]),
        ("é", ["é/1"]),
        ("Tax*", []),
    ],
)
@pytest.mark.parametrize("rule", [v1, v2])
def test_a_prefix_is_a_plain_string_test(
    world: World, rule: Callable[[str], Json], prefix: str, chosen: list[str]
) -> None:
    """Section 0, 12; 1.3, 1 and 5: byte for byte, case sensitive, no folder, no pattern."""
    world.configure(rule(prefix))
    for key in KEYS:
        if key != "logs":  # a tree has either the file or the directory
            world.write(key, key.encode())
    world.settle()
    assert crossed(world) == set(chosen) - {"logs"}
    unchosen = {v.key.decode() for versions in world.history(SOURCE).values() for v in versions if v.status is None}
    assert unchosen == set(KEYS) - {"logs"} - set(chosen)


@pytest.mark.parametrize(
    ("tags", "matches"),
    [
        ({}, False),
        ({"class": "blue"}, True),
        ({"class": "Blue"}, False),
        ({"Class": "blue"}, False),
        ({"class": "blue", "extra": "1"}, True),
        ({"extra": "blue"}, False),
    ],
)
def test_every_tag_of_a_rule_must_be_on_the_object(world: World, tags: dict[str, str], matches: bool) -> None:
    """1.3, 1; section 9, 11: extra tags do not matter; files get theirs before they are moved in."""
    world.configure(v2(tags={"class": "blue"}))
    world.drop("k", b"data", tags=tags)
    world.settle()
    assert (crossed(world) == {"k"}) is matches
    assert world.current("k").status == (Status.COMPLETED if matches else None)
    if matches:
        assert world.current("k", DESTINATION).tags == tags


def test_predicates_under_and_must_all_hold(world: World) -> None:
    """1.1, Filter.And."""
    world.configure(v2("p/", tags={"a": "1", "b": "2"}))
    for key, tags in {
        "p/both": {"a": "1", "b": "2"},
        "p/one": {"a": "1"},
        "q/both": {"a": "1", "b": "2"},
        "p/wrong": {"a": "1", "b": "1"},
    }.items():
        world.drop(key, key.encode(), tags=tags)
    world.settle()
    assert crossed(world) == {"p/both"}


def test_the_highest_priority_decides_for_one_destination_alone(world: World) -> None:
    """Section 0, 9; 1.3, 2 and 3: the winner's class and rule id; other destinations get their own copy."""
    world.configure(
        {**v2("", 1, StorageClass="STANDARD_IA"), "ID": "low"},
        {**v2("a/", 7, StorageClass="ONEZONE_IA"), "ID": "high"},
        {**v2("a/b", 9, status="Disabled", StorageClass="GLACIER_IR"), "ID": "off"},
        {**v2("a/", 3, to=FAR, StorageClass="GLACIER"), "ID": "far"},
    )
    for key in ("a/b", "c"):
        world.write(key, key.encode())
    world.settle()
    assert {n: d.rule for n, d in world.current("a/b").deliveries.items()} == {DESTINATION: "high", FAR: "far"}
    assert world.current("a/b", DESTINATION).storage_class == "ONEZONE_IA"
    assert world.current("a/b", FAR).storage_class == "GLACIER"
    assert world.current("c", DESTINATION).storage_class == "STANDARD_IA"
    assert crossed(world, FAR) == {"a/b"}
    assert world.current("a/b").storage_class == ""


# -- 1.3, 4 and section 2: markers


@pytest.mark.parametrize(
    ("rules", "crosses"),
    [
        pytest.param([v1()], True, id="V1 always"),
        pytest.param([v1("k")], True, id="V1 prefix"),
        pytest.param([v1("other")], False, id="V1 another prefix"),
        pytest.param([v1(status="Disabled")], False, id="V1 disabled"),
        pytest.param([v2(markers=True)], True, id="V2 enabled"),
        pytest.param([v2(markers=False)], False, id="V2 disabled"),
        pytest.param([v2("", 1, markers=True), v2("k", 2)], False, id="the winner says no"),
        pytest.param([v2("", 1), v2("k", 2, markers=True)], True, id="the winner says yes"),
        pytest.param([v2("", 1, markers=True), v2("k", 2, status="Disabled")], True, id="a disabled rule wins nothing"),
        pytest.param([v2("", 1, markers=True), v2(priority=2, tags={"t": "1"})], True, id="tag rules take no part"),
        pytest.param([v2(tags={"t": "1"})], False, id="tag rule alone"),
    ],
)
def test_which_markers_are_replicated(world: World, rules: list[Json], crosses: bool) -> None:
    """Section 0, 2; 1.2; 1.3, 4. The file has the tag, its marker has none."""
    world.configure(v2(tags={"t": "1"}))
    world.drop("k", b"data", tags={"t": "1"})
    world.settle()
    assert crossed(world) == {"k"}
    world.configure(*rules)
    world.unlink("k")
    world.settle()
    assert world.current("k").marker
    assert crossed(world) == (set() if crosses else {"k"})
    assert world.current("k", DESTINATION).marker is crosses
    assert world.current("k").status == (Status.COMPLETED if crosses else None)


def test_markers_are_decided_for_each_destination(world: World) -> None:
    """1.3, 2: the winner of one destination decides nothing for another."""
    world.configure(v2("", 1, markers=True), v2("", 2, to=FAR))
    world.write("k", b"data")
    world.settle()
    world.unlink("k")
    world.settle()
    assert (crossed(world), crossed(world, FAR)) == (set(), {"k"})
    assert set(world.current("k").deliveries) == {DESTINATION}


def test_deleting_again_adds_another_marker_and_each_is_replicated(world: World) -> None:
    """Section 4: deleting a key that is deleted, or never existed, adds a marker."""
    world.configure(v1())
    world.write("k", b"data")
    world.settle()
    world.unlink("k")
    world.settle()
    world.remove("k")
    world.remove("never")
    world.settle()
    assert [v.marker for v in world.of("k")] == [True, True, False]
    assert [v.marker for v in world.of("never")] == [True]
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert world.statuses() == {Status.COMPLETED}


@pytest.mark.parametrize("rule", [v1(), v2(markers=True)], ids=["V1", "V2"])
def test_removals_by_id_are_never_replicated(world: World, rule: Json) -> None:
    """Section 0, 1: neither of a version nor of a marker; undeleting at the source leaves the destination deleted."""
    world.configure(rule)
    world.write("k", b"one")
    world.settle()
    world.write("k", b"two")
    world.settle()
    newest, oldest = world.of("k")
    world.remove("k", version=newest.id)
    world.settle()
    assert (world.tree(SOURCE), world.tree(DESTINATION)) == ({"k": b"one"}, {"k": b"two"})
    world.unlink("k")
    world.settle()
    assert world.tree(DESTINATION) == {}
    world.remove("k", version=world.current("k").id)
    world.settle()
    assert (world.tree(SOURCE), world.tree(DESTINATION)) == ({"k": b"one"}, {})
    world.remove("k", version=oldest.id)
    world.settle()
    assert world.of("k") == []
    assert [(v.id, v.marker) for v in world.of("k", DESTINATION)][1:] == [(newest.id, False), (oldest.id, False)]
    assert world.current("k", DESTINATION).marker


def test_a_key_written_again_after_its_marker_is_current_everywhere(world: World) -> None:
    """Section 4, recreate."""
    world.configure(v1())
    for data in (b"one", None, b"two", None, b"one"):
        world.unlink("k") if data is None else world.write("k", data)
        world.settle()
        assert world.tree(DESTINATION) == ({} if data is None else {"k": data})
    assert [v.marker for v in world.of("k")] == [False, True, False, True, False]
    assert world.ids(SOURCE) == world.ids(DESTINATION)


# -- section 0, 3; 1.5; section 2: decided at creation, and frozen


def _nothing_crosses(world: World) -> None:
    world.settle()
    world.restart()
    world.settle()
    world.restart(without_journal=True)
    world.settle()
    assert crossed(world) == set()
    assert world.current("k").status is None


def test_versions_from_before_the_configuration_are_not_sent(world: World) -> None:
    """Section 2: written before, with the daemon running or not, captured or not."""
    world.write("k", b"before")
    world.settle()
    world.configure(v1())
    _nothing_crosses(world)
    world.write("k", b"after")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"after"}
    assert [v.status for v in world.of("k")] == [Status.COMPLETED, None]
    assert len(world.of("k", DESTINATION)) == 1


def test_files_dropped_just_before_the_configuration_are_not_sent(world: World) -> None:
    """1.5, design.md, 5: files that the command finds unrecorded are judged by the rules of their time."""
    world.write("k", b"before")
    world.configure(v1())
    _nothing_crosses(world)


def test_deletions_from_before_the_configuration_are_not_sent(world: World) -> None:
    """1.5: such a deletion makes no delivery, and hides nothing at the destination."""
    world.write("k", b"before")
    world.settle()
    world.unlink("k")
    world.configure(v1())
    world.settle()
    assert [v.marker for v in world.of("k")] == [True, False]
    assert world.of("k", DESTINATION) == []


def test_the_rule_s_present_prefix_counts_from_when_it_was_put(world: World) -> None:
    """Section 2: a widened prefix sends no older version."""
    world.configure({**v1("a/"), "ID": "one"})
    world.write("k", b"outside")
    world.settle()
    world.configure({**v1(""), "ID": "one"})
    _nothing_crosses(world)


def test_versions_written_while_the_rule_was_disabled_are_not_sent(world: World) -> None:
    """1.5, pause: not even after the rule is enabled again."""
    world.configure(v1())
    world.run("replication.disable", source=SOURCE)
    world.write("k", b"meanwhile")
    world.run("replication.enable", source=SOURCE)
    _nothing_crosses(world)


def test_a_higher_rule_added_later_changes_nothing(world: World) -> None:
    """Section 0, 3: the settings of the winner are frozen with the version."""
    world.configure({**v2("", 1, StorageClass="STANDARD_IA"), "ID": "low"})
    world.away("west")
    world.write("k", b"data")
    world.settle()
    world.configure(
        {**v2("", 1, StorageClass="STANDARD_IA"), "ID": "low"}, {**v2("k", 2, StorageClass="GLACIER"), "ID": "high"}
    )
    world.back("west")
    world.settle()
    assert world.current("k", DESTINATION).storage_class == "STANDARD_IA"
    assert world.current("k").deliveries[DESTINATION].rule == "low"


def test_a_changed_class_is_for_later_versions(world: World) -> None:
    """Section 0, 3."""
    world.configure({**v1(StorageClass="STANDARD_IA"), "ID": "one"})
    world.away("west")
    world.write("k", b"data")
    world.settle()
    world.configure({**v1(StorageClass="ONEZONE_IA"), "ID": "one"})
    world.write("later", b"data")
    world.settle()
    world.back("west")
    world.settle()
    assert [world.current(k, DESTINATION).storage_class for k in ("k", "later")] == ["STANDARD_IA", "ONEZONE_IA"]


def test_a_changed_destination_gets_new_versions_only(world: World) -> None:
    """1.5: nothing is sent again elsewhere."""
    world.configure({**v1(), "ID": "one"})
    world.write("old", b"old")
    world.settle()
    world.configure({**v1(to=FAR), "ID": "one"})
    world.write("new", b"new")
    world.settle()
    assert (crossed(world), crossed(world, FAR)) == ({"old"}, {"new"})
    world.unlink("old")
    world.settle()
    assert (crossed(world), crossed(world, FAR)) == ({"old"}, {"new"})
    assert [v.marker for v in world.of("old", FAR)] == [True]


def test_tags_set_later_send_no_version(world: World) -> None:
    """Section 2: a tag rule that would match now."""
    world.configure(v2(tags={"class": "blue"}))
    world.write("k", b"data")
    world.write("by attribute", b"data")
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"class": "blue"})
    os.setxattr(world.path("by attribute"), "user.fsrepl.tag.class", b"blue")
    world.settle()
    assert crossed(world) == set()
    assert world.current("by attribute").tags == {"class": "blue"}


def test_tags_removed_later_keep_no_version_back(world: World) -> None:
    """Section 0, 3: a choice is final; the edit follows."""
    world.configure(v2(tags={"class": "blue"}))
    world.away("west")
    world.drop("k", b"data", tags={"class": "blue"})
    world.settle()
    world.run("tag.rm", bucket=SOURCE, key=b"k", names=["class"])
    world.settle()
    world.back("west")
    world.settle()
    assert crossed(world) == {"k"}
    assert world.current("k", DESTINATION).tags == {}
    assert world.current("k").status is Status.COMPLETED


def test_every_version_is_replicated_not_just_the_last(world: World) -> None:
    """Section 2, first row: also those that were overwritten while the destination was away."""
    world.configure(v1())
    world.away("west")
    for data in (b"one", b"two", b"three"):
        world.write("k", data)
        world.settle()
    world.back("west")
    world.settle()
    assert len(world.of("k", DESTINATION)) == 3
    assert world.ids(SOURCE) == world.ids(DESTINATION)


# -- after downtime: scans know since when each rule is in effect (section 9, 6)


def test_files_from_a_downtime_before_the_rule_was_put_by_hand_stay(world: World) -> None:
    """Section 9, 6: ctime shows whether a file is older than the rule, whatever mtime is."""
    world.configure(v1())
    text = world.path(".fsrepl/replication.json").read_text()
    world.run("replication.rm", source=SOURCE)
    world.settle()
    world.engine.close()
    world.write("before", b"before")
    os.utime(world.path("before"), (4e9, 4e9))
    world.path(".fsrepl/replication.json").write_text(text)
    world.write("after", b"after")
    os.utime(world.path("after"), (1e9, 1e9))
    world.restart()
    world.settle()
    assert crossed(world) == {"after"}


def test_files_from_a_downtime_with_a_rule_are_sent_whatever_their_times(world: World) -> None:
    """Section 9, 6: moved in, with times and even a whole directory from before the rule."""
    old = world.home / "old"
    (old / "d").mkdir(parents=True)
    for name in ("file", "d/deep"):
        (old / name).write_bytes(name.encode())
        os.utime(old / name, (1e9, 1e9))
    world.configure(v1())
    world.settle()
    world.engine.close()
    (old / "file").rename(world.path("file"))
    (old / "d").rename(world.path("d"))
    world.restart()
    world.settle()
    assert crossed(world) == {"file", "d/deep"}


def test_deletions_from_a_downtime_are_sent(world: World) -> None:
    """G6."""
    world.configure(v1())
    world.write("k", b"data")
    world.settle()
    world.engine.close()
    world.unlink("k")
    world.restart()
    world.settle()
    assert crossed(world) == set()


def test_deletions_from_before_a_rule_put_by_hand_are_not_sent(world: World) -> None:
    """Section 9, 6: the time of the directory's last change is the latest possible time of a deletion."""
    world.configure(v1())
    text = world.path(".fsrepl/replication.json").read_text()
    world.run("replication.rm", source=SOURCE)
    for key in ("d/before", "e/after"):
        world.write(key, key.encode())
    world.settle()
    world.engine.close()
    world.unlink("d/before")
    world.path(".fsrepl/replication.json").write_text(text)
    world.unlink("e/after")
    world.restart()
    world.settle()
    assert world.of("d/before", DESTINATION) == []
    assert [v.marker for v in world.of("e/after", DESTINATION)] == [True]


@pytest.mark.parametrize("storage_class", ["STANDARD_IA", "GLACIER", "DEEP_ARCHIVE", "GLACIER_IR"])
def test_a_replica_in_any_class_is_never_sent_on(world: World, storage_class: str) -> None:
    """Section 0, 4: no chaining; 1.1: each class may be a destination's."""
    world.configure(v1(StorageClass=storage_class))
    world.configure(v1(to=FAR), source=DESTINATION)
    world.write("k", b"data")
    world.settle()
    world.write("users", b"data", DESTINATION)
    world.settle()
    assert (crossed(world), crossed(world, FAR)) == ({"k", "users"}, {"users"})
    assert world.current("k", DESTINATION).status is Status.REPLICA
    assert world.current("k", DESTINATION).storage_class == storage_class


def test_two_way_neither_loops_nor_loses(world: World) -> None:
    """2.2: a user's write or deletion is replicated, a replica is not; markers likewise."""
    world.configure(v1())
    world.configure(v1(to=SOURCE), source=DESTINATION)
    world.write("from here", b"1")
    world.write("from there", b"2", DESTINATION)
    world.write("both", b"here")
    world.write("both", b"there", DESTINATION)
    world.settle()
    assert world.tree(SOURCE) == world.tree(DESTINATION)
    assert set(world.tree(SOURCE)) == {"from here", "from there", "both"}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert len(world.of("both")) == 2
    world.unlink("from here", DESTINATION)
    world.settle()
    assert set(world.tree(SOURCE)) == {"from there", "both"}
    assert world.ids(SOURCE) == world.ids(DESTINATION)
    assert [v.status for v in world.of("from here")] == [Status.REPLICA, Status.COMPLETED]
    assert [v.status for v in world.of("from here", DESTINATION)] == [Status.COMPLETED, Status.REPLICA]


def test_three_in_a_ring_relay_nothing(world: World) -> None:
    """2.2, last row."""
    world.configure(v1())
    world.configure(v1(to=FAR), source=DESTINATION)
    world.configure(v1(to=SOURCE), source=FAR)
    for bucket in (SOURCE, DESTINATION, FAR):
        world.write(bucket.replace("/", "-"), b"data", bucket)
    world.settle()
    assert {b: crossed(world, b) for b in (SOURCE, DESTINATION, FAR)} == {
        SOURCE: {"east-src", "north-far"},
        DESTINATION: {"west-dst", "east-src"},
        FAR: {"north-far", "west-dst"},
    }


def test_symbolic_links_and_directories_are_no_objects(world: World) -> None:
    """Section 2, directories."""
    world.configure(v1())
    world.path("empty").mkdir()
    world.path("link").symlink_to("nowhere")
    os.mkfifo(world.path("fifo"))
    world.write("k", b"data")
    world.settle()
    assert [p.name for p in world.path(bucket=DESTINATION).iterdir() if p.name != ".fsrepl"] == ["k"]


# -- the answers of `why`


def passed_over(world: World, key: str) -> str:
    """By destination, why a key's current version is not sent there, from `why`; empty where it is sent everywhere."""
    said = why.why(world.engine.site, at(SOURCE, key.encode()), None, {"running": False})
    assert said.document.get("Explanation", "") in ("", said.sentences[-1])
    return str(said.document.get("Explanation", ""))


def test_why_explains_each_destination_that_gets_no_copy(world: World) -> None:
    """1.3: a version is sent to one destination and not to another because of the rules to the other alone."""
    world.configure(
        v2("logs/", priority=1, markers=True, to=FAR),
        v2("", priority=2, markers=True) | {"ID": "all"},
        v2("logs/", priority=3) | {"ID": "winner"},
    )
    for key in ("logs/a", "k"):
        world.write(key, b"data")
    world.settle()
    assert passed_over(world, "logs/a") == ""
    assert passed_over(world, "k") == f"no rule to {FAR} chooses this version: src-to-far needs the prefix 'logs/'"
    world.remove("logs/a")
    world.settle()
    assert passed_over(world, "logs/a") == (
        f"no rule to {DESTINATION} chooses this version: all gives way to a rule of higher priority; "
        "winner does not replicate delete markers"
    )


def test_why_says_what_came_too_late(world: World) -> None:
    """Section 0, 3: a tag or a destination from after the version chooses nothing, and a backfill would."""
    world.configure(v2(tags={"class": "blue"}) | {"ID": "blue"})
    world.write("k", b"data")
    world.settle()
    assert passed_over(world, "k") == "no rule chooses this version: blue needs the tags class=blue"
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"class": "blue"})
    assert passed_over(world, "k").startswith("a rule would choose this version now, and none did when it was made")
    world.drop("l", b"data", tags={"class": "blue"})
    world.settle()
    world.configure(v2(tags={"class": "blue"}, to=FAR) | {"ID": "blue"})
    assert passed_over(world, "l").startswith(f"a rule to {FAR} would choose this version now")
