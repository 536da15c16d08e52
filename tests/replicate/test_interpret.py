"""How the source records the outcomes of its destinations: every record with every outcome."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from fsrepl.model.version import DeliveryRecord, Origin, Status, Version
from fsrepl.replicate.settle import Settlement, interpret
from fsrepl.storage.journal.rows import Delivery, Outcome, delivery_of

HERE, THERE, OTHER, JOB = "east/photos", "west/copies", "north/copies", "job"
NOW_NS = 7
VERSION = Version(b"k", "1", 1, size=3, digest=b"d" * 32, tags={"class": "blue"})
EDITED = replace(VERSION, tags={"class": "red"})
AT = (VERSION.key, VERSION.id)


def recorded(status: Status, job: str = "") -> DeliveryRecord:
    return DeliveryRecord("rule", status, job=job)


RECORDS: dict[str, Version | None] = {
    "removed": None,
    "owes nothing": VERSION,
    "pending": replace(VERSION, deliveries={THERE: recorded(Status.PENDING)}),
    "pending for the job": replace(VERSION, deliveries={THERE: recorded(Status.PENDING, JOB)}),
    "failed": replace(VERSION, deliveries={THERE: recorded(Status.FAILED)}),
    "completed": replace(VERSION, deliveries={THERE: recorded(Status.COMPLETED)}),
}
WORDS = [
    (Status.COMPLETED, VERSION),
    (Status.COMPLETED, EDITED),  # it differs from the version that was sent
    (Status.FAILED, None),
    (Status.PENDING, None),
]
EXPECTED = {  # by record and the job that asked: the result of each outcome above
    ("removed", ""): "gone gone gone gone",
    ("removed", JOB): "gone gone gone gone",
    ("owes nothing", ""): "gone gone gone gone",
    ("owes nothing", JOB): "written written dropped dropped",
    ("pending", ""): "written again written again",
    ("pending", JOB): "confirmed confirmed confirmed confirmed",
    ("pending for the job", ""): "confirmed confirmed confirmed confirmed",
    ("pending for the job", JOB): "written again written again",
    ("failed", ""): "written written confirmed confirmed",
    ("failed", JOB): "written written confirmed confirmed",
    ("completed", ""): "confirmed confirmed confirmed confirmed",
    ("completed", JOB): "confirmed confirmed confirmed confirmed",
}


def delivery(version: Version = VERSION, destination: str = THERE, job: str = "") -> Delivery:
    return delivery_of(HERE, version, destination, recorded(Status.PENDING, job))


def summary(settlement: Settlement, about: Delivery) -> str:
    """The one result of an outcome, after checking that there is no other."""
    found = {
        "written": bool(settlement.changed),
        "again": bool(settlement.again),
        "confirmed": bool(settlement.confirmed) and not settlement.gone,
        "dropped": bool(settlement.confirmed) and list(settlement.gone) == [about],
        "gone": not settlement.confirmed and list(settlement.gone) == [about],
    }
    assert sum(found.values()) <= 1
    assert bool(settlement.ended) == (found["written"] or found["gone"])
    return next((name for name, is_so in found.items() if is_so), "nothing")


def test_the_table_is_whole() -> None:
    assert EXPECTED.keys() == set(itertools.product(RECORDS, ["", JOB]))


@pytest.mark.parametrize("is_indexed", [True, False])
@pytest.mark.parametrize(("record", "job"), EXPECTED)
def test_every_outcome_on_every_record(record: str, job: str, *, is_indexed: bool) -> None:
    """G7: a delivery ends once, with the true result; an outcome that was recorded before is not reported again."""
    for (status, sent), expected in zip(WORDS, EXPECTED[record, job].split(), strict=True):
        about = delivery(job=job)
        settlement = interpret(
            [Outcome(about, status, "why", sent)], {AT: RECORDS[record]}, NOW_NS, lambda _: is_indexed
        )
        if expected == "gone" and not is_indexed:
            expected = "nothing"
        assert summary(settlement, about) == expected
        if expected == "written":
            written = settlement.changed[AT].deliveries[THERE]
            assert (written.status, written.reason) == (status, "why")
            assert written.since_ns == (0 if status is Status.COMPLETED else NOW_NS)


def test_an_outcome_sees_the_changes_of_those_before_it() -> None:
    version = replace(VERSION, deliveries={THERE: recorded(Status.PENDING), OTHER: recorded(Status.PENDING)})
    outcomes = [
        Outcome(delivery(destination=THERE), Status.COMPLETED, "", version),
        Outcome(delivery(destination=OTHER), Status.FAILED, "AccessDenied", None),
        Outcome(delivery(destination=THERE), Status.FAILED, "late", None),
    ]
    settlement = interpret(outcomes, {AT: version}, NOW_NS, lambda _: True)
    assert {name: str(d.status) for name, d in settlement.changed[AT].deliveries.items()} == {
        THERE: "COMPLETED",
        OTHER: "FAILED",
    }
    assert [each.destination for each, _ in settlement.ended] == [THERE, OTHER]
    assert settlement.confirmed == [settlement.changed[AT]]


def test_a_replica_sends_its_original_nothing_but_an_edit() -> None:
    """Once its original has the edit, the delivery is removed from record and index: the replica is REPLICA again."""
    edit = replace(recorded(Status.PENDING), edit=True)
    version = replace(VERSION, origin=Origin.REPLICA, source=THERE, deliveries={THERE: edit})
    settlement = interpret([Outcome(delivery(), Status.COMPLETED, "", version)], {AT: version}, NOW_NS, lambda _: True)
    assert settlement.changed[AT].deliveries == {}
    assert [each.destination for each in settlement.gone] == [THERE]
    assert settlement.changed[AT].status is Status.REPLICA
