"""Work on one item has the cost of one item, however large its bucket is."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fsrepl.commands import objects, status, wait
from fsrepl.daemon.worker import Worker
from fsrepl.model import keys
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.model.view import View
from fsrepl.region.subtrees import Subtrees
from fsrepl.storage import staging
from fsrepl.storage.journal.connection import Connection
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Counts, Delivery
from fsrepl.storage.journal.versions import Versions
from fsrepl.views import stale
from tests.counted import STEP, steps_of
from tests.world import DESTINATION, SOURCE, World

QUESTIONS: dict[str, Callable[[Journal], object]] = {
    "the directories below one": lambda j: j.versions.directories(SOURCE, below=b"d7"),
    "what is pending": lambda j: j.deliveries.count_pending(SOURCE, 1 << 60),
    "the deliveries that are pending": lambda j: j.deliveries.pending_after(SOURCE, DESTINATION, None, 9),
    "the destinations of what is pending": lambda j: j.deliveries.pending_destinations(SOURCE),
    "the deliveries that failed": lambda j: list(j.deliveries.select(SOURCE, status=Status.FAILED)),
    "how much is delivered, and how much is not": lambda j: j.deliveries.counts(SOURCE),
    "what is live and pending": lambda j: j.deliveries.live_pending_counts(SOURCE),
    "by which rules live deliveries are pending": lambda j: j.deliveries.pending_rules(SOURCE, DESTINATION),
    "views that are behind": lambda j: j.views.unshown(SOURCE, 100),
    "the large versions of one size": lambda j: j.versions.of_size(SOURCE, 8 << 20, 16),
    "the names of a file": lambda j: j.views.names_of(SOURCE, 77),
    "one key": lambda j: j.versions.look_up(SOURCE, [b"d7/f7"]),
}


def _delivered(directory: int, file: int, done: dict[str, DeliveryRecord]) -> Version:
    key, version_id = f"d{directory}/f{file}".encode(), f"{directory}-{file}"
    return Version(key, version_id, directory, size=(directory + 1) << 20, deliveries=done)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_journal_answers_without_going_through_a_bucket(question: str) -> None:
    """G11: among ten times as many objects, all delivered, it reads no more rows."""
    taken = []
    for directories in (20, 200):
        journal = Journal(":memory:")
        journal.bucket_id(SOURCE, "uuid")
        done = {DESTINATION: DeliveryRecord("rule", Status.COMPLETED)}
        with journal.transaction():
            journal.versions.add_shown(
                SOURCE,
                [
                    (_delivered(d, f, done), View(10 * d + f, 1, 1, 1, shown=f"{d}-{f}"))
                    for d in range(directories)
                    for f in range(10)
                ],
            )
        taken.append(steps_of(journal, QUESTIONS[question]))
        journal.close()
    assert taken[1] <= taken[0] + STEP


def _held(markers: int) -> Journal:
    """A journal with pending deliveries of that many markers, and of three files after them."""
    journal = Journal(":memory:")
    journal.bucket_id(SOURCE, "uuid")
    pending = {DESTINATION: DeliveryRecord("rule", Status.PENDING)}
    gone = [Version(b"d/%d" % n, f"{n:05}", n, marker=True, deliveries=pending) for n in range(markers)]
    new = [Version(b"new/%d" % n, f"{n:05}", 10_000 + n, deliveries=pending) for n in range(3)]
    with journal.transaction():
        journal.versions.add_shown(SOURCE, [(each, None) for each in (*gone, *new)])
    return journal


def test_status_tells_all_that_is_pending_from_what_is_live(memory: Path) -> None:
    """G11: and since when."""
    with World(memory / "w") as world:
        journal = world.engine.journal
        pending = DeliveryRecord("rule", Status.PENDING, since_ns=7)
        sent = [
            Version(b"live", "1", 5, size=3, deliveries={DESTINATION: pending}),
            Version(b"asked", "2", 6, size=4, deliveries={DESTINATION: replace(pending, job="job", since_ns=4)}),
            Version(b"done", "3", 7, size=5, deliveries={DESTINATION: replace(pending, status=Status.COMPLETED)}),
        ]
        with journal.transaction():
            journal.deliveries.put_all(SOURCE, sent)
        to = DESTINATION, "rule"
        assert journal.deliveries.counts(SOURCE) == {
            (*to, "PENDING"): Counts(2, 7, 4),
            (*to, "COMPLETED"): Counts(1, 5),
        }
        assert journal.deliveries.live_pending_counts(SOURCE) == {to: Counts(1, 3, 7)}
        document = next(each for each in status.status(world.engine.site, {})["buckets"] if each["bucket"] == SOURCE)
        rule = next(each for each in document["rules"] if each["id"] == "rule")
        assert (document["pending"], rule["metrics"]["OperationsPendingReplication"]) == (2, 1)


def test_held_markers_are_counted_in_the_index() -> None:
    """Bounded: `status` of a HALTED bucket with millions of them; without that each row was looked up, for 0.5 µs."""
    journal = _held(3)
    statements: list[str] = []
    journal._db.set_trace_callback(statements.append)
    assert journal.deliveries.count_held(SOURCE) == 3
    journal._db.set_trace_callback(None)
    (plan,) = journal.execute(f"EXPLAIN QUERY PLAN {statements[0]}").fetchall()
    assert "COVERING INDEX held" in plan[3]
    journal.close()


_PENDING_BEFORE = "CREATE INDEX pending ON delivery (bucket, destination, batch, created, id) WHERE status = 'PENDING'"


@pytest.mark.parametrize("is_earlier", [False, True])
def test_held_markers_are_passed_over_in_the_index(tmp_path: Path, *, is_earlier: bool) -> None:
    """Bounded: a start of a HALTED bucket reads no row of a held marker, also in a journal of an earlier build once it
    was opened; and what a halted bucket delivers comes in the order of its versions, page by page."""
    journal = _held(1000)
    if is_earlier:
        journal.execute("DROP INDEX pending")
        journal.execute(_PENDING_BEFORE)
        with contextlib.closing(Journal(path := str(tmp_path / "journal.db"))) as new:
            journal.copy_to(new)
        journal.close()
        with contextlib.closing(Journal(path, read_only=True)) as reader:
            assert reader.deliveries.count_pending(SOURCE, 1 << 60) == 1003
        journal = Journal(path)
    whole = journal.deliveries.pending_after(SOURCE, DESTINATION, None, 2000)
    first = journal.deliveries.unheld_after(SOURCE, DESTINATION, None, 2)
    rest = journal.deliveries.unheld_after(SOURCE, DESTINATION, first[-1], 2)
    assert first + rest == whole[1000:]
    # a step in the index takes 4 or 5 instructions, and 10 or more with the row of the table
    assert steps_of(journal, lambda j: j.deliveries.unheld_after(SOURCE, DESTINATION, None, 9)) < 1000 * 7 / STEP
    assert steps_of(journal, lambda j: j.deliveries.count_pending(SOURCE, 1 << 60)) < 1000 * 7 / STEP
    journal.close()


def test_an_index_that_a_journal_lacks_is_sorted_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory: SQLite sorts all rows of the table for it, at the first start of a newer build."""
    path, kept = str(tmp_path / "journal.db"), []
    with contextlib.closing(Journal(path)) as journal:
        journal.execute("DROP INDEX pending")
    whole = Connection._add

    def add(connection: Connection) -> None:
        kept.append(connection._db.execute("PRAGMA temp_store").fetchone())
        whole(connection)

    monkeypatch.setattr(Connection, "_add", add)
    with contextlib.closing(Journal(path)) as journal:
        assert kept == [(0,)]  # as SQLite is built: in a file
        assert journal.execute("PRAGMA temp_store").fetchone() == (2,)
        assert journal.deliveries.count_pending(SOURCE, 0) == 0


