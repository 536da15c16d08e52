"""Which fields count where a record on a file that users can write to differs from what was recorded: pure."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from fsrepl.model.version import DeliveryRecord, Shortfall, Status, Version
from fsrepl.storage.journal.rows import Delivery, delivery_of
from fsrepl.views.shared_record import latest, with_indexed

SOURCE, DESTINATION = "east/src", "west/dst"
VERSION = Version(b"k", "01K", 100, tags={"colour": "red"})


def pending(recorded: DeliveryRecord) -> Version:
    return replace(VERSION, deliveries={DESTINATION: recorded})


def indexed(recorded: DeliveryRecord) -> dict[str, Delivery]:
    return {DESTINATION: delivery_of(SOURCE, VERSION, DESTINATION, recorded)}


PENDING = DeliveryRecord("rule", Status.PENDING, storage_class="STANDARD_IA", owner="Destination", edit=True)


@pytest.mark.parametrize(
    "recorded",
    [
        PENDING,
        DeliveryRecord("rule", Status.COMPLETED),
        DeliveryRecord("rule", Status.FAILED, "DstBucketNotFound", since_ns=150),
        DeliveryRecord(
            "rule", Status.PENDING, job="job", since_ns=150, before=DeliveryRecord("rule", Status.COMPLETED)
        ),
    ],
)
def test_what_the_index_has_too_stays_as_it_is(recorded: DeliveryRecord) -> None:
    """G11: it is the very same version, so nothing is written."""
    version = pending(recorded)
    assert with_indexed(version, indexed(recorded)) is version


def test_an_older_status_gives_way_to_that_of_the_index() -> None:
    """G11: fields that the index does not have are taken from the record."""
    ended = DeliveryRecord("rule", Status.FAILED, "DstBucketNotFound", since_ns=150)
    (found,) = with_indexed(pending(PENDING), indexed(ended)).deliveries.values()
    assert found == replace(ended, storage_class="STANDARD_IA", owner="Destination")


def test_what_only_one_of_the_two_has() -> None:
    """G11: the index has newer deliveries, and lacks cancelled ones."""
    asked = DeliveryRecord("rule", Status.PENDING, job="job", since_ns=150)
    assert with_indexed(VERSION, indexed(asked)).deliveries == {DESTINATION: asked}
    assert with_indexed(pending(PENDING), {}).deliveries == {}


def test_edits_that_a_record_knows_nothing_of_count() -> None:
    """G5: but not values that its view lacks, which are the view's own."""
    short = Shortfall(lacks=frozenset({"user.colour"}))
    said = replace(VERSION, shortfall=short)
    written = replace(VERSION, tags={"colour": "blue"}, edited={"tags": f"200 {SOURCE}"})
    assert latest(said, written) == replace(written, shortfall=short)
    assert latest(written, said) is written
    assert latest(said, VERSION) is said
