"""What the journal knows: a view as it was seen, a key's current version, a delivery that is owed; and its end.

Frozen, like the nouns of model/version.py that they are made from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from fsrepl.model import keys
from fsrepl.model.version import EMPTY, DeliveryRecord, Status, Tracking, Version, operation
from fsrepl.model.view import View


@dataclass(frozen=True, slots=True)
class Object:
    """A key's current version, as far as the index knows it, and its view."""

    id: str
    created_ns: int
    marker: bool
    digest: bytes
    view: View | None

    @property
    def order(self) -> tuple[int, str]:
        return self.created_ns, self.id


@dataclass(frozen=True, slots=True)
class Stored:
    """A version or marker as the index knows it, and its place in the order of versions_after."""

    directory: bytes
    name: bytes
    created_ns: int
    id: str
    marker: bool = False

    @property
    def key(self) -> bytes:
        return keys.join(self.directory, self.name)

    @property
    def order(self) -> tuple[bytes, bytes, int, str]:
        return self.directory, self.name, self.created_ns, self.id


def traits_of(version: Version) -> str:
    """What rules ask of a version beside its key, age and size; empty where it has no tags and no class of its own."""
    if not version.tags and not version.storage_class:
        return ""
    return json.dumps([version.storage_class, dict(version.tags)])


def read_traits(text: str | None) -> tuple[str | None, Mapping[str, str] | None]:
    """A version's storage class and tags; None where they are not known."""
    if text is None:
        return None, None
    if not text:
        return "", EMPTY
    storage_class, tags = json.loads(text)
    return storage_class, tags


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery as the index knows it."""

    source: str
    key: bytes
    id: str
    destination: str
    rule: str
    status: str
    reason: str
    created_ns: int
    size: int
    marker: bool
    job: str
    since_ns: int
    tracking: Tracking = Tracking.NONE
    digest: bytes = b""
    operation: str = ""
    """S3's word for what it brings. This and the digest are known of what is tracked."""


def delivery_of(source: str, version: Version, destination: str, recorded: DeliveryRecord) -> Delivery:
    """A delivery of a version, as the journal would answer it while it is pending."""
    told = (version.digest, operation(version, recorded)) if recorded.tracking else (b"", "")
    return Delivery(
        source, version.key, version.id, destination, recorded.rule, str(recorded.status), recorded.reason,
        version.created_ns, version.size, version.marker, recorded.job,
        recorded.since_ns or version.created_ns, recorded.tracking, *told,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the destination says of one delivery, for the source to write down. sent: what it was when it was sent.

    PENDING: nothing was done, since the source's own record says something else than the index does.
    """

    delivery: Delivery
    status: Status
    reason: str
    sent: Version | None


@dataclass(frozen=True, slots=True)
class Counts:
    """What there is of something: a number, their bytes, and since when the oldest of them is so."""

    number: int = 0
    bytes: int = 0
    oldest_ns: int = 0
