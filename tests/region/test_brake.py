"""Whether deletions are replicated, wait or are held: the complete table."""

from __future__ import annotations

import pytest

from fsrepl.region import brake
from fsrepl.region.brake import Decision, Deleted, Deletions, Facts

SECOND = 1_000_000_000


@pytest.mark.parametrize(
    ("facts", "renamed", "decision"),
    [
        (Facts(1, 1, 0.5), 0, Decision.RELEASE),  # the only file of a bucket
        (Facts(1000, 1000, 0.5), 0, Decision.RELEASE),  # all of a small bucket
        (Facts(1001, 1001, 0.5), 0, Decision.HALT),
        (Facts(1001, 2002, 0.5), 0, Decision.RELEASE),  # half is not more than half
        (Facts(1002, 2002, 0.5), 0, Decision.HALT),
        (Facts(1001, 1_000_000, 0.0), 0, Decision.HALT),
        (Facts(1_000_000, 1_000_000, 1.0), 0, Decision.RELEASE),  # 1: never
        (Facts(2000, 2000, 0.5, has_deliveries=False), 0, Decision.RELEASE),  # no destination would follow
        (Facts(101, 2000, 0.5, is_burst=True), 0, Decision.WAIT),  # rm -r may be under way
        (Facts(101, 1000, 0.5, is_burst=True), 0, Decision.RELEASE),  # never too many in so small a bucket
        (Facts(2000, 2000, 0.5, is_burst=True), 0, Decision.WAIT),
        (Facts(500, 2000, 0.5, coming=500), 0, Decision.RELEASE),
        (Facts(500, 2000, 0.5, coming=501), 0, Decision.WAIT),
        (Facts(500, 2000, 0.5, coming=501, is_scanning=True), 0, Decision.WAIT),
        (Facts(2000, 2000, 0.5, is_scanning=True), 0, Decision.WAIT),  # they may be renames
        (Facts(2000, 2000, 0.5, arriving=1000), 0, Decision.WAIT),
        (Facts(2000, 2000, 0.5, arriving=999), 0, Decision.HALT),
        (Facts(2000, 2000, 0.5, arriving=999), 1000, Decision.RELEASE),
        (Facts(2000, 2000, 0.5), 2000, Decision.RELEASE),
        (Facts(2000, 2000, 0.5), 1000, Decision.RELEASE),
        (Facts(2000, 2000, 0.5), 999, Decision.HALT),
    ],
)
def test_more_than_the_share_and_over_a_thousand_keys_is_held(facts: Facts, renamed: int, decision: Decision) -> None:
    assert brake.decide(facts, lambda: renamed) is decision


def test_only_the_last_minute_counts() -> None:
    deletions = Deletions()
    for second in range(100):
        deletions.add(b"%d" % second, Deleted(second * SECOND, b"", has_deliveries=True))
    assert len(deletions.keys) == 60
    assert deletions.since_ns == 40 * SECOND


def test_undecided_deletions_still_count() -> None:
    """Capturing a million deletions takes longer than the window."""
    deletions = Deletions()
    for second in range(100):
        deletions.add(b"%d" % second, Deleted(second * SECOND, b"", has_deliveries=True), is_undecided=second > 0)
    assert len(deletions.keys) == 100


def test_a_key_that_is_written_again_does_not_count() -> None:
    deletions = Deletions()
    deletions.add(b"a", Deleted(1, b"x", has_deliveries=True))
    deletions.written(b"a")
    assert not deletions.keys


def test_renamed_files_are_counted_one_for_one() -> None:
    """Of three files of the same content of which one is there under another name, two are deleted."""
    deletions = Deletions()
    for key in (b"a", b"b", b"c"):
        deletions.add(key, Deleted(1, b"same", has_deliveries=True))
    deletions.add(b"unknown", Deleted(1, b"", has_deliveries=True))
    assert deletions.count_renamed({b"same": 1, b"": 5}) == 1


def test_the_keys_are_counted_anew_when_the_first_deletion_that_was_counted_is_past() -> None:
    deletions = Deletions()
    deletions.add(b"a", Deleted(0, b"", has_deliveries=True))
    deletions.count_keys(10)
    assert deletions.keys_before == 11
    deletions.add(b"b", Deleted(30 * SECOND, b"", has_deliveries=True))
    assert deletions.keys_before == 11
    deletions.add(b"c", Deleted(70 * SECOND, b"", has_deliveries=True))
    assert deletions.keys_before == 0
