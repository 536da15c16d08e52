"""Lifecycle rules, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fsrepl.model.version import EMPTY


@dataclass(frozen=True, slots=True)
class Term:
    """When an action is due: some days after a version was made, or on a date, which is a midnight UTC."""

    days: int = 0
    date_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Transition:
    """A storage class that current versions move to."""

    storage_class: str
    term: Term


@dataclass(frozen=True, slots=True)
class Noncurrent:
    """When an action on noncurrent versions is due: days after the successor was made, and never for the `newer`
    newest of them."""

    days: int
    newer: int = 0


@dataclass(frozen=True, slots=True)
class NoncurrentTransition:
    """A storage class that noncurrent versions move to."""

    storage_class: str
    term: Noncurrent


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """One rule of a lifecycle configuration, after validation. Sizes are exclusive bounds, in bytes."""

    id: str
    enabled: bool
    prefix: bytes = b""
    tags: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    larger_than: int | None = None
    smaller_than: int | None = None
    expiration: Term | None = None
    expired_markers: bool = False
    """Markers of which no version is left go as soon as they are seen."""
    transitions: tuple[Transition, ...] = ()
    noncurrent_expiration: Noncurrent | None = None
    noncurrent_transitions: tuple[NoncurrentTransition, ...] = ()
    abort_days: int | None = None

    @property
    def has_size(self) -> bool:
        """Whether it says of which size its objects are."""
        return self.larger_than is not None or self.smaller_than is not None


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """A lifecycle configuration, and the document that it was read from.

    small_to_archive: objects under 128 KiB move to GLACIER and DEEP_ARCHIVE without a word on their size, which S3
    calls varies_by_storage_class.
    """

    rules: tuple[LifecycleRule, ...]
    document: Mapping[str, object]
    small_to_archive: bool = False
