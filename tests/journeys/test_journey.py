"""The main journey: a file is dropped in one region, and appears in the other. Real daemon, real directories."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site import DESTINATION, SOURCE, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as found:
        found.start()
        yield found


def test_a_dropped_file_is_in_the_other_region(site: Site) -> None:
    """G3, G5: same content, id, creation time and metadata; COMPLETED here, REPLICA there."""
    path = site.write("photos/2026/cat.jpg", b"meow")
    os.chmod(path, 0o640)
    os.setxattr(path, "user.author", b"me")
    site.wait()
    site.in_step()
    here, there = (site.head(f"{b}/photos/2026/cat.jpg") for b in (SOURCE, DESTINATION))
    assert (here["ReplicationStatus"], there["ReplicationStatus"]) == ("COMPLETED", "REPLICA")
    for name in ("VersionId", "LastModified", "ETag", "ContentLength", "Metadata", "Posix"):
        assert here[name] == there[name], name
    assert there["Metadata"] == {"author": "me"}
    replica = site.path("photos/2026/cat.jpg", DESTINATION)
    assert replica.stat().st_mode & 0o7777 == 0o640
    assert os.getxattr(replica, "user.fsrepl.replication-status") == b"REPLICA"


def test_after_a_wait_the_label_says_that_a_file_is_replicated(site: Site) -> None:
    """G11, section 6: for a user who waits, and looks at the file next."""
    for number in range(5):
        names = [f"{number}/{i}" for i in range(20)]
        for name in names:
            site.write(name, name.encode())
        site.wait()
        told = {os.getxattr(site.path(name), "user.fsrepl.replication-status") for name in names}
        assert told == {b"COMPLETED"}


def test_updates_and_deletions_are_replicated_and_can_be_undone(site: Site) -> None:
    """G1, G5: every version is replicated in order; a marker hides the file; restore brings it back on both sides."""
    for data in (b"one", b"two", b"three"):
        site.put("k", data)
        site.wait()
    site.path("k").unlink()
    site.wait()
    assert site.tree(DESTINATION) == {}
    site.must("restore", f"{SOURCE}/k")
    site.wait()
    assert site.tree(DESTINATION) == {"k": b"three"}
    site.in_step()
    assert [marker for _, _, marker in site.history(SOURCE)[b"k"]] == [False, True, False, False, False]


def test_what_happened_while_the_daemon_was_away_is_found(site: Site) -> None:
    """G6, G7: killed while it works; new, changed, renamed and deleted files are found by the next start."""
    for name in ("changed", "deleted", "renamed", "kept"):
        site.write(name, name.encode())
    site.wait()
    site.kill()
    site.write("changed", b"other content")
    site.path("deleted").unlink()
    site.path("renamed").rename(site.path("new name"))
    site.write("d/e/f", b"deep")
    site.start()
    site.wait()
    site.in_step()
    assert set(site.tree(DESTINATION)) == {"changed", "new name", "kept", "d/e/f"}
    assert {k: len(v) for k, v in site.history(SOURCE).items()} == {
        b"changed": 2, b"d/e/f": 1, b"deleted": 2, b"kept": 1, b"new name": 1, b"renamed": 2,
    }  # fmt: skip


def test_a_stale_view_is_reported(site: Site) -> None:
    """G4, G11: while a program writes into a replica the newer version waits in the store, and status and why say
    so."""
    site.write("k", b"one")
    site.wait()
    with site.path("k", DESTINATION).open("r+b"):
        site.put("k", b"two")
        assert "stored, and not shown yet: west/dst/k" in site.wait(code=1).err
        (there,) = [b for b in site.json("status")["buckets"] if b["bucket"] == DESTINATION]
        assert [each["Key"] for each in there["views_behind"]] == ["k"]
        assert "open for writing" in there["views_behind"][0]["Why"]
        assert "k: a program has the file open for writing" in site.must("status").out
        for bucket in (SOURCE, DESTINATION):
            assert "a program has the file open for writing" in site.must("why", f"{bucket}/k").out
        assert site.path("k", DESTINATION).read_bytes() == b"one"
    site.until(lambda: site.path("k", DESTINATION).read_bytes() == b"two", "the newer version to be shown")
