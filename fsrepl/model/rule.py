"""Rules, replication configurations and roles, as values."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from fsrepl.model.version import Tracking


class Rule(Struct, frozen=True):
    """One rule of a replication configuration, V1 or V2, after validation.

    prefix is compared byte for byte. The object must have all tags. Priorities decide between rules to the same
    destination. A V1 rule has priority 0 and copies the markers of users.
    """

    id: str
    enabled: bool
    prefix: bytes
    destination: str
    """REGION/BUCKET"""
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    v2: bool = False
    delete_markers: bool = True
    replica_modifications: bool = False
    storage_class: str = ""
    owner: str = ""
    """`Destination` where AccessControlTranslation sets it, else empty."""
    metrics: bool = False
    replication_time: bool = False

    @property
    def tracking(self) -> Tracking:
        return Tracking.TIME if self.replication_time else Tracking.METRICS if self.metrics else Tracking.NONE


class Replication(Struct, frozen=True):
    """A bucket's replication configuration: one role for all rules."""

    role: str
    """The name of the role: the last part of its ARN."""
    rules: tuple[Rule, ...]
    document: Mapping[str, object] = field(default_factory=dict)
    """The configuration as S3 writes it: {"Role", "Rules"}."""


class Statement(Struct, frozen=True):
    """One statement of a role's policy."""

    allow: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]


class Role(Struct, frozen=True):
    """A replication role: the services that may use it, its permissions, and the user its file work runs as."""

    name: str
    trusted: frozenset[str]
    """Service names, such as s3.amazonaws.com."""
    statements: tuple[Statement, ...]
    uid: int | None = None
    gid: int | None = None
