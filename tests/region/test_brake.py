"""Whether deletions are replicated, wait or are held: the complete table; and how they are counted."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from fsrepl.region import brake
from fsrepl.region import deletions as counting
from fsrepl.region.brake import Decision, Facts
from fsrepl.region.deletions import Deleted, Deletions

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
        (Facts(501, 1_000_000, 0.5, coming=500, is_scanning=True), 0, Decision.WAIT),  # they may be the first of all
        (Facts(500, 1_000_000, 0.5, coming=500, is_scanning=True), 0, Decision.RELEASE),
        (Facts(1001, 1_000_000, 0.5), 0, Decision.RELEASE),
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


@pytest.mark.parametrize(
    ("waited_s", "quiet_s", "share", "many", "decision"),
    [
        (0.0, 0.0, 0.5, True, Decision.WAIT),  # rm -r may have begun
        (brake.FIRST_QUIET_S, 0.0, 0.5, True, Decision.WAIT),  # and be slow
        (brake.FIRST_QUIET_S, brake.FIRST_QUIET_S, 0.5, True, Decision.RELEASE),
        (brake.FIRST_MAX_S, 0.0, 0.5, True, Decision.RELEASE),  # deletions that never end do not wait for one another
        (0.0, 0.0, 0.5, False, Decision.RELEASE),  # never too many in so small a bucket
        (0.0, 0.0, 1.0, True, Decision.RELEASE),  # 1: never
    ],
)
def test_the_first_deletions_in_a_large_bucket_wait_for_a_moment(
    waited_s: float, quiet_s: float, share: float, many: bool, decision: Decision
) -> None:
    assert brake.decide_first(waited_s, quiet_s, share, lambda: many) is decision


@pytest.fixture(params=["by their keys", "as numbers"])
def _known(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All deletions are known by their keys, or only the last few of them."""
    if request.param == "as numbers":
        monkeypatch.setattr(counting, "KEYS_MAX", 1)
        monkeypatch.setattr(counting, "_PASS_ON", 2)


def deleted(at_ns: int, digest: bytes = b"") -> Deleted:
    return Deleted(at_ns, digest, has_deliveries=True)


@pytest.mark.usefixtures("_known")
def test_only_the_last_minute_counts() -> None:
    deletions = Deletions()
    for second in range(100):
        deletions.add(b"%d" % second, deleted(second * SECOND))
    assert deletions.number == 60
    assert deletions.since_ns == 40 * SECOND


@pytest.mark.usefixtures("_known")
def test_undecided_deletions_still_count() -> None:
    """Capturing a million deletions takes longer than the window."""
    deletions = Deletions()
    for second in range(100):
        deletions.add(b"%d" % second, deleted(second * SECOND), is_undecided=second > 0)
    assert deletions.number == 100


@pytest.mark.usefixtures("_known")
def test_a_key_that_is_written_again_does_not_count() -> None:
    """By its marker's time: a key that was not deleted within the last minute is none of those that count."""
    deletions = Deletions()
    for number in range(8):
        deletions.add(b"%d" % number, deleted(number // 2 + 1))
    for number in (5, 0, 2, 5):
        deletions.written(b"%d" % number, number // 2 + 1)
    deletions.written(b"never there", 0)
    deletions.written(b"deleted by lifecycle", 2)
    assert deletions.number == 5
    for number in (1, 3, 4, 6, 7):
        deletions.written(b"%d" % number, number // 2 + 1)
    assert (deletions.number, deletions.since_ns, deletions.has_deliveries) == (0, 0, False)


@pytest.mark.usefixtures("_known")
def test_renamed_files_are_counted_one_for_one() -> None:
    """Of three files of the same content of which one is there under another name, two are deleted."""
    deletions = Deletions()
    for key in (b"a", b"b", b"c"):
        deletions.add(key, deleted(1, b"same"))
    deletions.add(b"unknown", deleted(1))
    assert deletions.count_renamed([b"same", b"", b"other", b""]) == 1
    assert deletions.count_renamed([]) == 0


@pytest.mark.usefixtures("_known")
def test_the_keys_are_counted_anew_when_the_first_deletion_that_was_counted_is_past() -> None:
    deletions = Deletions()
    deletions.add(b"a", deleted(0))
    deletions.count_keys(10)
    assert deletions.keys_before == 11
    deletions.add(b"b", deleted(30 * SECOND))
    assert deletions.keys_before == 11
    deletions.add(b"c", deleted(70 * SECOND))
    assert deletions.keys_before == 0


def test_deletions_are_counted_alike_however_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random deletions, files that are written again and renames, beside a count that keeps all."""
    for seed in range(30):
        chance = random.Random(seed)
        monkeypatch.setattr(counting, "KEYS_MAX", 10_000)
        whole = Deletions()
        monkeypatch.setattr(counting, "_PASS_ON", chance.randrange(1, 5))
        some, now_ns, markers = Deletions(), 0, dict[bytes, int]()
        for _ in range(200):
            now_ns += chance.choice((0, 0, SECOND, 3 * SECOND))
            key, digest, is_undecided = (
                b"%d" % chance.randrange(40),
                b"%08d" % chance.randrange(9),
                chance.random() < 0.3,
            )
            for number, each in ((10_000, whole), (3, some)):
                monkeypatch.setattr(counting, "KEYS_MAX", number)
                if key in markers:
                    each.written(key, markers[key])
                else:
                    each.add(key, deleted(now_ns, digest), is_undecided=is_undecided)
            if markers.pop(key, None) is None:
                markers[key] = now_ns
            assert (some.number, some.since_ns) == (whole.number, whole.since_ns), seed
            arrived = [b"%08d" % chance.randrange(9) for _ in range(5)]
            assert some.count_renamed(arrived) == whole.count_renamed(arrived), seed
        assert some.number


def test_a_deletion_beyond_those_known_by_their_keys_takes_a_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A million deletions at once are 24 MB, and not 300."""
    monkeypatch.setattr(counting, "KEYS_MAX", 1_000)
    monkeypatch.setattr(counting, "_PASS_ON", 100)
    deletions, taken = Deletions(), []
    tracemalloc.start()
    try:
        for number in range(30_000):
            deletions.add(b"some/directory/%d" % number, deleted(number, b"%032d" % number), is_undecided=True)
            if number in (9_999, 29_999):
                taken.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert deletions.number == 30_000
    assert (taken[1] - taken[0]) / 20_000 < 48
