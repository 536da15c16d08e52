"""events.jsonl: whole lines, each event once, two files at most, and a reader that misses none."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
from pathlib import Path

import pytest

from fsrepl.errors import Refused
from fsrepl.s3.events import Record
from fsrepl.storage.eventlog import EventLog, Reader
from fsrepl.storage.fs import Fs
from tests.doubles import FailingFs


def record(number: int) -> Record:
    return {"n": number, "responseElements": {"x-amz-request-id": f"{number:016X}"}}


def open_log(state: Path, *, max_bytes: int = 1 << 20, fs: Fs | None = None) -> EventLog:
    return EventLog(fs or Fs(), str(state), max_bytes)


def numbers(reader: Reader) -> list[int]:
    return [json.loads(line)["n"] for line in reader.lines()]


def everything(state: Path) -> list[int]:
    with Reader(str(state)) as reader:
        return numbers(reader)


def test_an_event_is_a_line_and_is_written_once(tmp_path: Path) -> None:
    """3.4: an event that was written is not written again, neither by this process nor by the next."""
    log = open_log(tmp_path)
    assert log.append([record(1), record(2), record(1)]) == 2
    assert log.append([record(2), record(3)]) == 1
    assert open_log(tmp_path).append([record(1), record(3), record(4)]) == 1
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [1, 2, 3, 4]
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def test_it_starts_anew_at_its_size(tmp_path: Path) -> None:
    """Settings: events.jsonl is rotated; neither file is larger than max_bytes, and each event in them is there
    once."""
    log = open_log(tmp_path, max_bytes=300)
    for number in range(20):
        log.append([record(number)])
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"events.jsonl", "events.jsonl.1"}
    assert max(sizes.values()) <= 300
    kept = everything(tmp_path)
    assert kept == list(range(20 - len(kept), 20))
    assert open_log(tmp_path, max_bytes=300).append(map(record, kept)) == 0


def test_a_batch_over_several_files(tmp_path: Path) -> None:
    """A batch larger than a file is written whole, in order; an event larger than a file has one of its own."""
    log = open_log(tmp_path, max_bytes=300)
    with Reader(str(tmp_path)) as reader:
        log.append(map(record, range(6)))
        assert numbers(reader) == list(range(6))
        log.append([{**record(7), "text": "x" * 1000}])
        assert numbers(reader) == [7]


def test_a_reader_follows_through_rotations(tmp_path: Path) -> None:
    """`events -f`: everything once and in order, whenever it reads, however the files rotate."""
    chance = random.Random(7)
    log = open_log(tmp_path, max_bytes=700)
    with Reader(str(tmp_path)) as reader:
        seen: list[int] = []
        for number in range(500):
            log.append([record(number)])
            if chance.random() < 0.3:
                seen += numbers(reader)
        assert seen + numbers(reader) == list(range(500))


def test_a_reader_that_fell_behind_reads_what_is_left(tmp_path: Path) -> None:
    """The files are a bounded queue: a late reader gets the events in them, in order and without repeats."""
    log = open_log(tmp_path, max_bytes=300)
    with Reader(str(tmp_path)) as reader:
        log.append([record(0)])
        assert numbers(reader) == [0]
        for number in range(1, 40):
            log.append([record(number)])
        seen = numbers(reader)
        kept = everything(tmp_path)
        assert seen == sorted(set(seen))
        assert seen[-len(kept) :] == kept
        assert kept[-1] == 39


def test_a_removed_or_emptied_file(tmp_path: Path) -> None:
    """A user may remove or empty events.jsonl: its reader continues with new events, and repeats nothing."""
    log = open_log(tmp_path, max_bytes=300)
    for number in range(5):
        log.append([record(number)])
    with Reader(str(tmp_path)) as reader:
        assert numbers(reader)[-1] == 4
        (tmp_path / "events.jsonl").unlink()
        assert numbers(reader) == []
        log.append([record(5)])
        assert numbers(reader) == [5]
        os.truncate(tmp_path / "events.jsonl", 0)
        assert numbers(reader) == []
        log.append([record(6)])
        assert numbers(reader) == [6]


@pytest.mark.parametrize(
    "torn", [b"{", b'{"n":9,"responseElements":{"x-amz-request-id":"0000000000000009"}', b"[" * 100_000]
)
def test_half_a_line_after_a_power_cut_is_skipped(tmp_path: Path, torn: bytes) -> None:
    """G7: half a line is no event: readers skip it, and the event is written when it comes again."""
    (tmp_path / "events.jsonl").write_bytes(torn)
    assert everything(tmp_path) == []
    assert open_log(tmp_path).append([record(9)]) == 1
    assert everything(tmp_path) == [9]


@pytest.mark.parametrize("call", range(5))
def test_a_full_disk(tmp_path: Path, call: int) -> None:
    """G7: whichever change fails, no half event is read, and the same events can be written when there is room
    again."""
    open_log(tmp_path).append([record(1), record(2)])
    fs = FailingFs(call, errno.ENOSPC)
    log = open_log(tmp_path, fs=fs, max_bytes=200)
    with contextlib.suppress(OSError):
        log.append([record(3), record(4), record(5)])
    log.append([record(3), record(4), record(5)])
    found = everything(tmp_path)
    assert found[-3:] == [3, 4, 5]
    assert found == sorted(found)


def test_nothing_is_there_yet(tmp_path: Path) -> None:
    """A site without events, or without a state folder: there is nothing to read, which is no error."""
    assert everything(tmp_path) == everything(tmp_path / "missing") == []
    assert open_log(tmp_path).last_id() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_the_state_of_another_user(tmp_path: Path) -> None:
    """Section 5: a file that may not be read is reported in a sentence."""
    open_log(tmp_path).append([record(1)])
    os.chmod(tmp_path, 0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(Refused, match=r"^AccessDenied: "):
            everything(tmp_path)
    finally:
        os.seteuid(0)
