"""G11: what the journal counts as it goes is what a count of its rows finds, whatever was done to them.

Each test with a World checks that too, at its end.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from fsrepl.model.version import NULL, DeliveryRecord, Status, Version
from fsrepl.model.view import View
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Counts, Delivery
from fsrepl.storage.journal.totals import ObjectCounts
from tests.counted import counted, recounted
from tests.world import DESTINATION, SOURCE, World

_NUMBER = 5


def _version(chance: random.Random) -> Version:
    """One of a few versions of a few keys, with other sizes and outcomes each time."""
    number = chance.randrange(_NUMBER)
    is_null = chance.random() < 0.2
    marker = not is_null and number == 0
    deliveries = {
        f"west/{chance.randrange(2)}": DeliveryRecord(
            f"rule{chance.randrange(2)}",
            chance.choice((Status.PENDING, Status.COMPLETED, Status.FAILED)),
            job=chance.choice(("", "job")),
            since_ns=chance.choice((0, number + chance.randrange(1, 9))),
        )
        for _ in range(chance.randrange(3))
    }
    return Version(
        b"d%d/%d" % (number % 2, chance.randrange(_NUMBER)), NULL if is_null else f"{number:026}", number + 1,
        marker=marker, size=0 if marker else chance.randrange(100), deliveries=deliveries,
    )  # fmt: skip


def _view(chance: random.Random) -> View | None:
    """A file that is another key's too, now and then; inode numbers may have more than 63 bits."""
    return chance.choice((None, View(chance.randrange(4), 0, 0, 0), View((1 << 63) + chance.randrange(2), 0, 0, 0)))


def _change(journal: Journal, chance: random.Random) -> None:
    address, version = chance.choice((SOURCE, DESTINATION)), _version(chance)
    key = version.key
    known = journal.versions.versions_of(address, key)
    match chance.randrange(9):
        case 0:
            journal.versions.add(address, version)
        case 1 | 2:
            some = {each.key: each for each in (_version(chance) for _ in range(4))}.values()
            journal.versions.add_shown(address, [(each, _view(chance)) for each in some])
        case 3 if known:
            journal.versions.remove(address, key, known[0][0], version if len(known) > 1 else None)
        case 4 if known:
            journal.versions.remove_noncurrent(address, [(key, known[-1][0])])
        case 5 if known:
            journal.versions.remove_last(address, [(key, each[0]) for each in known])
        case 6:
            journal.deliveries.put_all(address, [version])
        case 7:
            journal.views.see_all(address, [(_version(chance).key, _view(chance)) for _ in range(3)])
        case 8:
            for each in list(journal.deliveries.select(address))[:1]:
                _settle(journal, chance, each)


def _settle(journal: Journal, chance: random.Random, delivery: Delivery) -> None:
    if chance.random() < 0.5:
        journal.deliveries.drop(delivery)
    else:
        journal.deliveries.note(delivery, Status.FAILED, "why", 7)


def _since(counts: Mapping[tuple[str, str], Counts]) -> dict[tuple[str, str], int]:
    return {rule: each.oldest_ns for rule, each in counts.items()}


def _least(journal: Journal, address: str, condition: str = "") -> dict[tuple[str, str], int]:
    rows = journal.execute(
        f"SELECT destination, rule, min(since) FROM delivery WHERE bucket = ? AND status = 'PENDING' {condition} "
        "GROUP BY 1, 2",
        (journal.ids[address],),
    )
    return {(destination, rule): since_ns for destination, rule, since_ns in rows}


@pytest.mark.parametrize("seed", range(2))
def test_counters_are_what_a_count_of_all_rows_finds(seed: int) -> None:
    journal, chance = Journal(":memory:"), random.Random(seed)
    journal.bucket_id(SOURCE, "uuid")
    journal.bucket_id(DESTINATION, "uuid")
    for step in range(300):
        with contextlib.suppress(ZeroDivisionError), journal.transaction():
            _change(journal, chance)
            if chance.random() < 0.1:
                raise ZeroDivisionError  # rolled back
        if step % 100 == 50:
            journal.forget_bucket(DESTINATION)
            journal.bucket_id(DESTINATION, "uuid")
        assert counted(journal) == recounted(journal), step
        for address in (SOURCE, DESTINATION):
            assert _since(journal.deliveries.live_pending_counts(address)) == _least(journal, address, "AND batch = ''")
            pending = {at[:2]: each for at, each in journal.deliveries.counts(address).items() if at[2] == "PENDING"}
            assert _since(pending) == _least(journal, address)
    assert counted(journal)
    journal.close()


def test_bytes_may_be_more_than_64_bits_count() -> None:
    """A sparse file may have eight EiB. What is pending is told all the same."""
    journal = Journal(":memory:")
    journal.bucket_id(SOURCE, "uuid")
    pending = {DESTINATION: DeliveryRecord("rule", Status.PENDING)}
    some = [Version(b"%d" % n, f"{n:026}", 1, size=(1 << 63) - 1, deliveries=pending) for n in range(3)]
    journal.deliveries.put_all(SOURCE, some)
    assert journal.deliveries.live_pending_counts(SOURCE) == {(DESTINATION, "rule"): Counts(3, (1 << 63) - 1, 1)}
    for each in list(journal.deliveries.select(SOURCE)):
        journal.deliveries.drop(each)
    assert journal.deliveries.counts(SOURCE) == {}
    journal.close()


@pytest.mark.parametrize("kind", [6, 7, "6, counted before"])
def test_a_journal_of_an_earlier_build_is_counted_when_it_is_opened(tmp_path: Path, kind: object) -> None:
    """An upgrade needs no new index of the trees. 6: that build counts nothing; 7: deliveries alone. Counted before:
    this build had counted before that one wrote to it."""
    with World(tmp_path) as world:
        for number in range(3):
            world.write(f"d/{number}", b"x" * number)
        world.path("d/linked").hardlink_to(world.path("d/2"))
        world.settle()
        world.away("west")
        world.write("d/0", b"longer")
        world.unlink("d/1")
        world.settle()
        journal = world.engine.journal
        before = counted(journal)
        assert world.engine.journal.totals.linked(SOURCE) == 2
        if kind == "6, counted before":
            for change in ("UPDATE delivery_count SET number = 0", "DELETE FROM object_count", "DELETE FROM linked"):
                journal.execute(change)
        else:
            for table in ("object_count", "linked", *(["delivery_count"] if kind == 6 else [])):
                journal.execute(f"DROP TABLE {table}")
        journal.execute(f"PRAGMA user_version = {7 if kind == 7 else 6}")
        world.restart()
        assert counted(world.engine.journal) == before == recounted(world.engine.journal)
        world.back("west")
        world.settle()


def test_a_new_version_of_a_key_leaves_the_bytes_of_the_one_before_to_the_noncurrent_ones(tmp_path: Path) -> None:
    """G11: what is current, and what is not, after versions, markers and removals."""
    with World(tmp_path) as world:
        totals = world.engine.journal.totals
        world.write("a", b"12345")
        world.write("b", b"123")
        world.settle()
        assert totals.counts(SOURCE) == ObjectCounts(2, 2, 8, 8)
        world.write("a", b"1")
        world.unlink("b")
        world.settle()
        assert totals.counts(SOURCE) == totals.counts(DESTINATION) == ObjectCounts(1, 3, 9, 1)
