"""The daemon's second process, the stager, in bursts of a real daemon."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.site import Site

FILES = 400


def burst(site: Site, folder: str) -> None:
    """Files that come all at once: most of them are one batch."""
    aside = site.home / folder
    aside.mkdir()
    for i in range(FILES):
        (aside / f"{i}").write_bytes(f"{folder} {i}".encode())
    aside.rename(site.path(folder))


def stagers(pid: int) -> list[int]:
    """The processes that a daemon has started."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has just ended
            found += [int(each) for each in (thread / "children").read_text().split()]
    return found


def is_ready(pid: int) -> bool:
    """Whether a stager ignores the signals that end its daemon. Source: proc_pid_status(5)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.split("SigIgn:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.slow
def test_a_burst_survives_the_end_of_the_stager_and_of_the_daemon(tmp_path: Path) -> None:
    """G7: kill -9 of the stager, and of the daemon beside it: nothing is lost or doubled. A stager ends with its
    daemon, however that ends, and another one is started."""
    with Site(tmp_path) as site:
        site.start()
        assert site.daemon is not None
        pid = site.daemon.pid
        assert not stagers(pid)
        burst(site, "a")
        (first,) = site.until(lambda: stagers(pid), "a burst starts the stager")
        burst(site, "b")
        os.kill(first, signal.SIGKILL)
        burst(site, "c")
        site.wait()
        site.in_step()

        def again() -> list[int]:
            burst(site, f"more {len(list(site.path().iterdir()))}")
            site.wait()
            return [each for each in stagers(pid) if each != first]

        (second,) = site.until(again, "another stager is started")
        burst(site, "d")
        site.kill()
        site.until(lambda: not Path(f"/proc/{second}").exists(), "the stager ends with the daemon")
        site.start()
        burst(site, "e")
        pid = site.daemon.pid
        (third,) = site.until(lambda: stagers(pid), "the next daemon has a stager of its own")
        site.until(lambda: is_ready(third), "it is ready")
        os.kill(third, signal.SIGTERM)  # systemd sends it to each process of the unit
        burst(site, "f")
        site.wait()
        site.in_step()
        assert stagers(pid) == [third]
        assert site.stop() == 0
        assert not Path(f"/proc/{third}").exists()
        assert "Traceback" not in site.log.read_text()
