"""What threads free serves all of them: the memory of the daemon does not grow with their number."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

_HEAPS = """
import ctypes, sys, threading
from fsrepl.daemon import memory
if sys.argv[1] == "prepared":
    memory.prepare()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
all_are_there = threading.Barrier(8)

def allocate():
    all_are_there.wait()
    ctypes.CDLL(None).malloc(ctypes.c_size_t(10_000))
    all_are_there.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stdout = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, stdout)
libc.fclose(stdout)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="a C library without heaps of threads")
def test_all_threads_share_one_heap() -> None:
    """A site of five destinations has twenty threads. With a heap for each of sixteen of them it held twice the memory
    that it used."""
    plain, prepared = (
        subprocess.run(
            [sys.executable, "-c", _HEAPS, how], check=True, capture_output=True, text=True
        ).stdout.count("<heap ")
        for how in ("plain", "prepared")
    )  # fmt: skip
    assert plain > 1
    assert prepared == 1
