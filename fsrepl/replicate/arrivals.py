"""Deliveries that another machine has sent to an agent, as their source: see source.py.

A version's record arrives with its delivery, and small content with it. Of larger content the parts that are missing
here are asked for, several ahead of the one that is written, so that a long way costs no more than its bandwidth.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from msgspec import Struct

from fsrepl.errors import Failed, Unavailable
from fsrepl.link import frames
from fsrepl.link.frames import At, Frame
from fsrepl.model import blockmap, digests
from fsrepl.model.blockmap import BlockMap
from fsrepl.model.delta import Span
from fsrepl.model.version import Rights, Version
from fsrepl.region.limits import Progress
from fsrepl.replicate import decide
from fsrepl.replicate.draft import Draft, LargeDraft
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery

LACKS_CONTENT = "its content is sent once more"
_PIECE_BYTES = 4 << 20
_AHEAD_PIECES, _AHEAD_BYTES = 256, 16 << 20
"""The most pieces, and the most bytes, that are asked for at once."""
_LOOK_S = 0.5
_ZEROS_BYTES = 1 << 20

Sent = frames.Blocks | frames.Chunk | frames.End | frames.Broken


class Arrival(Struct, frozen=True):
    """A version that was sent. data: its content, where that came with it."""

    version: Version
    with_tags: bool
    data: bytes | None


class Incoming:
    """The deliveries that were sent and are not made yet, and the content that is asked for. Used by all threads."""

    def __init__(self, send: Callable[[Frame], None]) -> None:
        """send: raises Unavailable once the connection has ended."""
        self.send = send
        self.arrivals: dict[At, Arrival] = {}
        self._rights: dict[str, dict[bytes, Rights]] = {}
        self._orders: dict[str, dict[bytes, tuple[int, str]]] = {}
        self._pending: set[At] = set()
        self._tickets = itertools.count()
        self._waiting: dict[int, queue.SimpleQueue[Sent]] = {}
        self.why = ""
        """Why the connection has ended; empty while it is open."""

    def add(self, frame: frames.Deliver) -> list[Version]:
        """Accept the deliveries of a frame; their versions, each with its one delivery."""
        if not self.arrivals:
            for each in (self._rights, self._orders, self._pending):
                each.clear()
        self._rights.setdefault(frame.source, {}).update(frames.unpack_rights(frame.directories))
        self._orders.setdefault(frame.source, {}).update(frame.orders)
        found = []
        for item in frame.items:
            version = frames.unpack(item, frame.destination)
            at = (frame.source, frame.destination, version.key, version.id)
            self.arrivals[at] = Arrival(version, item.with_tags, item.data)
            if version.link is not None and item.waits_for_link:
                self._pending.add((frame.source, frame.destination, *version.link))
            found.append(version)
        return found

    def forget(self, delivery: Delivery) -> At | None:
        """Forget a delivery that has ended, or was given back; which it was, None where it was not there."""
        at = delivery.source, delivery.destination, delivery.key, delivery.id
        return at if self.arrivals.pop(at, None) is not None else None

    def forget_all(self) -> list[At]:
        """Forget all deliveries; which they were."""
        found = list(self.arrivals)
        return [at for at in found if self.arrivals.pop(at, None) is not None]

    def rights(self, source: str, path: bytes) -> Rights | None:
        """The permissions of a directory at a source, as they were sent with its files."""
        return self._rights.get(source, {}).get(path)

    def order(self, source: str, key: bytes) -> tuple[int, str] | None:
        """The order of a directory's current version at a source, as it was sent with its files."""
        return self._orders.get(source, {}).get(key)

    def is_pending(self, at: At) -> bool:
        """Whether a version of which another one is to be another name was still to be delivered when that was sent."""
        return at in self._pending

    # -- content that is asked for

    def answer(self, frame: Sent) -> None:
        if (waiting := self._waiting.get(frame.ticket)) is not None:
            waiting.put(frame)

    @contextlib.contextmanager
    def asking(self, want: Callable[[int], Frame]) -> Iterator[Callable[[], Sent]]:
        """Ask for content; what is given waits for the next part of the answer. want: the question, for a ticket."""
        ticket, answers = next(self._tickets), queue.SimpleQueue[Sent]()
        self._waiting[ticket] = answers
        try:
            self.send(want(ticket))
            yield lambda: self._next(answers)
        finally:
            del self._waiting[ticket]

    def _next(self, answers: queue.SimpleQueue[Sent]) -> Sent:
        while True:
            with contextlib.suppress(queue.Empty):
                return answers.get(timeout=_LOOK_S)
            if self.why:
                raise Unavailable(self.why)


class ArrivedSource:
    """See source.Source. What only the sender can know, it has decided before it sent a version."""

    replaces_records = True

    def __init__(self, incoming: Incoming, address: str, destination: str, released: Callable[[], Any]) -> None:
        self._incoming, self._address, self._destination, self._released = incoming, address, destination, released
        self._arrivals = incoming.arrivals

    @property
    def address(self) -> str:
        return self._address

    @property
    def here(self) -> OpenBucket | None:
        return None

    def version(self, delivery: Delivery) -> Version | None:
        arrival = self._arrivals.get((self._address, self._destination, delivery.key, delivery.id))
        return arrival.version if arrival is not None else None

    def facts(
        self, delivery: Delivery, version: Version | None, there: Callable[[Version], dict[str, Any]]
    ) -> decide.Facts:
        arrival = self._arrivals.get((self._address, self._destination, delivery.key, delivery.id))
        if arrival is None or version is None:
            return decide.Facts(source_there=False)
        recorded = version.deliveries[delivery.destination]
        return decide.Facts(with_tags=arrival.with_tags, edit=recorded.edit, **there(version))

    def is_pending(self, key: bytes, version_id: str, destination: str) -> bool:
        return self._incoming.is_pending((self._address, destination, key, version_id))

    def rights(self, path: bytes) -> Rights | None:
        return self._incoming.rights(self._address, path)

    def order(self, key: bytes) -> tuple[int, str] | None:
        return self._incoming.order(self._address, key)

    def content(self, version: Version, *, just_stored: bool = False) -> ArrivedContent:
        at = self._address, self._destination, version.key, version.id
        arrival = self._arrivals.get(at)
        if arrival is None:
            raise Unavailable("it was given back meanwhile")
        return ArrivedContent(self._incoming, at, arrival)

    def map_of(self, digest: bytes) -> BlockMap | None:
        return None

    def released(self) -> AbstractContextManager[None]:
        found: AbstractContextManager[None] = self._released()
        return found


