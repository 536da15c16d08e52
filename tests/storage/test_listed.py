"""Lists that take records from the journal: they say the same as the records, and read none of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.commands import index
from fsrepl.commands.documents import objects as documents
from fsrepl.commands.reader import Document
from fsrepl.daemon.lock import Lock
from fsrepl.storage import listing
from fsrepl.storage.journal import listed
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.listed import Listed
from fsrepl.storage.listing import Page
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World, v1


class Counting(UnsyncedFs):
    """Counts opened files."""

    opened = 0

    def open_read(self, at: int, name: bytes) -> int:
        self.opened += 1
        return super().open_read(at, name)


@pytest.fixture
def fs() -> Counting:
    return Counting()


@pytest.fixture
def world(memory: Path, fs: Counting) -> Iterator[World]:
    with World(memory, fs=fs) as world:
        yield world


def listing_of(world: World, bucket: str, known: Listed | None, *, versions: bool = True, prefix: bytes = b"",
               page: Page | None = None) -> Document:  # fmt: skip
    """`ls --json`."""
    with world.engine.site.bucket(bucket).open() as opened:
        found, more = listing.entries(opened, prefix, versions=versions, page=page or Page(), known=known)
    return documents.list_document(found, more, versions=versions)


def of_all_kinds(world: World) -> None:
    """Versions and markers of every kind and status, in folders whose names sort between others."""
    for name in ("a", "a-b", "b/c", "b-/c", "b", "d/e/f", "d/e-", "long" * 60, "d/" + "~" + "0" * 32):
        if name != "b":
            world.drop(name, name.encode(), tags={"class": "blue"} if name == "a" else {})
    world.settle()
    world.write("a", b"second")
    world.write("d/e/f", b"second")
    world.settle()
    world.unlink("b/c")
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    world.write("d/failed", b"x")
    world.settle()
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")
    world.away("west")
    world.write("d/pending", b"x")
    world.run("object.rm", bucket=SOURCE, key=b"a-b", version_id=world.current("a-b").id)
    world.settle()
    world.back("west")


@pytest.mark.parametrize("rows", [1, 3, 2000])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_a_list_from_the_journal_is_that_of_the_records(
    world: World, bucket: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G11: every field of every entry, whole and in pages, also where the journal is read a few rows at a time."""
    monkeypatch.setattr(listed, "_ROWS", rows)
    of_all_kinds(world)
    for versions in (False, True):
        for page in (Page(), Page(most=3), Page(b"b/"), Page(b"a", "none"), Page(b"d/e-", most=2), Page(b"zzz")):
            for prefix in (b"", b"d", b"d/e", b"b/", b"long", b"none"):
                asked = {"versions": versions, "page": page, "prefix": prefix}
                known = world.engine.journal.listed(bucket)
                assert listing_of(world, bucket, known, **asked) == listing_of(world, bucket, None, **asked), asked


def test_a_list_reads_no_record_that_the_journal_has(world: World, fs: Counting) -> None:
    """20,000 keys are listed without opening 20,000 files; of several versions only the noncurrent ones are read, of
    which the journal lacks the digest."""
    for number in range(20):
        world.write(f"d/{number}", b"x")
    world.write("twice", b"one")
    world.settle()
    world.write("twice", b"two")
    world.settle()
    for bucket in (SOURCE, DESTINATION):
        for versions, opened in ((False, 0), (True, 1)):
            fs.opened = 0
            listing_of(world, bucket, world.engine.journal.listed(bucket), versions=versions)
            assert fs.opened == opened
    fs.opened = 0
    listing_of(world, SOURCE, None, versions=False, page=Page(b"d/9"))
    assert fs.opened == 3  # without a journal d/9 and the two versions are read, and nothing of what is before


def test_the_store_says_which_versions_there_are(world: World) -> None:
    """A version that was removed from the store is not listed, and one that the journal lacks is, with its record."""
    for name in ("gone", "lacking", "stays"):
        world.write(name, b"x")
    world.settle()
    gone = world.current("gone")
    world.engine.journal.versions.remove(SOURCE, b"lacking", world.current("lacking").id, None)
    world.path(f".fsrepl/versions/gone;{gone.id}").unlink()
    there = listing_of(world, SOURCE, world.engine.journal.listed(SOURCE))
    assert [each["Key"] for each in there["Versions"]] == ["lacking", "stays"]
    assert there == listing_of(world, SOURCE, None)


def test_a_journal_of_an_earlier_build_is_not_believed_for_replicas(world: World) -> None:
    """A reader reads the records instead; the daemon adds the column, and rows from then on are complete."""
    world.write("k", b"x")
    world.settle()
    path = world.settings.state / "journal.db"
    world.engine.journal.close()
    world.engine.journal.close()
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE version DROP COLUMN replica")
    database.close()
    of_reader = Journal(str(path), read_only=True)
    assert of_reader.listed(SOURCE).of(b"", b"k") == {}
    of_reader.close()
    world.restart()
    assert world.engine.journal.listed(DESTINATION).of(b"", b"k") == {}
    world.write("new", b"x")
    world.settle()
    for bucket in (SOURCE, DESTINATION):
        assert world.engine.journal.listed(bucket).of(b"", b"new")
        assert listing_of(world, bucket, world.engine.journal.listed(bucket)) == listing_of(world, bucket, None)


def test_the_journal_is_believed_while_a_daemon_keeps_it(world: World) -> None:
    """After a crash it may be behind the trees, and a copy of the trees may have another past."""
    world.write("k", b"x")
    world.configure(v1(to=DESTINATION))
    world.settle()
    site = world.engine.site
    with site.bucket(SOURCE).open() as opened:
        with index.listed(site, opened) as known:
            assert known is None
        lock = Lock(world.settings.state)
        assert lock.try_acquire()
        with lock:
            with index.listed(site, opened) as known:
                assert known is not None
                assert known.of(b"", b"k")
            world.engine.journal.set_tree(SOURCE, "another")
            with index.listed(site, opened) as known:
                assert known is None


@pytest.mark.parametrize("versioned", [True, False])
def test_a_prefix_that_no_key_begins_with_lists_nothing(world: World, versioned: bool) -> None:
    """Section 1.3: a prefix is compared with keys; as a path `d/./` would list the keys of d under other names, and
    `../` would leave the bucket."""
    world.run("bucket.create", bucket="east/plain")
    bucket = SOURCE if versioned else "east/plain"
    world.write("d/k", b"k", bucket)
    world.settle()
    for prefix in (
        b"../",
        b"../plain/",
        b"d/./",
        b"d/../d/",
        b"./",
        b"d//",
        b"//",
        b".fsrepl/",
        b".fsrepl/versions/d/",
    ):
        assert listing_of(world, bucket, None, versions=versioned, prefix=prefix).popitem()[1] == [], prefix
    assert len(listing_of(world, bucket, None, versions=False, prefix=b"d/")["Contents"]) == 1  # type: ignore[arg-type]
