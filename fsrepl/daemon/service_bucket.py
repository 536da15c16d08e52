"""The state of a bucket of an S3 service, and the result of a look at it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from msgspec import Struct, field

from fsrepl.model.keys import Document
from fsrepl.model.version import Status, Versioning
from fsrepl.remote.bucket import RemoteBucket
from fsrepl.replicate.remote import Done
from fsrepl.storage.journal.rows import Delivery


class ServicePhase(enum.Enum):
    UNKNOWN = "not looked at yet"
    ONLINE = "there, and keeps versions"
    REFUSED = "missing, or keeps no versions"
    AWAY = "cannot be reached"


class Look(Struct, frozen=True):
    """The result of a look at a bucket. versioning: None where there is no bucket. is_empty: asked where the journal is
    new; is_believed: whether a wrong checksum was refused."""

    versioning: Versioning | None
    is_believed: bool
    is_empty: bool


class ServiceBucket(Struct):
    """The state of a bucket of the service. trusted_ns: see storage/journal/remote.py; None until it is known."""

    bucket: RemoteBucket
    phase: ServicePhase = ServicePhase.UNKNOWN
    why: str = ""
    looks: bool = False
    looked_at_s: float = 0.0
    is_believed: bool | None = None
    trusted_ns: int | None = None
    under_way: dict[bytes, list[Delivery]] = field(default_factory=dict)
    """Keys with a delivery under way, and the deliveries of each that wait for it."""
    without_id: int = 0
    """How many objects in a row got no version id although the bucket had been seen to be Enabled."""
    throttled: Callable[[], str] = str
    """Says, for people, that the service wants fewer requests; empty where it does not."""

    @property
    def is_away(self) -> bool:
        """Whether it could not be used at the last look, and no look is under way."""
        return self.phase in (ServicePhase.AWAY, ServicePhase.REFUSED) and not self.looks

    @property
    def gives_no_ids(self) -> bool:
        """Whether the service says Enabled, and keeps no versions: once may have been a change in between."""
        return self.without_id > 1

    def note(self, found: Sequence[Done]) -> None:
        """Have the bucket looked at before anything else is sent, where a delivery found that it has changed. Called by
        workers."""
        if any(done.outcome is not None and done.outcome.status is Status.COMPLETED for done in found):
            self.without_id = 0
        if any(done.is_bucket_changed for done in found):
            self.without_id += any(done.is_without_id for done in found)
            self.phase, self.looked_at_s = ServicePhase.UNKNOWN, 0.0

    def describe(self) -> Document:
        """Document for `status`."""
        found: Document = {"online": not self.why, "trouble": self.why, "seen": self.phase is ServicePhase.ONLINE}
        return found | ({"throttled": throttled} if (throttled := self.throttled()) else {})


def describe_refusal(address: str, versioning: Versioning | None) -> str:
    """The reason why a bucket is refused, in S3's terms, and the remedy."""
    if versioning is None:
        return f"NoSuchBucket: the bucket {address} does not exist; `fsrepl bucket create {address} --versioning`"
    if versioning is Versioning.ENABLED:
        return (
            f"the service says that the versioning of {address} is Enabled, and gives what is put there no version id"
        )
    state = str(versioning) or "never enabled"
    return f"the versioning of {address} is {state}, and must be Enabled: `fsrepl versioning enable {address}`"
