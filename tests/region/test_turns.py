"""The lock of the regions' threads: one at a time, others while one waits for a disk, and a short wait for a thread
that hangs."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from fsrepl.region import run_lock
from fsrepl.region.run_lock import RunLock
from tests.waiting import DEADLINE_S


def test_one_at_a_time() -> None:
    """Section 7: two regions with work do not compete for the interpreter."""
    mine, inside, most = RunLock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(2000):
            with mine.held():
                inside += 1
                most = max(most, inside)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work) for _ in range(4)]:
            future.result()
    assert most == 1


def test_others_go_on_while_one_waits_for_a_disk() -> None:
    """Section 7: a sync delays no other thread; `aside` without the lock does nothing."""
    mine = RunLock()
    with mine.released():
        pass
    came = threading.Event()

    def other() -> None:
        with mine.held():
            came.set()

    with mine.held():
        thread = threading.Thread(target=other)
        thread.start()
        with mine.released():
            assert came.wait(DEADLINE_S)
        thread.join(DEADLINE_S)
    with mine.held():
        pass


def test_a_thread_that_hangs_delays_the_others_once() -> None:
    """Section 7: for a moment, and not each time they work."""
    mine, may_end, hangs = RunLock(), threading.Event(), threading.Event()

    def hang() -> None:
        with mine.held():
            hangs.set()
            assert may_end.wait(DEADLINE_S)

    thread = threading.Thread(target=hang)
    thread.start()
    assert hangs.wait(DEADLINE_S)
    waited = 0
    for _ in range(20):
        before = mine._lock
        with mine.held():
            waited += mine._lock is not before
    assert waited == 1
    may_end.set()
    thread.join(DEADLINE_S)
    with mine.held(), mine.released():
        pass
    assert run_lock._PATIENCE_S < 1
