"""The connection to an agent: how it is made, what is said where it cannot be, and how it ends."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

import fsrepl
from fsrepl.errors import Away, FsreplError, Unavailable
from fsrepl.link import frames
from fsrepl.link.channel import Channel, Ended, read_line
from fsrepl.link.host import Host
from fsrepl.link.ssh import command_line
from fsrepl.model import blockmap
from fsrepl.model.blockmap import BlockMap
from fsrepl.model.version import DeliveryRecord, Origin, Posix, Rights, Status, Version
from fsrepl.settings import Capture, HostSettings, ReplicationSettings, Safety, Scrub, kinds
from tests.waiting import DEADLINE_S, until

HELLO = frames.Hello(
    "site", "pc:/fsrepl.toml", "eu", "/srv/eu", "region", False, False, False, 2, "auto", Capture(),
    ReplicationSettings(), Scrub(), Safety(),
)  # fmt: skip


def settings(**more: object) -> HostSettings:
    return replace(HostSettings("eu", kinds.place("ssh://me@host:2222/srv/eu")), **more)  # type: ignore[arg-type]


def script(path: Path, text: str) -> tuple[str, ...]:
    """A program that takes the place of ssh."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (str(path),)


def test_ssh_is_called_with_the_users_options_and_asks_nothing() -> None:
    """OpenSSH's own client, keys and configuration; no words of ours become its options."""
    quiet = ["-T", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes"]
    assert command_line(settings()) == ["ssh", *quiet, "-p", "2222", "--", "me@host", "fsrepl agent"]
    found = replace(settings(), place=kinds.place("ssh://host/srv/eu"), ssh=("ssh", "-i", "key"), compress=True)
    assert command_line(found) == ["ssh", "-i", "key", *quiet, "-C", "--", "host", "fsrepl agent"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 'sh: 1: fsrepl: not found' >&2; exit 127", "the shell of host does not find 'fsrepl'; install fsrepl"),
        ("echo 'me@host: Permission denied (publickey).' >&2; exit 255", "ssh: me@host: Permission denied"),
        ("echo 'ssh: connect to host host port 22: No route to host' >&2; exit 255", "/eu: ssh: connect to host"),
        ("echo welcome to host; head -n 1", "it printed 'welcome to host"),
        (f"echo fsrepl-agent {frames.PROTOCOL + 1} 9.9; cat > /dev/null",
         f"fsrepl 9.9 there speaks protocol {frames.PROTOCOL + 1}, and fsrepl {fsrepl.__version__} here protocol "
         f"{frames.PROTOCOL}; install the same version on both machines"),
        (f"echo fsrepl-agent {frames.PROTOCOL} 9.9; exit 3", "it closed the connection"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """The region is offline like an unplugged disk, and the reason names what to do."""
    monkeypatch.setattr("fsrepl.link.host.ANSWER_S", 2.0)
    host = Host(settings(ssh=script(tmp_path / "ssh", text), silence_s=2), lambda _: HELLO)
    with pytest.raises(Unavailable) as caught:
        host.connect()
    assert isinstance(caught.value, Away)
    assert str(caught.value).startswith("region eu is offline: ssh://me@host:2222/srv/eu: ")
    assert message in str(caught.value)


def test_a_program_that_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(FsreplError, match="no-such-ssh cannot be run: no such file or directory"):
        Host(settings(ssh=(str(tmp_path / "no-such-ssh"),)), lambda _: HELLO).connect()


def test_a_daemon_that_ends_waits_for_no_host(tmp_path: Path) -> None:
    """A stop takes seconds, also while ssh tries to reach a machine that is gone."""
    host = Host(settings(ssh=script(tmp_path / "ssh", "exec sleep 600"), silence_s=600), lambda _: HELLO)
    ended: list[str] = []

    def connect() -> None:
        try:
            host.connect()
        except FsreplError as error:
            ended.append(str(error))

    thread = threading.Thread(target=connect)
    thread.start()
    until(lambda: host._opening is not None and host._opening._process is not None)
    host.end()
    thread.join(DEADLINE_S)
    assert ended
    with pytest.raises(FsreplError, match="the site ends"):
        host.connect()


def test_words_of_a_login_shell_before_the_greeting_do_no_harm() -> None:
    """Only the greeting itself is read: what follows it belongs to the frames."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"Welcome!\nmotd\n" + frames.greeting(frames.AGENT, "1.0") + b"frames")
    line, before = read_line(read_fd, 5.0, lambda line: frames.read_greeting(frames.AGENT, line) is not None)
    assert (frames.read_greeting(frames.AGENT, line), before) == ((frames.PROTOCOL, "1.0"), b"Welcome!\nmotd\n")
    assert os.read(read_fd, 100) == b"frames"
    os.close(read_fd)
    os.close(write_fd)


# -- frames


VERSION = Version(
    b"d/k\xff", "01M8KM70V38DTGT8JA7ZS9GJ0A", 5, False, 3, b"x" * 32, Origin.ADOPTED, "", "GLACIER_IR",
    Posix(0o640, 1, 2, 3, b"acl"),
    {"user.\udcff": b"1"}, {"tag\udcfe": "\udcfd"},
    {"eu/dst": DeliveryRecord("r", Status.PENDING, owner="Destination")},
    {"acl": "5 us/src"}, taken="open", link=(b"d/other", "01M8KM70V38DTGT8JA7ZS9GJ0B"),
)  # fmt: skip


def test_a_version_crosses_unchanged() -> None:
    """G5: every field that travels, names that are not UTF-8 among them."""
    item = frames.pack(VERSION, "eu/dst", with_tags=False, data=b"abc")
    frame = frames.Deliver(
        "us/src", "eu/dst", [item], frames.pack_rights({b"d": Rights(0o750, 1, 2, None, b"d")}), {b"d/": (1, "x")}
    )
    (found,) = [frames.of_site.decode(frames.encode(frame))]
    assert found == frame
    assert isinstance(found, frames.Deliver)
    assert frames.unpack(found.items[0], "eu/dst") == VERSION
    assert frames.unpack_rights(found.directories) == {b"d": Rights(0o750, 1, 2, None, b"d")}
    assert frames.of_site.decode(frames.encode(HELLO)) == HELLO


def test_the_map_of_the_largest_file_fits_into_a_frame() -> None:
    """G7: one that did not would end each connection over which it is sent. Source: ext4(5), 16 TiB."""
    size = 16 << 40
    blocks = size // (blockmap.average_of(size) // 2)  # none is shorter, but for the last one and before holes
    record = len(BlockMap(b"", 0, 0, bytes(40)).encode()) - len(BlockMap(b"", 0, 0, b"").encode())
    assert record == 40
    assert blocks * record < frames.FRAME_MAX_BYTES


@pytest.mark.parametrize(
    "change",
    [
        {"key": b"../x"},
        {"key": b"a//b"},
        {"key": b".fsrepl/x"},
        {"key": b""},
        {"id": "../x"},
        {"id": ""},
        {"digest": b"x"},
    ],
    ids=str,
)
def test_no_name_leads_out_of_a_bucket(change: dict[str, Any]) -> None:
    """SECURITY: whatever the other side sends."""
    item = frames.pack(VERSION, "eu/dst", with_tags=True, data=b"")
    with pytest.raises(ValueError, match="cannot be stored"):
        frames.unpack(msgspec.structs.replace(item, **change), "eu/dst")


# -- the channel


class Side:
    """One end of a channel, and what it heard."""

    def __init__(self, end: socket.socket, silence_s: float = 30.0) -> None:
        self.heard: list[frames.FromSite] = []
        self.ended: list[str] = []
        fd = end.detach()
        self.channel = Channel(fd, fd, frames.of_site, self.heard.append, self.ended.append, silence_s, "test")


@pytest.fixture
def pair() -> Iterator[tuple[Side, Side]]:
    one, other = map(Side, socket.socketpair())
    yield one, other
    for side in (one, other):
        side.channel.end("the test is over")
        side.channel.join(10)


def test_frames_arrive_in_order_and_the_end_is_noticed_once(pair: tuple[Side, Side]) -> None:
    one, other = pair
    for side in pair:
        side.channel.start()
    for ticket in range(1000):
        one.channel.send(frames.Blocks(ticket, bytes(ticket)))
    until(lambda: len(other.heard) == 1000)
    assert other.heard == [frames.Blocks(ticket, bytes(ticket)) for ticket in range(1000)]
    one.channel.end("enough")
    until(lambda: one.ended and other.ended)
    assert (one.ended, other.ended) == (["enough"], ["it closed the connection"])
    with pytest.raises(Ended, match="enough"):
        one.channel.send(frames.Alive())


def test_content_in_bulk_holds_no_other_frame_up(pair: tuple[Side, Side]) -> None:
    """Memory is bounded: whoever sends content waits for room, and small frames pass."""
    one, other = pair
    one.channel.start()
    chunk = frames.Chunk(0, 0, 1 << 20, bytes(1 << 20))
    for _ in range(5):
        one.channel.send(chunk, bulk=True)
    one.channel.send(frames.Blocks(1, b"small"))
    other.channel.start()
    until(lambda: len(other.heard) == 6)
    assert other.heard.index(frames.Blocks(1, b"small")) <= 3


def test_a_side_that_says_nothing_is_given_up_and_one_that_is_idle_is_not() -> None:
    """A connection that hangs ends; keep-alives tell it from one without work."""
    one, other = socket.socketpair()
    mine = Side(one, silence_s=0.4)
    mine.channel.start()
    until(lambda: mine.ended)
    assert mine.ended == ["nothing was heard of it for 0.4 s"]
    other.close()
    left, right = (Side(end, silence_s=0.5) for end in socket.socketpair())
    for side in (left, right):
        side.channel.start()
    time.sleep(1.2)  # more than twice the silence: only what is sent in it keeps the channel open
    assert (left.ended, right.ended) == ([], [])
    for side in (left, right):
        side.channel.end("the test is over")
        side.channel.join(10)


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\4junk", b"\0\0\0\1\x90"])
def test_what_is_no_frame_ends_the_connection(data: bytes) -> None:
    """Bad input is an outage with a reason, and no traceback."""
    one, other = socket.socketpair()
    side = Side(one)
    side.channel.start()
    other.sendall(data)
    until(lambda: side.ended)
    assert side.ended[0].startswith("the connection failed: ")
    other.close()
