"""A daemon with nothing to do sleeps."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.scraping import free_port, scrape
from tests.site import DESTINATION, Site
from tests.waiting import until

_WINDOW_S = 4.0
_WOKEN_MAX = 2
"""In such a window: less than one in two seconds."""


def _woken(pid: int) -> Counter[str]:
    """How often each thread of a process, and of its children, gave up the processor to wait, by the thread."""
    found: Counter[str] = Counter()
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[task.name] = int((task / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0])
            for child in (task / "children").read_text().split():
                found.update(_woken(int(child)))
        except FileNotFoundError:
            pass  # it has ended
    return found


@pytest.mark.slow
def test_an_idle_daemon_is_hardly_ever_woken_up(tmp_path: Path) -> None:
    """Issue 10: without work no thread and no process wakes up, but for the watchdog and a look now and then. One that
    answers scrapes waits for them."""
    port = free_port()
    with Site(tmp_path, settings=f'[metrics]\nlisten = "127.0.0.1:{port}"\n') as site:
        site.write("k", b"1")
        site.start()
        site.wait()
        assert "fsrepl" in scrape(port)
        assert site.tree(DESTINATION) == {"k": b"1"}
        assert site.daemon is not None
        pid, seen = site.daemon.pid, list[Counter[str]]()

        def sleeps() -> bool:
            before = _woken(pid)
            time.sleep(_WINDOW_S)  # what is counted are the wake-ups in it
            seen.append(_woken(pid) - before)
            return seen[-1].total() <= _WOKEN_MAX

        until(sleeps, lambda: f"wake-ups in {_WINDOW_S:.0f} s each, by thread: {seen}")
        site.write("k", b"2")
        site.until(lambda: site.tree(DESTINATION) == {"k": b"2"}, "it is awake")
