"""The requests to the daemon, each a frozen value. daemon/request_json.py has their form on the control socket.

A parameter has one name from the command line to the step that uses it. Most requests are carried out without a
daemon too, by the command itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from msgspec import Struct, field

from fsrepl.model.address import Address


class Request(Struct, frozen=True):
    """op: the name of the request on the socket, in the log and in messages."""

    op: ClassVar[str]

    def __str__(self) -> str:
        """The request and its subject: `bucket create east/photos`."""
        value = next((getattr(self, each) for each in self.__struct_fields__), None)
        name = self.op.replace(".", " ")
        return f"{name} {value}" if isinstance(value, str | Address) else name


class OnBucket(Request, frozen=True):
    """A request about one bucket."""

    bucket: Address

    @property
    def region(self) -> str:
        """The region whose thread carries it out."""
        return self.bucket.region


class OnSource(Request, frozen=True):
    """A request about the replication of one bucket."""

    source: Address

    @property
    def region(self) -> str:
        """The region whose thread carries it out."""
        return self.source.region


class OnObject(Request, frozen=True):
    """A request about one object: its current version, or another of its versions."""

    address: Address
    version_id: str | None = None

    @property
    def region(self) -> str:
        """The region whose thread carries it out."""
        return self.address.region


# -- requests that need a running daemon


class GetStatus(Request, frozen=True):
    """Get the state of the daemon: running steps, waiting items and their reasons."""

    op = "status"


class GetSamples(Request, frozen=True):
    """Get the samples of the backlog and of what was replicated over the last hour and day."""

    op = "samples"


class GetProgress(Request, frozen=True):
    """Get the progress of another request, named by its text."""

    op = "progress"
    of: str


class GetStatusPage(OnBucket, frozen=True):
    """More names of one of the lists of which `status` has the first names."""

    op = "status.page"
    list: str
    after: bytes = b""


class ExplainObject(Request, frozen=True):
    """The state of one key."""

    op = "why"
    address: Address


class Wait(Request, frozen=True):
    """Wait until all in scope is captured and delivered, at most timeout_s. Without a scope: the whole site."""

    op = "wait"
    scope: Address | None = None
    timeout_s: float | None = None


class FinishTurn(Request, frozen=True):
    """Wait until every region has finished the turn it was in when the request came."""

    op = "pass"


class NoteVerification(OnSource, frozen=True):
    """Show in `status` how far a verification is, which another process makes. token: what that is known by."""

    op = "verify.note"
    token: str
    bytes_done: int
    bytes_total: int
    is_over: bool = False


class GetSite(Request, frozen=True):
    op = "site"


class Diagnose(Request, frozen=True):
    """Checks of the daemon's own process, which `doctor` cannot make from its own."""

    op = "doctor"


class LookAtServices(Request, frozen=True):
    """Ask the regions that are S3 services whether they answer, with the daemon's own credentials."""

    op = "services"


class Look(OnBucket, frozen=True):
    """Queue keys for capture whose files may differ from their record without an event. Waits for nothing."""

    op = "look"
    keys: tuple[bytes, ...]


class Capture(OnBucket, frozen=True):
    """Queue such keys for capture, and wait until they are captured, as far as possible now."""

    op = "capture"
    keys: tuple[bytes, ...]


# -- regions and buckets


class AddRegion(Request, frozen=True):
    """replace: the path is a new disk for a lost region. umask: the caller's."""

    op = "region.add"
    name: str
    path: str
    replace: bool = False
    umask: int | None = None


class AddTier(Request, frozen=True):
    """tier: REGION/CLASS. compress: as in fsrepl.toml; empty: as it is. umask: the caller's."""

    op = "tier.add"
    tier: str
    path: str
    compress: str = ""
    umask: int | None = None


class RemoveTier(Request, frozen=True):
    """tier: REGION/CLASS."""

    op = "tier.rm"
    tier: str


class ForgetRegion(Request, frozen=True):
    op = "region.forget"
    name: str


class CreateBucket(OnBucket, frozen=True):
    op = "bucket.create"
    versioning: bool = False
    umask: int | None = None
    trees: bool = False


class AdoptBucket(OnBucket, frozen=True):
    """although_away: restore a lost bucket without the versions of regions that are away now."""

    op = "bucket.adopt"
    dry_run: bool = False
    umask: int | None = None
    although_away: bool = False
    trees: bool = False


class SetTrees(OnBucket, frozen=True):
    """Make a bucket a tree bucket, or no longer one."""

    op = "bucket.trees"
    on: bool


class RemoveBucket(OnBucket, frozen=True):
    """purge: remove the bucket with all its contents."""

    op = "bucket.rm"
    purge: bool = False


