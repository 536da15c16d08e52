"""A mass deletion with a real daemon, 1,100 files, and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.site import DESTINATION, SOURCE, Site

NUMBER = 1100
"""Deletions are held when over 1,000 keys are deleted at once."""


@pytest.mark.slow
def test_a_bucket_that_was_wiped_is_brought_back_and_wiped_again(memory: Path) -> None:
    """rm -rf: the bucket is HALTED, every command says so, also after kill -9 and restart; undelete restores all; after
    ack the deletions are replicated."""
    with Site(memory) as site:
        for number in range(NUMBER):
            site.write(f"d{number % 7}/{number}", b"content of %d" % number)
        site.start()
        site.wait()
        before = site.tree(SOURCE)
        assert site.tree(DESTINATION) == before
        site.stop()
        _wipe(site)
        site.start()  # one scan finds all deletions, and none is replicated
        told = site.wait(code=1)
        assert f"{SOURCE} --since" in told.err
        assert "HALTED" in told.err
        assert site.tree(DESTINATION) == before
        assert site.tree(SOURCE) == {}
        halted = site.bucket_status(SOURCE)["halted"]
        assert (halted["keys"], halted["held"]) == (NUMBER, NUMBER)
        assert NUMBER / 2 < halted["deleted"] <= NUMBER  # at the moment of the decision
        for command in ("status", "doctor"):
            assert "HALTED" in site.run(command).out
        assert "HALTED" in site.must("why", f"{SOURCE}/d1/1").out
        assert "Replication:DeletionsHalted" in {
            json.loads(e)["eventName"] for e in site.must("events").out.splitlines()
        }

        site.kill()
        assert site.bucket_status(SOURCE)["halted"] == halted
        site.start()
        site.put("new", b"new")
        site.until(lambda: (site.path("new", DESTINATION)).exists(), "new writes go on crossing")
        assert len(site.tree(DESTINATION)) == NUMBER + 1

        since = halted["since"]
        assert site.json("undelete", SOURCE, "--since", since, "--dry-run")["Keys"] == NUMBER
        assert f"{NUMBER:,} files are back" in site.must("undelete", SOURCE, "--since", since).out  # asks nothing
        site.wait()
        assert site.tree(SOURCE) == before | {"new": b"new"}
        site.in_step()
        assert "halted" not in site.bucket_status(SOURCE)

        _wipe(site)  # with a running daemon: markers sent before the threshold, mostly none, have crossed, and no more
        site.wait(code=1)
        held = site.bucket_status(SOURCE)["halted"]["held"]
        assert held > NUMBER / 2
        assert len(site.tree(DESTINATION)) == held + 1
        assert f"{held:,} deletions cross now" in site.must("ack", SOURCE).out
        site.wait()
        assert site.tree(DESTINATION) == {"new": b"new"}
        site.in_step()


def _wipe(site: Site) -> None:
    for directory in site.path().glob("d*"):
        shutil.rmtree(directory)


@pytest.mark.slow
def test_a_directory_with_most_of_a_bucket_is_renamed(memory: Path) -> None:
    """A rename is no deletion, however many files it moves: all of it is replicated by itself."""
    with Site(memory) as site:
        for number in range(NUMBER):
            site.write(f"old/{number % 7}/{number}", b"content of %d" % number)
        site.start()
        site.wait()
        site.path("old").rename(site.path("moved"))
        site.wait()
        assert len(site.tree(DESTINATION)) == NUMBER
        site.in_step()
