"""The log of a daemon whose reader is slow, or gone: nothing else waits for it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.daemon import log_output
from fsrepl.daemon.log_output import LogOutput
from tests import program
from tests.scraping import free_port, scrape
from tests.site import Site
from tests.waiting import until


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):  # closed by the test
            os.close(end)


def _log(output: LogOutput, text: str) -> None:
    output.handle(logging.LogRecord("fsrepl", logging.INFO, "", 0, text, None, None))


def test_lines_are_written_in_their_order(pipe: tuple[int, int]) -> None:
    """Also those of several threads, each whole, and all of them before the process ends."""
    read, write = pipe
    output = LogOutput(write)
    threads = [threading.Thread(target=lambda n=n: [_log(output, f"{n} {i}") for i in range(100)]) for n in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    output.flush()
    lines = [line.split()[-2:] for line in os.read(read, 1 << 16).decode().splitlines()]
    for number in range(3):
        assert [each for each in lines if each[0] == str(number)] == [[str(number), str(i)] for i in range(100)]


def test_a_full_pipe_delays_nobody_and_what_is_dropped_is_said(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines up to the limit follow when it is read again, with the number of the rest."""
    monkeypatch.setattr(log_output, "_WAITING_MAX_BYTES", 100_000)
    read, write = pipe
    output = LogOutput(write)
    for number in range(5000):
        _log(output, f"{number:050}")
    assert 0 < output.dropped < 5000
    os.set_blocking(read, False)
    text = bytearray()

    def is_complete() -> bool:
        with contextlib.suppress(BlockingIOError):
            text.extend(os.read(read, 1 << 16))
        said = [int(number) for number in re.findall(rb"log: (\d+) lines were dropped", text)]
        return sum(said) == output.dropped and text.count(b"\n") == 5000 - output.dropped + len(said)

    until(is_complete, "the lines, and the number of the dropped ones")


def test_a_closed_pipe_is_no_error(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    output = LogOutput(write)
    for number in range(10):
        _log(output, str(number))
    output.flush()
    until(lambda: output.dropped == 10, "ten lines dropped")


def test_closed_standard_streams_are_opened(tmp_path: Path) -> None:
    """Else the next file that the daemon opens would get its log."""
    code = (
        "import os; from fsrepl.daemon import main; [os.close(fd) for fd in (0, 2)]; main.open_standard_streams(); "
        "os._exit(os.open('.', os.O_RDONLY))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, close_fds=True, stdout=subprocess.DEVNULL)
    assert ran.returncode >= 3


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["sleeps", "is-gone"])
def test_a_daemon_whose_log_nobody_reads_goes_on(tmp_path: Path, reader: str) -> None:
    """Section 6: replication goes on beyond the 64 KiB of a pipe, and so does the stop; a metric counts the lines."""
    port = free_port()
    with Site(tmp_path, settings=f'[metrics]\nlisten = "127.0.0.1:{port}"') as site:
        command = program.new_interpreter("--site", str(site.root), "-v", "daemon")
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert daemon.stderr is not None
        if reader == "is-gone":
            daemon.stderr.close()
        try:
            site.daemon = daemon
            site.until(site._is_ready, "the daemon is ready")
            for number in range(300):
                site.write(f"d{number % 7}/{'n' * 100}{number}", b"%d" % number)
            site.wait()
            site.in_step()
            if reader == "is-gone":
                dropped = re.search(r"^fsrepl_log_lines_dropped\S* ([1-9]\d*)", scrape(port), re.MULTILINE)
                assert dropped is not None
            assert site.stop() == 0
        finally:
            daemon.kill()
            if not daemon.stderr.closed:
                daemon.stderr.close()
