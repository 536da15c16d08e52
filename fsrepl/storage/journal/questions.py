"""The questions that steps ask the journal, as Protocols that its tables have: a step takes the smallest one it needs.

So the signature of a step says what it asks, and a test can answer from memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from fsrepl.storage.journal.rows import Counts, Object

Rule = tuple[str, str]
"""A destination and the id of a rule."""


class CurrentVersions(Protocol):
    """The current versions of keys, with their views as last seen. Versions has them."""

    def object(self, address: str, key: bytes) -> Object | None: ...

    def look_up(self, address: str, keys_: Iterable[bytes]) -> dict[bytes, Object]: ...


class ScannedRows(Protocol):
    """The rows that a scan compares files with. Versions has them."""

    def objects_between(
        self, address: str, directory: bytes, after: bytes | None, last: bytes | None, limit: int
    ) -> dict[bytes, Object]:
        """The first keys of one directory by name, in order: those after a name, and no later than another."""

    def directories(self, address: str, *, below: bytes = b"") -> list[bytes]:
        """A directory with keys, and those below it; without one, all of the bucket."""


class FileNames(Protocol):
    """The keys whose views are one file. Views has them."""

    def names_of(self, address: str, ino: int) -> dict[bytes, Object]: ...


class DeliveryCounts(Protocol):
    """The numbers that metrics are made of. Deliveries has them."""

    def live_pending_counts(self, address: str) -> dict[Rule, Counts]:
        """The pending deliveries of live replication from a source."""

    def failed_counts(self, address: str, after_ns: int = 0) -> dict[Rule, int]:
        """The number of deliveries from a source that failed since a moment."""


class JobCounts(Protocol):
    """The deliveries that backfills requested, counted. Backlog has them."""

    def job_counts(self, source: str, job: str) -> dict[str, Counts]:
        """The deliveries of one job, by status."""


class Facts(Protocol):
    """Small texts by name, such as how far the scrub of a bucket is. The Journal itself has them."""

    def fact(self, name: str) -> str:
        """The text of that name; empty where there is none."""

    def set_fact(self, name: str, value: str) -> None: ...

    def transaction(self) -> AbstractContextManager[None]: ...
