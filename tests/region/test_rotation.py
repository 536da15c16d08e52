"""The order of buckets, and how much of each is in a batch. No disk, and no clock."""

from __future__ import annotations

from fsrepl.region.rotation import LATELY_S, SHARE_MIN, Rotation


def test_a_single_bucket_gets_the_whole_batch() -> None:
    """Section 7, group commit: a burst in one bucket is taken in large batches, whenever it was served last."""
    rotation: Rotation[str] = Rotation()
    assert rotation.shares({"quiet": 1}, 512, 0.0) == {"quiet": 1}
    assert rotation.shares({"quiet": 0, "burst": 40_000}, 512, LATELY_S + 1) == {"burst": 512}
    assert rotation.shares({"quiet": 0, "burst": 100}, 512, LATELY_S + 2) == {"burst": 100}
    assert rotation.shares({}, 512, LATELY_S + 3) == {}


def test_one_file_goes_before_the_rest_of_a_burst() -> None:
    """A burst delays no other bucket: the bucket served longest ago is first, and the burst gets the rest of the
    batch."""
    rotation: Rotation[str] = Rotation()
    assert rotation.shares({"burst": 40_000}, 512, 0.0) == {"burst": 512}
    shares = rotation.shares({"burst": 40_000, "quiet": 1}, 512, 1.0)
    assert list(shares.items()) == [("quiet", 1), ("burst", 127)]


def test_batches_stay_small_while_another_bucket_was_active_lately() -> None:
    """A burst delays no other bucket: the next bucket waits for the current batch, so that batch is small."""
    rotation: Rotation[str] = Rotation()
    rotation.shares({"quiet": 1}, 512, 0.0)
    assert rotation.shares({"burst": 40_000}, 512, 1.0) == {"burst": 128}


def test_bursts_share_and_every_bucket_is_served() -> None:
    """A burst delays no other bucket: of many bursts each is served in rotation, in shares that are worth a sync."""
    rotation: Rotation[int] = Rotation()
    waiting = dict.fromkeys(range(20), 10_000)
    served: list[int] = []
    while len(served) < 20:
        shares = rotation.shares(waiting, 512, 0.0)
        assert set(shares.values()) == {SHARE_MIN}
        served += shares
    assert sorted(served) == list(range(20))


def test_many_quiet_buckets_fit_in_one_batch() -> None:
    """A burst delays no other bucket: buckets with few changes do not wait for one another either."""
    rotation: Rotation[int] = Rotation()
    assert rotation.shares(dict.fromkeys(range(100), 1), 512, 0.0) == dict.fromkeys(range(100), 1)
