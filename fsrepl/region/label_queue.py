"""Views whose labels (version id, replication status) are not written yet."""

from __future__ import annotations

import itertools
from collections import OrderedDict

from fsrepl.model import keys
from fsrepl.model.version import Status, Version
from fsrepl.model.view import View

_PENDING_S = 1.5
_BUSY_S, BUSY_MAX = 15.0, 16_384
"""For how long labels wait while there is other work, and how many views at most: some 16 MB."""
_BATCH = 256
REMEMBERED_MAX = 16_384
"""The most views that are remembered to have the label of a pending version. They take some 4 MB; the million of a
region that is away for long would take 300 MB."""


class LabelQueue:
    """The views of one bucket whose labels are not up to date."""

    def __init__(self) -> None:
        self._settled: dict[bytes, Version] = {}
        self._pending: dict[bytes, Version] = {}
        self._captured: dict[bytes, View] = {}
        """Pending views as they were when their version was captured, which nothing has changed since."""
        self._settled_since_s = self._pending_since_s = 0.0
        self._labelled_pending: OrderedDict[bytes, str] = OrderedDict()
        """Key to version id of the last views that were labelled while their version was pending."""
        self._in_hand: frozenset[bytes] = frozenset()

    def add(self, version: Version, now_s: float, captured: View | None = None) -> None:
        """Queue a view to be labelled with this version, in its present state. A directory gets no label.

        captured: the view, where the version was just made of it.
        """
        if keys.is_directory(version.key):
            return
        if version.key in self._captured:
            del self._captured[version.key]
        if version.deliveries and version.status is Status.PENDING:
            if not self._pending:
                self._pending_since_s = now_s
            self._pending[version.key] = version
            if captured is not None:
                self._captured[version.key] = captured
        else:
            if not self._settled:
                self._settled_since_s = now_s
            self._pending.pop(version.key, None)
            self._settled[version.key] = version

    def again(self, version: Version, now_s: float) -> None:
        """Queue a view again, for later, whose label could not be written."""
        if version.key not in self:
            if not self._pending:
                self._pending_since_s = now_s
            self._pending[version.key] = version

    def drop(self, key: bytes) -> None:
        """Drop a key whose view is gone."""
        for known in (self._settled, self._pending, self._captured, self._labelled_pending):
            if key in known:
                del known[key]

    def captured(self, version: Version) -> View | None:
        """The view that a version was made of, where its first label is still to be written; else None."""
        pending = self._pending.get(version.key)
        return self._captured.get(version.key) if pending is not None and pending.id == version.id else None

    def __contains__(self, key: bytes) -> bool:
        return key in self._settled or key in self._pending

    def is_behind(self, key: bytes) -> bool:
        """Whether a view's label is out of date, or any where key is empty. Other threads may ask."""
        return key in self or key in self._in_hand if key else bool(self) or bool(self._in_hand)

    def clear(self) -> None:
        self.__init__()  # type: ignore[misc]

    def next_s(self) -> float | None:
        """The monotonic time when the next label is due; None where none is queued."""
        if self._settled:
            return 0.0
        return self._pending_since_s + _PENDING_S if self._pending else None

    def is_overdue(self, now_s: float) -> bool:
        """Whether so many views wait, or for so long, that they are labelled in between other work."""
        since_s = min(
            self._settled_since_s if self._settled else now_s, self._pending_since_s if self._pending else now_s
        )
        return now_s - since_s > _BUSY_S or len(self) > BUSY_MAX

    def take(self, now_s: float, *, everything: bool = False) -> list[tuple[Version, bool]]:
        """Some versions to label now; and whether the view is remembered to have been labelled before, so that only its
        status is new. They count as in hand until done() is called. All above BUSY_MAX are among them, so that no burst
        makes more wait, however long it is.
        """
        most = len(self) if everything else max(_BATCH, len(self) - BUSY_MAX)
        settled, pending = list(itertools.islice(self._settled, most)), list[bytes]()
        if everything or now_s >= self._pending_since_s + _PENDING_S:
            pending = list(itertools.islice(self._pending, most - len(settled)))
        self._in_hand = frozenset(settled + pending)
        out = []
        for key in settled:
            version = self._settled.pop(key)
            out.append((version, self._labelled_pending.pop(key, None) == version.id))
        for key in pending:
            version = self._pending.pop(key)
            if key in self._captured:
                del self._captured[key]
            out.append((version, self._labelled_pending.get(key) == version.id))
            self._labelled_pending[key] = version.id
        while len(self._labelled_pending) > REMEMBERED_MAX:
            self._labelled_pending.popitem(last=False)
        return out

    def done(self) -> None:
        """Note that the taken views are labelled, or need no label."""
        self._in_hand = frozenset()

    def __len__(self) -> int:
        return len(self._settled) + len(self._pending)
