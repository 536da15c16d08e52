"""Tree buckets at the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.site import DESTINATION, SOURCE, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, replicate=False)


def test_symlinks_at_the_command_line(site: Site) -> None:
    """Turned on, listed, printed, explained and restored; an unknown word and an unknown bucket are refused."""
    assert site.must("bucket", "trees", SOURCE).out == "off\n"
    assert site.run("bucket", "trees", SOURCE, "yes").code == 2
    assert site.run("bucket", "trees", "east/none", "on").code == 3
    site.must("replication", "enable", SOURCE, DESTINATION)
    done = site.must("bucket", "trees", SOURCE, "on")
    assert done.out == f"trees of {SOURCE}: on\n"
    assert f"`fsrepl bucket trees {DESTINATION} on`" in done.err
    site.must("bucket", "trees", DESTINATION, "on")
    assert site.must("bucket", "trees", DESTINATION, "on").out == f"trees of {DESTINATION}: on, as before\n"
    assert {b["Bucket"]: b["Trees"] for b in json.loads(site.must("bucket", "ls", "--json").out)["Buckets"]} == {
        SOURCE: True, DESTINATION: True,
    }  # fmt: skip
    with site:
        site.start()
        os.symlink("/target", site.path("link"))
        site.must("wait")
        assert os.readlink(site.path("link", DESTINATION)) == "/target"
        for bucket in (SOURCE, DESTINATION):
            head = json.loads(site.must("head", f"{bucket}/link", "--json").out)
            assert (head["ContentType"], head["Posix"]["mode"]) == ("inode/symlink", "120777")
            assert site.must("cat", f"{bucket}/link").out == "/target"
            assert "link" in site.must("ls", bucket).out
        assert "COMPLETED" in site.must("why", f"{SOURCE}/link").out
        assert site.must("verify", SOURCE).code == 0
        site.write("folder/file", b"data")
        site.must("wait")
        assert (
            "; folder/ is a key there, that of a directory" in site.refused("NoSuchKey", "wait", f"{SOURCE}/folder").err
        )
        site.must("rm", f"{SOURCE}/folder/")  # the directory remains, as the object below it does
        site.must("wait")
        assert site.path("folder/file", DESTINATION).read_bytes() == b"data"
        Path(site.path("link")).unlink()
        site.must("wait")
        assert not os.path.lexists(site.path("link", DESTINATION))
        site.must("restore", f"{SOURCE}/link")
        site.must("wait")
        assert os.readlink(site.path("link", DESTINATION)) == "/target"


def test_a_rule_and_tree_buckets_in_one_command(site: Site) -> None:
    """`replication enable --trees` turns both on; a dry run turns on nothing."""
    site.must("replication", "enable", SOURCE, DESTINATION, "--trees", "--dry-run")
    assert site.must("bucket", "trees", SOURCE).out == "off\n"
    done = site.must("replication", "enable", SOURCE, DESTINATION, "--trees")
    assert f"trees of {SOURCE}: on" in done.out + done.err
    assert [site.must("bucket", "trees", each).out for each in (SOURCE, DESTINATION)] == ["on\n", "on\n"]
    assert site.run("replication", "enable", SOURCE, "--trees").code == 2


def test_adopt_says_what_became_an_object(site: Site) -> None:
    """Files, directories and symlinks apart: "6 files" of a folder with three says nothing to rely on."""
    top = site.regions["east"] / "old"
    (top / "a" / "b").mkdir(parents=True)
    (top / "c").mkdir()
    (top / "a" / "file").write_bytes(b"data")
    (top / "link").symlink_to("a")
    done = site.must("bucket", "adopt", "east/old", "--trees", "--yes").out.splitlines()
    # eight KiB for each of the five, and what the two contents take
    holds = "east/old holds 1 file, 3 directories, 1 symlink, 5 B; their versions take about 40.0 KiB, and "
    assert done[0].startswith(holds)
    assert done[-1] == "bucket east/old: 1 file, 3 directories, 1 symlink adopted, versioning Enabled"
    rows = [line.split() for line in site.must("bucket", "ls", "east").out.splitlines()]
    assert rows == [
        ["BUCKET", "VERSIONING", "TREES", "REPLICATES", "TO", "LIFECYCLE"],
        ["east/old", "Enabled", "on"],
        [SOURCE, "Enabled", "off"],
    ]
