"""Frames over two descriptors: a thread that reads, a thread that writes, and an end that both notice.

A side that has nothing to send sends a sign of life now and then. Where nothing arrives for long, the other side hangs
or the network is interrupted, and the channel ends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from fsrepl.errors import Unavailable, reason
from fsrepl.link import frames
from fsrepl.link.frames import Frame

log = logging.getLogger("fsrepl")

_LENGTH = 4
_READ_BYTES = 1 << 20
_BULK_MAX_BYTES = 4 << 20
"""The most content that waits to be written; then its sender waits."""
_LOOK_S = 0.2

F = TypeVar("F")


class Ended(Unavailable):
    """The channel has ended, or ends while it is used."""


class Channel(Generic[F]):
    """See the module. on_frame and on_end are called in the thread that reads, on_end once and last."""

    def __init__(
        self, read_fd: int, write_fd: int, decoder: msgspec.msgpack.Decoder[F], on_frame: Callable[[F], None],
        on_end: Callable[[str], None], silence_s: float, name: str,
    ) -> None:  # fmt: skip
        self._read_fd, self._write_fd, self._decoder = read_fd, write_fd, decoder
        self._on_frame, self._on_end = on_frame, on_end
        self.silence_s = silence_s
        """Seconds without a byte from the other side after which it hangs."""
        self._changed = threading.Condition()
        self._lines: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        """Frames to be written: those with content in bulk are the second."""
        self._queued = [0, 0]
        self.why = ""
        """Why it has ended; empty while it is open."""
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        for fd in {read_fd, write_fd}:
            os.set_blocking(fd, False)
        self._reader = threading.Thread(target=self._read, name=f"read {name}", daemon=True)
        self._writer = threading.Thread(target=self._write, name=f"write {name}", daemon=True)

    def start(self) -> None:
        self._writer.start()  # the reader waits for its end
        self._reader.start()

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait to be written."""
        return sum(self._queued)

    def send(self, frame: Frame, *, bulk: bool = False) -> None:
        """Queue a frame. bulk: behind others, and after waiting for room. Raises Ended; msgspec's errors."""
        data = frames.encode(frame)
        with self._changed:
            while bulk and self._queued[1] > _BULK_MAX_BYTES and not self.why:
                self._changed.wait(_LOOK_S)
            if self.why:
                raise Ended(self.why)
            self._lines[bulk].append(len(data).to_bytes(_LENGTH, "big") + data)
            self._queued[bulk] += _LENGTH + len(data)
            self._changed.notify_all()

    def flush(self, within_s: float) -> None:
        """Wait until all is written, as long as there is progress to hope for."""
        until_s = time.monotonic() + within_s
        with self._changed:
            while self.queued_bytes and not self.why and time.monotonic() < until_s:
                self._changed.wait(_LOOK_S)

    def end(self, why: str) -> None:
        """End the channel; on_end is called with the first reason."""
        with self._changed:
            if self.why:
                return
            self.why = why
            os.eventfd_write(self._wake_fd, 1)
            self._changed.notify_all()

    def join(self, within_s: float) -> None:
        """Wait for both threads, and close the descriptors."""
        for thread in (self._reader, self._writer):
            if thread is not threading.current_thread() and thread.ident is not None:
                thread.join(within_s)

    # -- the threads

    def _read(self) -> None:
        buffer, needed, heard_s = bytearray(), _LENGTH, time.monotonic()
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        try:
            while not self.why:
                if not poll.poll(max(0.0, heard_s + self.silence_s - time.monotonic()) * 1000):
                    self.end(f"nothing was heard of it for {self.silence_s:g} s")
                if self.why:
                    break
                data = os.read(self._read_fd, _READ_BYTES)
                if not data:
                    self.end("it closed the connection")
                    break
                heard_s = time.monotonic()
                buffer += data
                while len(buffer) >= needed:
                    needed = self._take(buffer)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            self.end(f"the connection failed: {reason(error)}")
        except Exception:
            log.exception("an unexpected error while a frame was read")
            self.end("an unexpected error; the log has it")
        self._writer.join()
        with self._changed:
            for fd in {self._read_fd, self._write_fd, self._wake_fd}:
                os.close(fd)
        self._on_end(self.why)

    def _take(self, buffer: bytearray) -> int:
        """Take the frames that are complete; how many bytes are needed before there is another one."""
        at = 0
        with memoryview(buffer) as view:
            while len(buffer) - at >= _LENGTH:
                size = int.from_bytes(view[at : at + _LENGTH], "big")
                if size > frames.FRAME_MAX_BYTES:
                    raise ValueError(f"a frame of {size:,} bytes")
                if len(buffer) - at - _LENGTH < size:
                    break
                frame = self._decoder.decode(view[at + _LENGTH : at + _LENGTH + size])
                at += _LENGTH + size
                if not isinstance(frame, frames.Alive):
                    self._on_frame(frame)
            needed = _LENGTH + size if len(buffer) - at >= _LENGTH else _LENGTH
        del buffer[:at]
        return needed

    def _write(self) -> None:
        try:
            bulk = False
            while (data := self._next(bulk=bulk)) is not None:
                bulk = not bulk  # both kinds take turns
                self._write_out(data)
        except OSError as error:
            closed = error.errno == errno.EPIPE
            self.end("it closed the connection" if closed else f"the connection failed: {reason(error)}")

    def _next(self, *, bulk: bool) -> bytes | None:
        """The next bytes to write; None at the end. bulk: the kind whose turn it is."""
        until_s = time.monotonic() + self.silence_s / 4
        with self._changed:
            while not self.why:
                for kind in (bulk, not bulk):
                    if self._lines[kind]:
                        data = self._lines[kind].popleft()
                        self._queued[kind] -= len(data)
                        self._changed.notify_all()
                        return data
                if (left_s := until_s - time.monotonic()) <= 0:
                    data = frames.encode(frames.Alive())
                    return len(data).to_bytes(_LENGTH, "big") + data
                self._changed.wait(left_s)
        return None

    def _write_out(self, data: bytes) -> None:
        poll = select.poll()
        poll.register(self._write_fd, select.POLLOUT)
        view = memoryview(data)
        while view and not self.why:
            if poll.poll(_LOOK_S * 1000):
                with contextlib.suppress(BlockingIOError):
                    view = view[os.write(self._write_fd, view) :]


def read_line(
    fd: int, within_s: float, wanted: Callable[[bytes], bool], max_bytes: int = 1 << 16
) -> tuple[bytes, bytes]:
    """The first line that is wanted, and the text before it, such as messages of a login shell.

    The line is empty where there is none: at the end of the stream, after max_bytes, or in time. Reads nothing behind
    the line.
    """
    until_s, before, line = time.monotonic() + within_s, bytearray(), bytearray()
    os.set_blocking(fd, False)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while len(before) < max_bytes:
        if not poll.poll(max(0.0, until_s - time.monotonic()) * 1000):
            break
        try:
            byte = os.read(fd, 1)
        except BlockingIOError:
            continue
        except OSError:
            break
        if not byte:
            break
        line += byte
        if byte == b"\n":
            if wanted(bytes(line)):
                return bytes(line), bytes(before)
            before += line
            line.clear()
    return b"", bytes(before + line)
