"""The blocks of a file that is being captured, for those who follow the capture."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from fsrepl.model import blockmap
from fsrepl.model.blockmap import Block, Cutter


class ComingBlocks:
    """The blocks that a capture has cut so far, from the start of the file. The capture adds to them and waits for
    nobody; others wait for more of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._packed = bytearray()
        self._is_over = False
        self.average = 0
        """The average size of the blocks, once there are some."""

    def add(self, cutter: Cutter) -> None:
        """Add the blocks that were cut since the last time."""
        with self._changed:
            self.average = cutter.average
            if new := cutter.cut_after(len(self._packed)):
                self._packed += new
                self._changed.notify_all()

    def end(self) -> None:
        """No more blocks come: all of them are there, or the capture was given up."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def wake(self) -> None:
        """Have those who wait for more ask whether they still want it."""
        with self._changed:
            self._changed.notify_all()

    def parts(self, least_bytes: int, is_wanted: Callable[[], bool]) -> Iterator[list[Block]]:
        """The blocks in parts of a size in bytes at least, each as soon as it is there; the last one may be smaller.
        Ends early where they are not wanted any more."""
        part: list[Block] = []
        for block in self._each(is_wanted):
            part.append(block)
            if block.end - part[0].at >= least_bytes:
                yield part
                part = []
        if part and is_wanted():
            yield part

    def _each(self, is_wanted: Callable[[], bool]) -> Iterator[Block]:
        at = read = 0
        while is_wanted():
            with self._changed:
                self._changed.wait_for(lambda: self._is_over or len(self._packed) > read or not is_wanted())  # noqa: B023
                new = bytes(self._packed[read:])
            if not new:
                return
            read += len(new)
            for block in blockmap.unpacked(new, at):
                if not is_wanted():
                    return
                yield block
            at = block.end
