"""Turns between buckets: who comes next, and how much of each. No disk, and no clock."""

from __future__ import annotations

from fsrepl.region.rotation import LATELY_S, SHARE_MIN, Rotation


def test_one_that_is_alone_gets_the_whole_batch() -> None:
    """Section 7, group commit: a burst in one bucket is taken in large batches, whatever was served long ago."""
    rotation: Rotation[str] = Rotation()
    assert rotation.shares({"quiet": 1}, 512, 0.0) == {"quiet": 1}
    assert rotation.shares({"quiet": 0, "burst": 40_000}, 512, LATELY_S + 1) == {"burst": 512}
    assert rotation.shares({"quiet": 0, "burst": 100}, 512, LATELY_S + 2) == {"burst": 100}
    assert rotation.shares({}, 512, LATELY_S + 3) == {}


def test_one_file_goes_before_the_rest_of_a_burst() -> None:
    """A burst holds up no other bucket: what was served longest ago is first, and the burst gets what it leaves."""
    rotation: Rotation[str] = Rotation()
    assert rotation.shares({"burst": 40_000}, 512, 0.0) == {"burst": 512}
    shares = rotation.shares({"burst": 40_000, "quiet": 1}, 512, 1.0)
    assert list(shares.items()) == [("quiet", 1), ("burst", 127)]


def test_batches_stay_small_while_another_had_something_lately() -> None:
    """A burst holds up no other bucket: whoever is next waits for the batch in hand, so that is a small one."""
    rotation: Rotation[str] = Rotation()
    rotation.shares({"quiet": 1}, 512, 0.0)
    assert rotation.shares({"burst": 40_000}, 512, 1.0) == {"burst": 128}


def test_bursts_share_and_everybody_is_served() -> None:
    """A burst holds up no other bucket: of many bursts each is served in turn, in shares that are worth a sync."""
    rotation: Rotation[int] = Rotation()
    waiting = dict.fromkeys(range(20), 10_000)
    served: list[int] = []
    while len(served) < 20:
        shares = rotation.shares(waiting, 512, 0.0)
        assert set(shares.values()) == {SHARE_MIN}
        served += shares
    assert sorted(served) == list(range(20))


def test_many_quiet_ones_fit_in_one_batch() -> None:
    """A burst holds up no other bucket: those with little to do do not wait for one another either."""
    rotation: Rotation[int] = Rotation()
    assert rotation.shares(dict.fromkeys(range(100), 1), 512, 0.0) == dict.fromkeys(range(100), 1)
