"""A filesystem that answers no call, as a dead server's: all else goes on, commands answer, and the daemon ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from fsrepl.settings import FILE
from tests.mounts import ext4, frozen, hanging, only_root
from tests.site import DEADLINE_S, DESTINATION, SOURCE, Site

OTHER, ITS_REPLICA = "north/other", "south/replica"


@pytest.mark.slow
@only_root
@pytest.mark.parametrize("place", ["east", "west"], ids=["source", "destination"])
def test_a_region_that_never_answers_delays_nothing_else(tmp_path: Path, place: str) -> None:
    """G7, section 7: commands for everything else answer, other regions replicate, SIGTERM ends the daemon; once the
    region answers, what waited for it is done."""
    regions = {name: tmp_path / "site" / name for name in ("east", "west", "north", "south")}
    with Site(tmp_path, regions=regions, buckets=(SOURCE, DESTINATION, OTHER, ITS_REPLICA)) as site:
        site.must("replication", "enable", OTHER, ITS_REPLICA)
        site.start()
        site.write("k", b"before")
        site.write("k", b"before", OTHER)
        site.wait()
        with hanging(site.regions[place]):
            if place == "west":
                site.write("k", b"while it hangs")
            site.write("k", b"while another one hangs", OTHER)
            site.wait(OTHER)
            assert site.tree(ITS_REPLICA) == {"k": b"while another one hangs"}
            said = site.json("status")
            assert said["daemon"]["running"]
            hung = [each for each in said["buckets"] if each["bucket"].startswith(f"{place}/")]
            assert [each["online"] for each in hung] == [False]
            assert "no answer in 1 s" in hung[0]["trouble"]
            assert [each["Key"] for each in site.json("ls", OTHER)["Contents"]] == ["k"]
            assert site.json("why", f"{OTHER}/k")["Deliveries"][0]["Status"] == "COMPLETED"
            assert "no answer" in site.run("doctor").out
            for command, address in (("ls", hung[0]["bucket"]), ("head", f"{hung[0]['bucket']}/k")):
                said = site.run(command, address)
                assert said.code == 1
                assert "no answer in 1 s" in said.err
            for command in (("replication", "show", OTHER), ("role", "ls")):
                site.must(*command)
            assert site.stop() == 0
            site.start(ready=False)
            site.write("k", b"after a start", OTHER)
            site.until(lambda: site.tree(ITS_REPLICA) == {"k": b"after a start"}, "other regions are served")
            assert site.json("status")["daemon"]["running"]
            assert site.stop() == 0
        assert not os.path.ismount(site.regions[place])
        site.start()
        site.write("k", b"after")
        site.wait()
        site.in_step()
        assert "Traceback" not in site.log.read_text()


def states(pid: int) -> list[str]:
    """Of each thread of a process: D where it waits for a disk. Source: proc(5), stat."""
    return [each.read_text().rpartition(")")[2].split()[0] for each in Path(f"/proc/{pid}/task").glob("*/stat")]


def waits(pid: int) -> int:
    """How often the first thread of a process has waited for something. Source: proc(5), status."""
    found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/task/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1])


@pytest.mark.slow
@only_root
def test_a_journal_that_never_answers_keeps_no_daemon_from_ending(tmp_path: Path) -> None:
    """Section 7: a region hangs in the midst of a transaction. The process is gone once the kernel lets it go."""
    with ext4(tmp_path) as disk, Site(tmp_path, settings="") as site:
        state = disk / "state"
        shutil.move(site.root / ".fsrepl-site", state)
        (site.root / FILE).write_text(f'state = "{state}"\n' + (site.root / FILE).read_text())
        site.start()
        site.write("k", b"before")
        site.wait()
        with frozen(disk):
            site.write("k", b"while it hangs")
            site.write("other", b"while it hangs", DESTINATION)  # of both regions, one waits for the other
            assert site.daemon is not None
            daemon = site.daemon
            site.until(lambda: "D" in states(daemon.pid), "a thread hangs")
            before = waits(daemon.pid)
            site.until(lambda: waits(daemon.pid) > before + 8, "the daemon's own loop goes on")
            daemon.send_signal(signal.SIGTERM)
            site.until(lambda: "INFO stopped" in site.log.read_text(), "the daemon ends")
        assert daemon.wait(DEADLINE_S) == 0
        site.daemon = None
        site.start()
        site.wait()
        assert site.tree(SOURCE) == {"k": b"while it hangs"}
        assert site.tree(DESTINATION) == {"k": b"while it hangs", "other": b"while it hangs"}
        assert "Traceback" not in site.log.read_text()


@pytest.mark.slow
@only_root
def test_a_state_folder_that_never_answers_is_said_and_the_daemon_ends(tmp_path: Path) -> None:
    """Section 7: no command can know anything of the site, and each says so instead of hanging; SIGTERM ends the
    daemon; what was saved meanwhile is captured once the state is back."""
    state = tmp_path / "state"
    with Site(tmp_path, settings="") as site:
        (site.root / FILE).write_text(f'state = "{state}"\n' + (site.root / FILE).read_text())
        (site.root / ".fsrepl-site").rename(state)
        site.start()
        site.write("k", b"before")
        site.wait()
        with hanging(state):
            site.write("k", b"while it hangs")
            for command in (("status", "--json"), ("ls", SOURCE), ("why", f"{SOURCE}/k"), ("wait",), ("doctor",)):
                said = site.run(*command)
                assert said.code == 1
                assert "no answer" in said.err
                assert str(state) in said.err
            since_s = time.monotonic()
            assert site.stop() == 0
            assert time.monotonic() - since_s < 100, "an order of magnitude more than it may take"
        site.start()
        site.wait()
        site.in_step()
        assert site.tree(DESTINATION) == {"k": b"while it hangs"}
        assert "Traceback" not in site.log.read_text()
