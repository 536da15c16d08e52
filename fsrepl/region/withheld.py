"""The markers of one bucket that are not handed over until it is decided whether too much was deleted at once.

A limited number of them is in memory. From the first one that found no room on they are pending in the journal alone,
since markers are made in the order of their creation times and ids. See region/halting.py.
"""

from __future__ import annotations

from msgspec import Struct, field

from fsrepl.storage.journal.rows import Delivery

MARKERS_MAX = 10_000
"""Markers of one bucket in memory, some 6 MB with one destination."""


class Marker(Struct, frozen=True):
    """The pending deliveries of one marker. found: a scan told of it, and the decision waits until that is over."""

    deliveries: list[Delivery]
    found: bool


class Left(Struct):
    """Markers that found no room. since: creation time and id of the first of them; found: a scan told of one of them.
    destinations: where any of them is to go."""

    since: tuple[int, str]
    found: bool = False
    destinations: set[str] = field(default_factory=set)


class Withheld(Struct):
    markers: dict[tuple[bytes, str], Marker] = field(default_factory=dict)
    """By key and version id."""
    left: Left | None = None
    since_s: float = 0.0
    """Since when there are any, in monotonic seconds; 0 where none was looked at yet."""
    is_noted: bool = False
    """The journal has the time of the first of them, for a start after a crash."""

    def __bool__(self) -> bool:
        return bool(self.markers) or self.left is not None

    def add(self, deliveries: list[Delivery], *, found: bool) -> None:
        """Withhold the deliveries of one marker, which are in the journal."""
        first = deliveries[0]
        if self.left is None and len(self.markers) >= MARKERS_MAX:
            self.left = Left((first.created_ns, first.id))
        if self.left is None:
            self.markers[first.key, first.id] = Marker(deliveries, found)
        else:
            self.left.found |= found
            self.left.destinations.update(each.destination for each in deliveries)

    def has(self, delivery: Delivery) -> bool:
        """Whether a marker's delivery is withheld. A delivery that is not in memory is released with the others."""
        if (delivery.key, delivery.id) in self.markers:
            return True
        if self.left is None or (delivery.created_ns, delivery.id) < self.left.since:
            return False
        self.left.destinations.add(delivery.destination)
        return True

    def let_go(self, *, is_scanning: bool = False) -> tuple[list[Delivery], set[str]]:
        """End the withholding: the deliveries in memory, and the destinations of those in the journal.

        is_scanning: what a scan found stays.
        """
        gone = {at: each for at, each in self.markers.items() if not (is_scanning and each.found)}
        for at in gone:
            del self.markers[at]
        destinations: set[str] = set()
        if self.left is not None and not (is_scanning and self.left.found):
            destinations, self.left = self.left.destinations, None
        if not self:
            self.since_s = 0.0
        return [delivery for each in gone.values() for delivery in each.deliveries], destinations
