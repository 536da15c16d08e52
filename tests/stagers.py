"""Stagers for worlds, which run in one thread: one that carries out its orders at once, and the real one, ready."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
from msgspec import Struct

from fsrepl.capture.in_stager import HELD_BYTES
from fsrepl.daemon import stager_process
from fsrepl.region import stager
from fsrepl.region.recent import Contents
from fsrepl.region.stager import Order, Pending, Stager
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs
from fsrepl.storage.lent import lend
from tests.world import World


class StagerHere(Stager):
    """A stager without a process: what it does is done here, with a world's own filesystem.

    done: the orders that were carried out, each with the number of its files. refuses: kinds of orders that it does
    not carry out, as one that is lost.
    """

    def __init__(self, fs: Fs) -> None:
        super().__init__([], contextlib.nullcontext)
        self._fs, self._held = fs, Contents(HELD_BYTES)
        self.done: list[tuple[str, int]] = []
        self.refuses: set[str] = set()

    def begin(self, what: str, order: Struct, buckets: Sequence[OpenBucket], number: int) -> Pending | None:
        if what in self.refuses:
            return None
        sent = stager.encode(Order(what, tuple(lend(bucket) for bucket in buckets), stager.encode(order)))
        received = msgspec.msgpack.decode(sent, type=Order)
        fds = [os.dup(bucket.fd) for bucket in buckets]
        pending = Pending(self, None)
        pending.settle(stager_process.carry_out(received, fds, self._fs, self._held))
        self.done.append((what, number))
        return pending


def beside_first(found: Stager, what: str, change: Callable[[], object], *, is_late: bool) -> list[str]:
    """Have something changed just before, or just after, the first order of a kind; the list has an entry then."""
    begin, changed = found.begin, list[str]()

    def changing(asked: str, *rest: object) -> Pending | None:
        is_first = asked == what and not changed
        if is_first:
            changed.append(asked)
        if is_first and not is_late:
            change()
        pending = begin(asked, *rest)  # type: ignore[arg-type]
        if is_first and is_late:
            change()
        return pending

    found.begin = changing  # type: ignore[method-assign]
    return changed


@contextlib.contextmanager
def real(world: World) -> Iterator[Stager]:
    """The stager of a daemon, for a world, once it is ready."""
    found = world.engine.stager = Stager(stager.command("fsrepl.daemon.stager_process:main"), contextlib.nullcontext)
    try:
        start(found)
        yield found
    finally:
        found.end()
        world.engine.stager = None


def start(found: Stager) -> int:
    """Start a stager, and wait until it is ready; its pid."""
    while not found.is_ready(1 << 20):
        time.sleep(0.01)
    return found.pid
