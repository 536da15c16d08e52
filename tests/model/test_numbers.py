"""Numbers from filesystems that exceed 64-bit columns or four-digit years are kept, and replicated."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsrepl.commands.documents import objects as documents
from fsrepl.model import clock, keys
from fsrepl.model.version import Version
from fsrepl.model.view import View
from fsrepl.storage import listing
from fsrepl.storage.journal.database import Journal
from tests.doubles import HugeInodesFs
from tests.world import DESTINATION, SOURCE, World

YEAR_S = 31_556_952
DATES = {"in 2300": 330 * YEAR_S, "in 12000": 10_030 * YEAR_S, "in 1650": -320 * YEAR_S, "in -1200": -3_170 * YEAR_S}
OTHER = "east/other"


def dates_listed(world: World) -> list[int]:
    """The date of each object as `ls` prints it, parsed."""
    with world.engine.site.bucket(OTHER).open() as bucket:
        found, _ = listing.entries(bucket, b"", versions=False, page=listing.Page())
    return [clock.parse(str(documents.entry_document(each, versions=False)["LastModified"])) for each in found]


def date(path: Path, seconds: int) -> int:
    """Give a file a date. Returns the date that its filesystem stored, in nanoseconds."""
    os.utime(path, (seconds, seconds))
    return path.stat().st_mtime_ns


@pytest.mark.parametrize("seconds", DATES.values(), ids=DATES)
def test_a_file_of_any_date_is_replicated_with_it(memory: Path, seconds: int) -> None:
    """G5, G6: with its date, among other files, again after a restart, and without stopping its region."""
    with World(memory / "w") as world:
        world.write("odd", b"content")
        mtime_ns = date(world.path("odd"), seconds)
        world.write("plain", b"plain")
        world.settle()
        assert world.statuses() == {"COMPLETED"}
        assert world.path("odd", DESTINATION).stat().st_mtime_ns == mtime_ns
        world.restart(without_journal=True)
        world.settle()
        world.stays_quiet()
        world.unlink("odd")
        world.settle()
        assert world.tree(SOURCE) == world.tree(DESTINATION) == {"plain": b"plain"}
        assert world.ids(SOURCE) == world.ids(DESTINATION)


def test_inode_numbers_may_have_64_bits(memory: Path) -> None:
    """G6: a FUSE or NFS filesystem's inode numbers of 2^63 and more are kept, and nothing is doubled."""
    with World(memory / "w", fs=HugeInodesFs()) as world:
        world.write("a", b"one")
        world.settle()
        world.drop("a", b"two")
        world.settle()
        world.restart(fs=HugeInodesFs())
        world.settle()
        world.stays_quiet()
        assert [v.size for v in world.of("a")] == [3, 3]
        assert world.ids(SOURCE) == world.ids(DESTINATION)


@pytest.mark.parametrize("seconds", DATES.values(), ids=DATES)
def test_files_of_any_date_are_adopted_and_listed(memory: Path, seconds: int) -> None:
    """G6: each file becomes its null version, created at a time that S3 can print; its own date stays its date."""
    with World(memory / "w", replicate=False) as world:
        world.run("bucket.create", bucket=OTHER, versioning=False)
        mtime_ns = 0
        for name in ("a", "odd", "z"):
            world.write(name, name.encode(), OTHER)
            if name == "odd":
                mtime_ns = date(world.path(name, OTHER), seconds)
        before = dates_listed(world)
        world.run("versioning.set", bucket=OTHER, status="Enabled")
        world.settle()
        assert len(before) == len(dates_listed(world)) == 3
        posix = world.current("odd", OTHER).posix
        assert posix
        assert posix.mtime_ns == mtime_ns


def test_every_number_comes_back_from_the_journal(tmp_path: Path) -> None:
    """G6: exactly, so that an unchanged file is recognised."""
    journal = Journal(str(tmp_path / "journal.db"))
    numbers = [0, -1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 63), -(1 << 63) - 1, 10**27, -(10**27)]
    with journal.transaction():
        journal.bucket_id(SOURCE, "uuid")
        rows = []
        for n in numbers:
            view = View(abs(n), abs(n), n, n, shown="null")
            rows.append((Version(keys.join(b"d", str(n).encode()), "null", 1, size=(1 << 62) + 1), view))
        journal.versions.add_shown(SOURCE, rows)
    for version, view in rows:
        known = journal.versions.object(SOURCE, version.key)
        assert known is not None
        assert known.view == view
    counts = journal.totals.counts(SOURCE)
    assert counts.objects == counts.versions == len(rows)  # the sum of the sizes has more than 64 bits
    journal.close()


def test_no_clock_makes_a_moment_that_cannot_be_kept(tmp_path: Path) -> None:
    """G7: a machine whose clock shows the year 2500 makes versions as before, in order."""
    ids = clock.VersionIds()
    made = [ids.next(clock.parse("2500-01-01T00:00:00Z")) for _ in range(3)]
    assert made == sorted(made)
    assert {clock.stamp(ns)[:4] for _, ns in made} == {"2262"}
    (tmp_path / "now").write_text("9999-12-31T23:59:59Z")
    assert clock.stamp(clock.system_clock({"FSREPL_CLOCK": str(tmp_path / "now")})())[:4] == "2262"


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-30T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-00T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T00:60:00Z",
        "2026-01-01T00:00:61Z",
        "0000-01-01T00:00:00Z",
    ],
)
def test_a_time_that_does_not_exist_is_no_time(text: str) -> None:
    """Section 5: `lifecycle preview --at 2026-02-30` is a mistake, and not a day in March."""
    with pytest.raises(ValueError, match=r"."):
        clock.parse(text)
    assert clock.parse("2024-02-29T23:59:60Z") == clock.parse("2024-03-01T00:00:00Z")
