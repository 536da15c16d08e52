"""The guarantees (README, G1 to G11) at destinations of each kind, and the table of docs/reference/guarantees.md."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.commands import status
from fsrepl.model import digests
from fsrepl.model.version import Status
from tests.backfills import deliver_late
from tests.between import CUT, Between, by_service
from tests.destinations import Bucket, Destination, Directory, Far
from tests.hosts import FarWorld
from tests.radosgw import only_with_radosgw
from tests.services import KEYS, RemoteWorld, Service
from tests.verifying import verify
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World


@pytest.fixture(
    params=["directory", "ssh", "moto", pytest.param("radosgw", marks=[pytest.mark.slow, only_with_radosgw])]
)
def place(
    memory: Path, request: pytest.FixtureRequest, services: Callable[[str], Service], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Destination]:
    """A destination of each kind."""
    if request.param == "directory":
        with World(memory) as here:
            yield Directory(here)
    elif request.param == "ssh":
        with FarWorld(memory) as far:
            yield Far(far)
    else:
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        service = services(request.param)
        service.reset()
        service.make_bucket()
        with Between(service.port) as between, RemoteWorld(memory, service, url=between.url) as there:

            def away(is_away: bool) -> None:
                between.answer = (lambda _: CUT) if is_away else by_service

            yield Bucket(there, away)


# -- G1, G9, G10


def test_what_somebody_else_put_there_is_kept(place: Destination) -> None:
    """G1: it is a version there after the replica of the same key has come, before it or on top of it."""
    world, theirs = place.world, digests.of(b"theirs")
    place.write_there("k", b"theirs")
    world.write("k", b"ours")

    def are_both_there() -> bool:
        world.settle()
        return {each.digest for each in place.history().get(b"k", ())} == {theirs, digests.of(b"ours")}

    until(are_both_there, "both are versions")
    assert world.statuses() == {Status.COMPLETED}


@pytest.mark.parametrize("place", ["directory", "ssh"], indirect=True)
def test_a_symlink_there_leads_nowhere(place: Destination) -> None:
    """G9: where a person has put a symlink in a directory's place, nothing behind it is read or written."""
    world = place.world
    outside = world.home / "outside"
    outside.mkdir()
    (outside / "k").write_bytes(b"theirs")
    world.path(bucket=DESTINATION).mkdir(exist_ok=True)
    world.path("d", DESTINATION).symlink_to(outside)
    world.write("d/k", b"one")
    world.settle()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == {"k": b"theirs"}
    assert [each.digest for each in place.history()[b"d/k"]] == [digests.of(b"one")]


@pytest.mark.parametrize("place", ["directory", "ssh"], indirect=True)
def test_a_replica_is_no_file_of_its_source(place: Destination) -> None:
    """G10: no file of the one side is a hard link of one of the other."""
    world = place.world
    world.write("k", b"small")
    world.write("large", b"x" * (1 << 20))
    world.settle()
    files = [
        {path.stat().st_ino for path in world.path(bucket=bucket).rglob("*") if path.is_file()}
        for bucket in (SOURCE, DESTINATION)
    ]
    assert all(files)
    assert not files[0] & files[1]


# -- G2, G3


def test_damage_at_the_source_is_never_sent(place: Destination) -> None:
    """G3: content that does not match its BLAKE3 is FAILED, and nothing of it arrives."""
    world = place.world
    world.write("k", b"x" * 500_000)
    world.capture(SOURCE)
    version = world.current("k")
    world.engine.recent.forget_data()
    world.path(f".fsrepl/versions/k;{version.id}").write_bytes(b"y" * 500_000)
    world.settle()
    (recorded,) = world.of("k")[-1].deliveries.values()
    assert (recorded.status, recorded.reason) == (Status.FAILED, "SrcObjectNotEligible")
    assert version.id not in {each.id for each in place.history().get(b"k", ())}


def test_damage_there_is_found_and_repaired(place: Destination) -> None:
    """G3: `verify` reads what is there, and `--repair` brings it back from the source."""
    world = place.world
    world.write("k", b"one")
    world.write("other", b"other")
    world.settle()
    place.damage("k", b"owt")
    assert [each[1:3] for each in verify(world)] == [("k", "DigestMismatch")]
    assert [each[3] for each in verify(world, repair=True)] == [True]
    assert verify(world) == []
    assert place.is_alike()


# -- G5


def test_everything_arrives_with_its_identity_and_metadata(place: Destination) -> None:
    """G5: content, ids, times, modes, owners, attributes and tags; deletions as markers; all of a key's versions."""
    world = place.world
    world.write("a/b/cat.jpg", b"meow")
    world.path("a/b/cat.jpg").chmod(0o640)
    os.setxattr(world.path("a/b/cat.jpg"), "user.kind", b"\xff\x00cat")
    world.drop("tagged", b"x", tags={"class": "blue green"})
    world.write("empty", b"")
    os.utime(world.path("empty"), ns=(1, 1_000_000_001))
    world.write("ünï + code", b"y" * 300_000)
    world.settle()
    assert place.is_alike()
    world.unlink("tagged")
    world.write("a/b/cat.jpg", b"purr")
    world.settle()
    assert place.is_alike()
    assert [each.marker for each in place.history()[b"tagged"]] == [False, True]


def test_edits_of_metadata_arrive_on_the_version_that_is_there(place: Destination) -> None:
    """G5: modes, times, attributes and tags follow, and there is no second version of it."""
    world = place.world
    world.write("k", b"data")
    world.settle()
    world.path("k").chmod(0o600)
    os.setxattr(world.path("k"), "user.kind", b"cat")
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"k", tags={"a": "b"})
    world.settle()
    assert place.is_alike()
    assert len(place.history()[b"k"]) == 1