class ArrivedContent:
    """See source.Content."""

    def __init__(self, incoming: Incoming, at: At, arrival: Arrival) -> None:
        self._incoming, self._at, self._version, self._data = incoming, at, arrival.version, arrival.data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass  # nothing is open

    def copy_to(self, draft: Draft, progress: Progress | None) -> None:
        if self._data is None and self._version.size:
            raise Unavailable(LACKS_CONTENT)
        draft.write(self._data or b"")

    def is_whole(self, on_read: Callable[[int], None] | None = None) -> bool:
        if self._data is not None or not self._version.size:
            return digests.of(self._data or b"") == self._version.digest
        return self._blocks(afresh=True) is not None

    def blocks(self) -> BlockMap | None:
        return self._blocks(afresh=False)

    def _blocks(self, *, afresh: bool) -> BlockMap | None:
        with self._incoming.asking(lambda ticket: frames.WantBlocks(ticket, self._at, afresh)) as answer:
            found = answer()
            if isinstance(found, frames.Broken):
                raise _broken(found)
            assert isinstance(found, frames.Blocks)
            blocks = blockmap.decode(found.data)
            return blocks if blocks is not None and blocks.digest == self._version.digest else None

    def send(self, draft: LargeDraft, spans: Iterable[Span], progress: Progress) -> list[Span]:
        sent: list[Span] = []
        with _Ahead(self._incoming, self._at, progress) as ahead:
            for span in spans:
                sent.append(span)
                progress.came_to(span.at)
                ahead.expect(_pieces(spans if isinstance(spans, list) else draft.foreseen))
                for piece in _pieces([span]):
                    self._receive(draft, ahead.take(piece), progress)
                    progress.came_to(piece.end)
        return sent

    def _receive(self, draft: LargeDraft, answer: Callable[[], Sent], progress: Progress) -> None:
        while not isinstance(found := answer(), frames.End):
            if isinstance(found, frames.Broken):
                if found.unwanted:
                    draft.forget()
                raise _broken(found)
            assert isinstance(found, frames.Chunk)
            if found.data is not None:
                progress.bytes_crossed += len(found.data)
                draft.write_at(found.at, found.data)
            elif draft.compares:
                for at in range(found.at, found.at + found.size, _ZEROS_BYTES):
                    draft.write_at(at, bytes(min(_ZEROS_BYTES, found.at + found.size - at)))
            if progress.stop:
                raise Unavailable("its copy was stopped")


class _Ahead:
    """Pieces of a content that are asked for before it is their turn."""

    def __init__(self, incoming: Incoming, at: At, progress: Progress) -> None:
        self._incoming, self._at, self._progress = incoming, at, progress
        self._asked: dict[Span, tuple[contextlib.ExitStack, Callable[[], Sent]]] = {}
        self._current = contextlib.ExitStack()
        self._expected: Iterator[Span] = iter(())
        self._upcoming: Span | None = None
        self._is_told = False

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        for stack in (self._current, *(stack for stack, _ in self._asked.values())):
            stack.close()

    def expect(self, pieces: Iterator[Span]) -> None:
        """Announce the pieces that will be taken, in order; the first call counts."""
        if not self._is_told:
            self._is_told, self._expected, self._upcoming = True, pieces, next(pieces, None)

    def take(self, piece: Span) -> Callable[[], Sent]:
        """The answers of a piece, whose turn it is; the next ones are asked for."""
        self._current.close()
        if piece not in self._asked:
            self._ask(piece)
        while self._upcoming is not None and (self._upcoming.at <= piece.at or self._has_room(self._upcoming)):
            if self._upcoming.at > piece.at:
                self._ask(self._upcoming)
            self._upcoming = next(self._expected, None)
        self._current, answer = self._asked.pop(piece)
        return answer

    def _has_room(self, piece: Span) -> bool:
        is_few = len(self._asked) < _AHEAD_PIECES
        return is_few and sum(each.size for each in self._asked) + piece.size <= _AHEAD_BYTES

    def _ask(self, piece: Span) -> None:
        stack, done = contextlib.ExitStack(), self._progress.bytes_done

        def want(ticket: int) -> Frame:
            return frames.WantSpan(ticket, self._at, piece.at, piece.size, done)

        self._asked[piece] = stack, stack.enter_context(self._incoming.asking(want))


def _broken(found: frames.Broken) -> Exception:
    return Failed(found.failed, found.why) if found.failed else Unavailable(found.why)


def _pieces(spans: Sequence[Span]) -> Iterator[Span]:
    for span in spans:
        for at in range(span.at, span.end, _PIECE_BYTES):
            yield Span(at, min(_PIECE_BYTES, span.end - at))
