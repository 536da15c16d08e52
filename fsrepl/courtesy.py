"""What views tell of their versions: our attributes on them, put there as a courtesy, after the fact.

A view is marked once its version has arrived everywhere, so that most are touched once; while something
keeps a version pending, its view says so after a moment. Nothing depends on these marks.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsrepl import commit, keys, store
from fsrepl.fs import reason
from fsrepl.model import Status, Version

if TYPE_CHECKING:
    from fsrepl.place import Place
    from fsrepl.region import Region

log = logging.getLogger("fsrepl")

_PENDING_S = 1.5
_BUSY_S, _BUSY_MAX = 15.0, 16_384
_BATCH = 256


class Unmarked:
    """The views of one bucket that do not tell yet what their versions are."""

    def __init__(self) -> None:
        self._settled: dict[bytes, Version] = {}
        self._pending: dict[bytes, Version] = {}
        self._settled_since_s = self._pending_since_s = 0.0
        self._said_pending: dict[bytes, str] = {}
        """Key to version id of the views that were marked while their version was pending."""
        self._in_hand: frozenset[bytes] = frozenset()

    def add(self, version: Version, now_s: float) -> None:
        """A view is to be marked with this version, as it is now."""
        if version.deliveries and version.status is Status.PENDING:
            if not self._pending:
                self._pending_since_s = now_s
            self._pending[version.key] = version
        else:
            if not self._settled:
                self._settled_since_s = now_s
            self._pending.pop(version.key, None)
            self._settled[version.key] = version

    def again(self, version: Version, now_s: float) -> None:
        """A view could not be marked now: after a while."""
        if version.key not in self:
            if not self._pending:
                self._pending_since_s = now_s
            self._pending[version.key] = version

    def drop(self, key: bytes) -> None:
        """There is no view any more."""
        for known in (self._settled, self._pending, self._said_pending):
            known.pop(key, None)

    def __contains__(self, key: bytes) -> bool:
        return key in self._settled or key in self._pending

    def is_behind(self, key: bytes) -> bool:
        """Whether a view, or any where that is empty, does not tell yet what its version is. Other threads may ask."""
        return key in self or key in self._in_hand if key else bool(self) or bool(self._in_hand)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def next_s(self) -> float | None:
        """The monotonic time when there is something to mark; None where there is nothing."""
        if self._settled:
            return 0.0
        return self._pending_since_s + _PENDING_S if self._pending else None

    def is_overdue(self, now_s: float) -> bool:
        """Whether so many views wait, or for so long, that they are marked in between other work."""
        since_s = min(
            self._settled_since_s if self._settled else now_s, self._pending_since_s if self._pending else now_s
        )
        return now_s - since_s > _BUSY_S or len(self) > _BUSY_MAX

    def take(self, now_s: float, *, everything: bool = False) -> list[tuple[Version, bool]]:
        """Some of what is to be marked now, and whether the view was marked before and only its status is new.

        In hand until done() says that they are marked.
        """
        most = len(self) if everything else _BATCH
        settled, pending = list(itertools.islice(self._settled, most)), list[bytes]()
        if everything or now_s >= self._pending_since_s + _PENDING_S:
            pending = list(itertools.islice(self._pending, most - len(settled)))
        self._in_hand = frozenset(settled + pending)
        out = []
        for key in settled:
            version = self._settled.pop(key)
            out.append((version, self._said_pending.pop(key, None) == version.id))
        for key in pending:
            version = self._pending.pop(key)
            out.append((version, self._said_pending.get(key) == version.id))
            self._said_pending[key] = version.id
        return out

    def done(self) -> None:
        """What was taken is marked, or need not be."""
        self._in_hand = frozenset()

    def __len__(self) -> int:
        return len(self._settled) + len(self._pending)


def mark_views(region: Region, place: Place, now_s: float, *, everything: bool = False) -> None:
    """Mark the views that are due, and record how they look afterwards. Raises FsreplError where the bucket is away."""
    due = place.unmarked.take(now_s, everything=everything)
    if not due:
        return
    try:
        _mark_views(region, place, due)
    finally:
        place.unmarked.done()
    if not place.unmarked:
        region.engine.notify()


def _mark_views(region: Region, place: Place, due: Sequence[tuple[Version, bool]]) -> None:
    engine, address = region.engine, place.bucket.address
    objects = engine.journal.look_up(address, [version.key for version, _ in due])
    seen = []
    with place.bucket.open() as bucket:
        for version, status_only in due:
            known = objects.get(version.key)
            shown = known.view.shown if known and known.view else ""
            if known is None or known.view is None or not shown:
                continue
            status_only &= shown == version.id
            current = engine.recent.version(address, version.key, shown)
            if current is None:  # what the view shows may be another version than the one that has news
                current = version if shown == version.id else store.read(bucket, version.key, shown, marker=False)
            if current is None:
                continue
            # An edit of tags may have come with the status: then all of it is put there again.
            try:
                view = commit.mark_view(bucket, current, known.view, status_only=status_only and not current.edited)
            except OSError as error:
                log.debug('not marked bucket=%s key="%s": %s', address, keys.shown(version.key), reason(error))
                place.unmarked.again(version, time.monotonic())
                continue
            if view is not None:
                seen.append((version.key, view))
    with engine.journal.transaction():
        engine.journal.see_all(address, seen)