def test_a_version_that_comes_late_does_not_become_current(place: Destination) -> None:
    """G5: what is shown is the newest by creation time, whatever the order of arrival."""
    world = place.world
    deliver_late(world)
    found, wanted = place.history(), place.wanted()
    assert {key: sorted(each, key=str) for key, each in found.items()} == {
        key: sorted(each, key=str) for key, each in wanted.items()
    }
    assert place.shown() == {"k": b"three"}


# -- G6


@pytest.mark.parametrize("without_journal", [False, True])
def test_nothing_is_doubled_by_a_second_delivery(place: Destination, without_journal: bool) -> None:
    """G6: a backfill of all that was delivered, also with a journal that knows nothing of it, sends nothing again."""
    world = place.world
    for data in (b"one", b"two"):
        world.write("k", data)
        world.write("gone", data)
        world.settle()
    world.unlink("gone")
    world.settle()
    before = place.history()
    world.restart(without_journal=without_journal)
    world.settle()
    world.run("replication.backfill", source=SOURCE, statuses=["COMPLETED"])
    world.settle()
    assert place.history() == before
    assert place.is_alike()


# -- G7


def test_an_outage_is_waited_for_and_ends_by_itself(place: Destination) -> None:
    """G7: PENDING with the reason while it cannot be reached, through a restart too; then all of it arrives once."""
    world = place.world
    world.write("k", b"one")
    world.write("gone", b"gone")
    world.settle()
    place.go_away()
    world.write("k", b"two")
    world.unlink("gone")
    world.settle()
    assert world.current("k").deliveries[place.address].status is Status.PENDING
    world.restart()
    world.settle()
    assert world.statuses() == {Status.COMPLETED, Status.PENDING}
    (queue,) = (queue for each in world.engine.receivers.values() for queue in each.queues.values())
    assert queue.blocked_why
    place.come_back()
    world.settle()
    world.settle()
    assert place.is_alike()


# -- G8


def test_a_source_that_is_gone_deletes_nothing_there(place: Destination) -> None:
    """G8: an unmounted source is an outage: no marker is made and none is sent."""
    world = place.world
    for number in range(3):
        world.write(f"k{number}", b"data")
    world.settle()
    before = place.history()
    world.away("east")
    world.settle()
    assert place.history() == before
    world.back("east")
    world.settle()
    assert place.history() == before
    assert place.is_alike()


def test_a_bucket_that_is_gone_is_not_made_again(place: Destination) -> None:
    """G8: a person decides what becomes of it: nothing is written in its place, and nothing is COMPLETED."""
    world = place.world
    world.write("k", b"one")
    world.settle()
    place.lose_bucket()
    world.write("k2", b"two")
    world.settle()
    assert world.current("k2").deliveries[place.address].status is not Status.COMPLETED
    if isinstance(place, Bucket):
        assert place.bucket.client.call("list_buckets")["Buckets"] == []
    else:
        assert not world.path(bucket=DESTINATION).exists()


# -- G11


def test_what_is_shown_is_the_same_after_a_restart(place: Destination) -> None:
    """G11: status and counts come from the records, also without the journal."""
    world = place.world
    world.write("k", b"one")
    world.settle()
    place.go_away()
    world.write("waits", b"two")
    world.settle()

    def shown() -> list[object]:
        rows = status.status(world.engine.site, {"running": False})["buckets"]
        (row,) = [row for row in rows if row["bucket"] == SOURCE]
        (rule,) = row["rules"]
        names = ("objects", "versions", "bytes", "pending", "failed")
        return [*(row[name] for name in names), rule["completed"], rule["pending"], rule["failed"]]

    before = shown()
    assert before == [2, 2, 6, 1, 0, 1, 1, 0]
    for without_journal in (False, True):
        world.restart(without_journal=without_journal)
        world.settle()
        assert shown() == before
    place.come_back()


# -- the table

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "guarantees.md"
_ROW = re.compile(r"\| (G\d+) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|")


def kinds_of(module: str, test: str) -> set[str]:
    """The kinds of destinations that a test tries."""
    function = getattr(importlib.import_module(module), test)
    parameters = inspect.signature(function).parameters
    if "place" in parameters:
        marks = [mark for mark in getattr(function, "pytestmark", ()) if mark.args and mark.args[0] == "place"]
        return set(marks[0].args[1]) if marks else {"directory", "ssh", "s3"}
    if {"either", "tree"} & parameters.keys():
        return {"directory", "ssh"}
    return (
        {"s3"} if module.startswith("tests.remote") else {"ssh"} if module.startswith("tests.link") else {"directory"}
    )


def test_the_table_of_guarantees_is_true() -> None:
    """docs/reference/guarantees.md: every guarantee; a `yes` where a named test tries it there, a reason elsewhere."""
    rows = [_ROW.fullmatch(line) for line in PAGE.read_text().splitlines() if line.startswith("| G")]
    assert {row[1] for row in rows if row} == {f"G{number}" for number in range(1, 12)}
    named = set[str]()
    for row in rows:
        assert row is not None
        tried = set[str]()
        for module, test in re.findall(r"`(tests/[\w/]+)\.py::(\w+)`", row[6]):
            tried |= kinds_of(module.replace("/", "."), test)
            named.add(test)
        assert tried, row[0]
        for kind, said in zip(("directory", "ssh", "s3"), (row[3], row[4], row[5]), strict=True):
            assert (said == "yes") == (kind in tried), f"{row[1]}, {row[2]}: {kind}"
            assert said == "yes" or len(said) > 10, f"{row[1]}, {row[2]}: {kind}: {said}"
    mine = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    assert mine - {"test_the_table_of_guarantees_is_true"} <= named