class Walks:
    """Counts how often all keys of a bucket are read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.number = 0
        whole = Versions.objects

        def objects_(table: Versions, address: str) -> Any:
            for each in whole(table, address):
                self.number += 1
                yield each

        patch.setattr(Versions, "objects", objects_)


def test_displaced_files_are_known_by_their_names(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1: many of them, each with unrecorded content, become versions without a walk through the bucket."""
    with World(memory / "w") as world:
        names = [f"d/f{n}" for n in range(20)]
        for name in names:
            world.write(name, b"theirs")
        world.settle()
        aside = world.path(".fsrepl/displaced", DESTINATION)
        for name in names[:5]:
            (aside / keys.displaced_name(staging.token(), name.encode()).decode()).write_bytes(b"nobody has this")
        walks = Walks(monkeypatch)
        world.settle()
        world.settle()
        assert walks.number == 0
        assert world.leftovers(DESTINATION) == []
        assert {len(world.of(name, DESTINATION)) for name in names[:5]} == {2}


def test_long_keys_of_displaced_files_are_looked_for_together(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G1: a key too long for a name is found by a walk through the bucket, one for all of them."""
    with World(memory / "w") as world:
        names = [f"{'d' * 200}/f{n}" for n in range(20)]
        for name in names:
            world.write(name, b"theirs")
        world.settle()
        aside = world.path(".fsrepl/displaced", DESTINATION)
        for name in names[:5]:
            (aside / keys.displaced_name(staging.token(), name.encode()).decode()).write_bytes(b"nobody has this")
        walks = Walks(monkeypatch)
        world.flush_settling()
        world.look()
        assert walks.number <= len(names)
        world.settle()
        assert world.leftovers(DESTINATION) == []
        assert {len(world.of(name, DESTINATION)) for name in names[:5]} == {2}


@pytest.mark.parametrize("length", [1, 3, 160, 200, 1000])
def test_the_name_of_a_displaced_file_fits(length: int) -> None:
    """G1: whatever bytes its key has, and however long it is."""
    key = bytes(random.Random(length).randrange(1, 256) for _ in range(length))
    name = keys.displaced_name(staging.token(), key)
    assert len(name) <= 255
    assert b"/" not in name
    known, digest = keys.displaced_key(name)
    assert known == key or (known is None and digest)


def test_a_retry_of_many_lets_others_in(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G6: FAILED deliveries become pending some at a time, and the region does other work in between."""
    with World(memory / "w") as world:
        role = next(world.settings.roles.glob("*.json"))
        document = role.read_bytes()
        role.write_bytes(b"{}")
        for n in range(150):
            world.write(f"f{n}", b"x")
        world.settle()
        assert world.statuses() == {"FAILED"}
        role.write_bytes(document)
        at_once: list[int] = []
        whole = objects.retry

        def retry(region: Worker, address: str, failed: Sequence[Delivery]) -> int:
            at_once.append(len(failed))
            return whole(region, address, failed)

        monkeypatch.setattr(objects, "retry", retry)
        assert world.run("retry", scope=SOURCE)["Retried"] == 150
        assert sum(at_once) == 150
        assert max(at_once) < 100
        world.settle()
        assert world.statuses() == {"COMPLETED"}


def test_the_newest_moment_of_a_bucket_is_at_hand(memory: Path) -> None:
    """G6: `wait` needs no query of the journal for it, and leaves out no version."""
    with World(memory / "w") as world:
        for n in range(3):
            world.write(f"f{n}", b"x")
            world.settle()
        for bucket in (SOURCE, DESTINATION):
            assert wait._newest_ns(world.engine, bucket) >= world.engine.journal.versions.newest(bucket)[1] > 0
        world.restart()
        world.settle()
        assert wait._newest_ns(world.engine, SOURCE) == world.engine.journal.versions.newest(SOURCE)[1]


def test_views_that_were_in_the_way_are_looked_at_once_a_turn(memory: Path) -> None:
    """G6: however many keys are removed, and however many views wait for an obstacle to go."""
    with World(memory / "w") as world:
        world.write("x", b"in the way", DESTINATION)
        world.settle()
        world.write("x/y", b"replica")
        world.settle()
        assert world.state(DESTINATION).views.stale
        world.unlink("x", DESTINATION)
        stale.retry_blocked(world.region(DESTINATION), world.state(DESTINATION))
        assert world.region(DESTINATION).next_s() == 0.0
        world.settle()
        assert world.tree(DESTINATION)["x/y"] == b"replica"


def test_watched_directories_below_another_are_found() -> None:
    """G9: the same as a walk through all of them gives, whatever was added and removed before."""
    chance = random.Random(8)
    below, members = Subtrees(), set[tuple[str, bytes]]()
    parts = [b"a/", b"b/", b"ab/", b""]
    for _ in range(3000):
        directory = ("r/b" if chance.random() < 0.8 else "r/c", b"".join(chance.choices(parts, k=4)))
        if chance.random() < 0.5:
            below.add(directory)
            members.add(directory)
        else:
            below.remove(directory)
            members.discard(directory)
        top = (directory[0], b"".join(chance.choices(parts, k=2)))
        assert sorted(below.of(top)) == sorted(m for m in members if m[0] == top[0] and m[1].startswith(top[1]))
    for member in list(members):
        below.remove(member)
    assert not below._children


@pytest.mark.parametrize(
    "after", [None, Delivery(SOURCE, b"batch/0", "b0", DESTINATION, "rule", "PENDING", "", 10, 0, False, "J", 0)]
)
def test_deliveries_of_backfills_are_read_without_a_look_at_the_others(after: Delivery | None) -> None:
    """A million changes may wait for a destination that is away, and a start asks for its backfills."""
    taken = []
    for number in (100, 1000):
        journal = Journal(":memory:")
        journal.bucket_id(SOURCE, "uuid")
        live = {DESTINATION: DeliveryRecord("rule", Status.PENDING)}
        asked = {DESTINATION: DeliveryRecord("rule", Status.PENDING, job="J")}
        with journal.transaction():
            for n in range(number):
                journal.versions.add(SOURCE, Version(b"live/%d" % n, f"{n:05}", n, deliveries=live))
            for n in range(3):
                journal.versions.add(SOURCE, Version(b"batch/%d" % n, f"b{n}", 10 + n, deliveries=asked))
        found = journal.backlog.read(SOURCE, DESTINATION, after, 9)
        assert [each.id for each in found] == ["b0", "b1", "b2"][after is not None :]
        taken.append(steps_of(journal, lambda j: j.backlog.read(SOURCE, DESTINATION, after, 9)))
        journal.close()
    assert taken[1] <= taken[0] + STEP
