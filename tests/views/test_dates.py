"""A modification time that the destination's filesystem cannot hold: the record has it, and `verify` says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.commands.documents import differences as documents
from fsrepl.repair.verify import Verification
from fsrepl.repair.verify_progress import Tally
from tests.mounts import ext4, only_root
from tests.site import Site
from tests.world import DESTINATION, SOURCE, World

pytestmark = only_root
YEAR_2100_NS = 4_102_444_800_123_456_789
LAST_NS = 2_147_483_647_000_000_000
"""What an inode of 128 bytes can hold at most: in January 2038."""


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Path]:
    with ext4(tmp_path, "-I", 128) as at:
        yield at


@pytest.fixture
def regions(tmp_path: Path, narrow: Path) -> dict[str, Path]:
    (narrow / "west").mkdir()
    return {"east": tmp_path / "east", "west": narrow / "west"}


def verified(world: World) -> Tally:
    with Verification(world.engine.site, SOURCE, None, world.engine.journal) as found:
        assert list(found.differences()) == []
    return found.tally


@pytest.mark.parametrize("sharing", ["auto", "private"])
def test_the_record_has_it_and_verify_says_what_the_filesystem_cannot_hold(
    tmp_path: Path, regions: dict[str, Path], sharing: str
) -> None:
    """G5: it is no difference and no edit; also after the loss of the journal. Whole seconds are not reported."""
    with World(tmp_path / "home", regions=regions) as world:
        world.set_sharing(west=sharing)
        world.write("k", b"data")
        world.write("today", b"data")
        os.utime(world.path("k"), ns=(YEAR_2100_NS, YEAR_2100_NS))
        world.settle()
        assert world.path("k", DESTINATION).stat().st_mtime_ns == LAST_NS
        for without_journal in (False, True):
            for bucket in (SOURCE, DESTINATION):
                posix = world.current("k", bucket).posix
                assert posix is not None
                assert posix.mtime_ns == YEAR_2100_NS
            (dates,) = documents.totals(verified(world))["DatesNotHeld"]  # type: ignore[misc]
            assert dates == {
                "Key": "k", "Bucket": DESTINATION, "Versions": 1, "ModificationTime": "2100-01-01T00:00:00.123456789Z"
            }  # fmt: skip
            world.stays_quiet()
            world.restart(without_journal=without_journal)
            world.settle()
        os.utime(world.path("k"), (1, 1))
        world.settle()
        assert "DatesNotHeld" not in documents.totals(verified(world))
        assert world.path("k", DESTINATION).stat().st_mtime_ns == 1_000_000_000


def test_the_date_that_a_source_shows_counts(tmp_path: Path, narrow: Path) -> None:
    """G5: a date that the user's own filesystem could not store is not kept."""
    (narrow / "east").mkdir()
    with World(tmp_path / "home", regions={"east": narrow / "east", "west": tmp_path / "west"}) as world:
        world.write("k", b"data")
        os.utime(world.path("k"), ns=(YEAR_2100_NS, YEAR_2100_NS))
        world.settle()
        shown_ns = world.path("k").stat().st_mtime_ns
        assert shown_ns == LAST_NS
        assert world.path("k", DESTINATION).stat().st_mtime_ns == shown_ns
        assert verified(world).dates == {}
        world.stays_quiet()


@pytest.mark.slow
def test_verify_prints_the_dates_and_exits_with_0(tmp_path: Path, regions: dict[str, Path]) -> None:
    """Section 5, verify: nothing is to be repaired; `head` prints the version's own date."""
    with Site(tmp_path / "home", regions=regions) as site:
        site.start()
        site.write("k", b"data")
        os.utime(site.path("k"), ns=(YEAR_2100_NS, YEAR_2100_NS))
        site.wait()
        said = site.must("verify", SOURCE).out
        expected = f"{DESTINATION}: this filesystem cannot hold the modification time of 1 version, such as that of k, "
        assert expected + "2100-01-01T00:00:00.123456789Z" in said
        assert site.json("head", f"{DESTINATION}/k")["Posix"]["mtime_ns"] == YEAR_2100_NS