class SetVersioning(OnBucket, frozen=True):
    op = "versioning.set"
    status: str


# -- replication


class EnableReplication(OnSource, frozen=True):
    """The console's five steps. Without a destination: the existing rules are enabled again.

    storage_classes: by prefix, for some of the prefixes. role: the name or ARN of an existing one. id: the rule's.
    """

    op = "replication.enable"
    destination: Address | None = None
    prefixes: tuple[str, ...] = ()
    storage_class: str = ""
    storage_classes: Mapping[str, str] = field(default_factory=dict)
    role: str = ""
    id: str = ""
    delete_markers: bool = True
    add: bool = False
    replace: bool = False
    dry_run: bool = False


class PutReplication(OnSource, frozen=True):
    """document: S3's ReplicationConfiguration; size_bytes: the size of its text."""

    op = "replication.put"
    document: object
    size_bytes: int = 0
    dry_run: bool = False


class DisableReplication(OnSource, frozen=True):
    op = "replication.disable"


class RemoveReplication(OnSource, frozen=True):
    op = "replication.rm"


class Backfill(OnSource, frozen=True):
    """statuses, rules: only versions with one of these statuses, only to destinations of these rules."""

    op = "replication.backfill"
    statuses: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()


class ListBackfills(Request, frozen=True):
    """List jobs of a source or of all; one job where it is named."""

    op = "replication.jobs"
    source: Address | None = None
    job: str | None = None


class CancelBackfill(Request, frozen=True):
    op = "replication.cancel"
    job: str


class PutLifecycle(OnBucket, frozen=True):
    """document: S3's LifecycleConfiguration."""

    op = "lifecycle.put"
    document: object


class RemoveLifecycle(OnBucket, frozen=True):
    op = "lifecycle.rm"


class RunLifecycle(OnBucket, frozen=True):
    """Carry out all due lifecycle actions now."""

    op = "lifecycle.run"


class RunScrub(Request, frozen=True):
    """Read the stored versions of a bucket now, or of all buckets, from where the scrub is; on=False: no longer now,
    but at its own pace."""

    op = "scrub.run"
    bucket: Address | None = None
    on: bool = True


class PauseScrub(Request, frozen=True):
    """Pause the scrub of a bucket, or of all buckets; on=False: let it go on as before."""

    op = "scrub.pause"
    bucket: Address | None = None
    on: bool = True


class CreateRole(Request, frozen=True):
    op = "role.create"
    name: str
    source: Address
    destinations: tuple[Address, ...]


class RemoveRole(Request, frozen=True):
    op = "role.rm"
    name: str


# -- objects


class RestoreObject(OnObject, frozen=True):
    op = "object.restore"


class RestoreArchived(OnObject, frozen=True):
    """Make archived content readable for some days."""

    op = "object.restore_archived"
    days: int = 1


class RemoveObject(OnObject, frozen=True):
    op = "object.rm"


class SetTags(OnObject, frozen=True):
    op = "tag.set"
    tags: Mapping[str, str] = field(default_factory=dict)


class RemoveTags(OnObject, frozen=True):
    op = "tag.rm"
    names: tuple[str, ...] = ()


class Acknowledge(OnBucket, frozen=True):
    """Let the held deletions of a bucket that is HALTED cross."""

    op = "bucket.ack"


class Undelete(OnObject, frozen=True):
    """Bring back the keys of a bucket that users deleted since a time in RFC 3339. address: with a prefix of the keys.

    One batch of them. after: the last key of the batch before; count: only say what there is.
    """

    op = "bucket.undelete"
    since: str = ""
    after: bytes = b""
    count: bool = False


class Repair(OnBucket, frozen=True):
    """Repair one version, or a directory: its path ends in a slash."""

    op = "verify.repair"
    path: bytes
    version_id: str
    marker: bool


class Examine(OnBucket, frozen=True):
    """Have the agent of a bucket on another machine read versions: see repair/verify_host.py."""

    op = "verify.examine"
    versions: bytes


class RecallVersions(OnBucket, frozen=True):
    """Have the agent of a bucket on another machine read what came from a lost one: see repair/from_hosts.py."""

    op = "heal.recall"
    wanted: bytes


class LookAtHost(Request, frozen=True):
    """Ask a region on another machine for its buckets, over the daemon's connection."""

    op = "region.look"
    name: str


class Retry(Request, frozen=True):
    """Retry failed deliveries in scope. Without a scope: all in the site.

    destination, rule, reason: only failures of these, and nothing that waits.
    """

    op = "retry"
    scope: Address | None = None
    destination: str = ""
    rule: str = ""
    reason: str = ""
