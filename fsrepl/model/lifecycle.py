"""Lifecycle rules, as values."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from fsrepl.model.version import EMPTY


class Term(Struct, frozen=True):
    """The due time of an action: days after a version was made, or a date, at midnight UTC."""

    days: int = 0
    date_ns: int | None = None


class Transition(Struct, frozen=True):
    """A transition of current versions to a storage class."""

    storage_class: str
    term: Term


class Noncurrent(Struct, frozen=True):
    """The due time of an action on noncurrent versions: days after the successor was made. The `newer` newest
    noncurrent versions are never due."""

    days: int
    newer: int = 0


class NoncurrentTransition(Struct, frozen=True):
    """A transition of noncurrent versions to a storage class."""

    storage_class: str
    term: Noncurrent


class LifecycleRule(Struct, frozen=True):
    """One rule of a lifecycle configuration, after validation. Sizes are exclusive bounds, in bytes."""

    id: str
    enabled: bool
    prefix: bytes = b""
    tags: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    larger_than: int | None = None
    smaller_than: int | None = None
    expiration: Term | None = None
    expired_markers: bool = False
    """Markers without versions are removed as soon as they are found."""
    transitions: tuple[Transition, ...] = ()
    noncurrent_expiration: Noncurrent | None = None
    noncurrent_transitions: tuple[NoncurrentTransition, ...] = ()
    abort_days: int | None = None

    @property
    def has_size(self) -> bool:
        """Whether the rule filters by object size."""
        return self.larger_than is not None or self.smaller_than is not None


class Lifecycle(Struct, frozen=True):
    """A lifecycle configuration and its source document.

    small_to_archive: objects under 128 KiB move to GLACIER and DEEP_ARCHIVE without a size filter, which S3 calls
    varies_by_storage_class.
    """

    rules: tuple[LifecycleRule, ...]
    document: Mapping[str, object]
    small_to_archive: bool = False
