"""The requests to the daemon, each a frozen value, and its line of JSON on the control socket.

A parameter has one name from the command line to the step that uses it. Most requests are carried out without a
daemon too, by the command itself. A parameter at its default is not sent, so that a command and a daemon
of different versions understand each other in all that both know; otherwise they report the difference.
"""

from __future__ import annotations

import base64
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, ClassVar, get_args, get_origin

from msgspec import NODEFAULT, Struct, field
from msgspec.structs import FieldInfo, fields

from fsrepl.errors import Usage
from fsrepl.model.address import Address

_VERSIONS = "restart it if it is of another version of fsrepl than this command"


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
    """How far another request is, named by its text."""

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
    """Read the stored versions of a bucket now, or of all buckets, from where the scrub is."""

    op = "scrub.run"
    bucket: Address | None = None


class PauseScrub(Request, frozen=True):
    """Pause the scrub of a bucket, or of all buckets; on=False: let it go on at its own pace."""

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


# -- as JSON


def _kinds(base: type[Request]) -> dict[str, type[Request]]:
    found: dict[str, type[Request]] = {}
    for kind in base.__subclasses__():
        found |= _kinds(kind) or {kind.op: kind}
    return found


KINDS: Mapping[str, type[Request]] = _kinds(Request)


def encode(request: Request) -> bytes:
    """The line that decode reads."""
    given = {each.name: getattr(request, each.name) for each in _fields(type(request))}
    params = {
        each.name: _plain(given[each.name]) for each in _fields(type(request)) if given[each.name] != _default(each)
    }
    return json.dumps({"op": request.op, "params": params}).encode() + b"\n"


def decode(line: bytes) -> Request:
    """The request of a line. Raises Usage, in one sentence, for a request unknown to this version of fsrepl."""
    try:
        document = json.loads(line)
        op, given = str(document["op"]), document["params"]
        if not isinstance(given, dict):
            raise ValueError(f"its params are {json.dumps(given)[:80]}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Usage(f"the daemon was asked something it does not understand: {error}") from error
    kind = KINDS.get(op)
    if kind is None:
        raise Usage(f"the daemon knows no operation {op!r}, which the command asks for; {_VERSIONS}")
    wanted = {each.name: each.type for each in _fields(kind)}
    known = {each.name: _default(each) for each in _fields(kind)}
    if unknown := sorted(given.keys() - known.keys()):
        raise Usage(f"the daemon knows no {unknown[0]!r} of {op}, which the command gives; {_VERSIONS}")
    if missing := [name for name, default in known.items() if default is NODEFAULT and name not in given]:
        raise Usage(f"the daemon needs {missing[0]!r} for {op}, which the command does not give; {_VERSIONS}")
    return kind(**{name: _read(kind, name, wanted[name], value) for name, value in given.items()})


@functools.cache
def _fields(kind: type[Request]) -> tuple[FieldInfo, ...]:
    """The parameters of an operation with their types, which msgspec evaluates anew at each call."""
    return fields(kind)


def _default(each: FieldInfo) -> object:
    """The value of an omitted parameter; NODEFAULT where it is required."""
    return each.default if each.default_factory is NODEFAULT else each.default_factory()


def _plain(value: object) -> object:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case Address():
            return str(value)
        case tuple():
            return [_plain(each) for each in value]
        case Mapping():
            return dict(value)
        case _:
            return value


def _read(kind: type[Request], name: str, wanted: Any, value: object) -> object:
    try:
        return _typed(wanted, value)
    except (ValueError, Usage) as error:
        raise Usage(f"the daemon cannot read {name!r} of {kind.op}: {error}; {_VERSIONS}") from error


def _typed(wanted: Any, value: object) -> object:
    """A JSON value, converted to the type of a field. Raises ValueError, Usage."""
    if wanted is object:
        return value
    if isinstance(wanted, types.UnionType):  # all such unions have None as second member
        first, _ = get_args(wanted)
        return None if value is None else _typed(first, value)
    if wanted is bytes and isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if wanted is Address and isinstance(value, str):
        return Address.parse(value)
    if get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(wanted)[0], each) for each in value)
    if get_origin(wanted) is Mapping and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is wanted:
        return value
    raise ValueError(f"it is {json.dumps(value)[:80]}")
