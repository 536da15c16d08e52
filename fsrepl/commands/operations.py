"""Every command that changes something, by name: run by the daemon for its callers, or here where there is none."""

from __future__ import annotations

import base64
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsrepl.commands import backfills, buckets, doctor_facts, heal, objects, replication, roles, sites, versioning
from fsrepl.errors import ContentDamaged, FsreplError, Refused, Unavailable, Usage
from fsrepl.model import keys
from fsrepl.model.version import Versioning
from fsrepl.region.region import Region
from fsrepl.region.runtime import Engine
from fsrepl.repair import repair
from fsrepl.s3 import arn
from fsrepl.settings import Settings
from fsrepl.storage import backfill_jobs
from fsrepl.storage.fs import reason
from fsrepl.views import following

__all__ = ["OPERATIONS", "local_engine", "run"]

_RETRIED_AT_ONCE = 64
_PASS_S = 5.0
"""A region that hangs holds up nobody for longer."""

Params = dict[str, Any]
Answer = dict[str, object]


def run(engine: Engine, name: str, params: Params) -> Answer:
    """Do one operation. Raises FsreplError; what it refuses leaves everything as it was."""
    operation = OPERATIONS.get(name)
    if operation is None:
        raise Usage(f"there is no operation {name!r}; is the daemon of another version than this command?")
    try:
        with engine.journal_told():
            return operation(engine, params)
    except OSError as error:
        what = params.get("bucket") or params.get("source") or params.get("name") or ""
        raise FsreplError(f"{name.replace('.', ' ')} {what}: {reason(error)}") from error


@contextlib.contextmanager
def local_engine(settings: Settings) -> Iterator[Engine]:
    """A site to work on without a daemon. The caller holds the site's lock."""
    engine = Engine(settings)
    try:
        yield engine
        for region in engine.regions.values():
            region.last_turn()
    finally:
        engine.close()


def _in_region(param: str, what: Callable[[Engine, str, Params], Answer]) -> Callable[[Engine, Params], Answer]:
    """An operation on a bucket, done by the thread of its region."""

    def operation(engine: Engine, params: Params) -> Answer:
        address = params[param]
        region, _ = arn.split_address(address)
        if region not in engine.regions:
            raise Usage(
                f"there is no region {region!r} in {engine.settings.path}; it names {engine.site.region_names()}"
            )
        return engine.ask(region, lambda: what(engine, address, params))

    return operation


def _key(params: Params) -> bytes:
    key: bytes = base64.b64decode(params["key"]) if isinstance(params["key"], str) else params["key"]
    return key


def _enable(engine: Engine, source: str, params: Params) -> Answer:
    engine.site.bucket(source)
    return replication.enable_replication(
        engine,
        source,
        params.get("destination"),
        prefixes=params.get("prefixes") or (),
        storage_class=params.get("storage_class") or "",
        storage_classes=params.get("storage_classes") or {},
        role=params.get("role") or "",
        rule_id=params.get("id") or "",
        delete_markers=params.get("delete_markers", True),
        add=params.get("add", False),
        replace_all=params.get("replace", False),
        dry_run=params.get("dry_run", False),
    )


def _versioning(engine: Engine, bucket: str, params: Params) -> Answer:
    try:
        wanted = Versioning(params["status"])
    except ValueError:
        wanted = Versioning.OFF
    if wanted is Versioning.OFF:
        raise Refused("MalformedXML", f"versioning is Enabled or Suspended, not {params['status']!r}")
    return versioning.set_versioning(engine, bucket, wanted)


def _adopt(engine: Engine, params: Params) -> Answer:
    """Make a folder a bucket; one that is a bucket of the site, and has lost what made it one, is made that again."""
    known, dry_run = engine.site.buckets.get(params["bucket"]), params.get("dry_run", False)
    if known is not None and heal.is_lost(known):
        return buckets.heal_bucket(engine, known.address, dry_run=dry_run, umask=params.get("umask"))
    return _in_region("bucket", lambda e, b, p: buckets.adopt_bucket(e, b, dry_run=dry_run))(engine, params)


def _retry(engine: Engine, params: Params) -> Answer:
    scope = params.get("scope") or ""
    region, _, rest = scope.partition("/")
    bucket, _, key = rest.partition("/")
    addresses = [f"{region}/{bucket}"] if scope else sorted(engine.site.buckets)
    number, left_out = 0, dict[str, str]()
    for address in addresses:
        engine.site.bucket(address)
        home = engine.region_of(address)
        if not scope and (address not in home.places or not home.places[address].up or home.name in left_out):
            continue
        try:
            number += _retry_in(engine, home, address, os.fsencode(key))
        except Unavailable as error:
            if scope or not home.pulse.is_stuck:
                raise
            left_out[home.name] = str(error)
    return {"Retried": number, **({"LeftOut": [*left_out.values()]} if left_out else {})}


def _retry_in(engine: Engine, home: Region, address: str, prefix: bytes) -> int:
    """Retry what failed of one bucket, some at a time: in between its region goes on with what is new."""
    if not engine.ask(home.name, lambda: engine.site.online(home.name)):
        return 0
    failed = engine.ask(home.name, lambda: objects.failed(home, address, prefix))
    number = engine.ask(home.name, lambda: objects.retry_waiting(home, address, prefix))
    for start in range(0, len(failed), _RETRIED_AT_ONCE):
        some = failed[start : start + _RETRIED_AT_ONCE]
        number += engine.ask(home.name, lambda some=some: objects.retry(home, address, some))  # type: ignore[misc]
    return number


def _restore(engine: Engine, params: Params) -> Answer:
    """Restore a version; where its content is damaged here, a good copy is fetched first."""

    def restore(engine: Engine, bucket: str, params: Params) -> Answer:
        return objects.restore(engine.region_of(bucket), bucket, _key(params), params.get("version_id"))

    in_region = _in_region("bucket", restore)
    try:
        return in_region(engine, params)
    except ContentDamaged as error:
        path = keys.stored_path(_key(params))
        if not repair.repair(engine, repair.Target(params["bucket"], path, error.version_id, marker=False)):
            raise
        return in_region(engine, params)


def _remove(engine: Engine, bucket: str, params: Params) -> Answer:
    return objects.remove(engine.region_of(bucket), bucket, _key(params), params.get("version_id"))


def _tag(engine: Engine, bucket: str, params: Params) -> Answer:
    return objects.tag(
        engine.region_of(bucket), bucket, _key(params), params.get("version_id"),
        put=params.get("tags") or {}, drop=params.get("names") or (),
    )  # fmt: skip


def _put(engine: Engine, source: str, params: Params) -> Answer:
    return replication.put_replication(
        engine,
        source,
        params["document"],
        size_bytes=params.get("size_bytes", 0),
        dry_run=params.get("dry_run", False),
    )


def _backfill(engine: Engine, source: str, params: Params) -> Answer:
    return backfills.accept(engine.region_of(source), source, params.get("statuses") or (), params.get("rules") or ())


def _jobs(engine: Engine, params: Params) -> Answer:
    """The backfills of a bucket or of all; of one job where it is named."""
    source = params.get("source") or ""
    addresses = [engine.site.bucket(source).address] if source else sorted(engine.site.buckets)
    found = [job for address in addresses for job in backfills.listing(engine, address)]
    return {"Jobs": [job for job in found if params.get("job") in (None, job["JobId"])]}


def _cancel(engine: Engine, params: Params) -> Answer:
    job_id = params["job"]
    for region in engine.regions.values():
        for address, place in list(region.places.items()):
            if job_id in place.jobs:
                return engine.ask(region.name, functools.partial(backfills.cancel, region, address, job_id))
    ended = backfill_jobs.find(engine.site, job_id)
    raise Refused("InvalidRequest", f"job {job_id} of {ended.bucket} has ended: it is {ended.state}")


def _repair(engine: Engine, params: Params) -> Answer:
    """Mend one version, or a directory: its path ends in a slash. The caller looks whether it is whole now."""
    address = str(params["bucket"])
    engine.site.bucket(address)
    path = base64.b64decode(params["path"])
    if path.endswith(b"/"):
        region = engine.region_of(address)
        engine.ask(region.name, functools.partial(following.restore, region, address, path[:-1]))
        return {}
    repair.repair(engine, repair.Target(params["bucket"], path, params["version"], bool(params["marker"])))
    return {}


def _look(engine: Engine, params: Params) -> Answer:
    """Have capture look at keys whose files may differ from their record without an event. Waits for nothing."""
    address = engine.site.bucket(params["bucket"]).address
    engine.region_of(address).look_at(address, [base64.b64decode(key) for key in params["keys"]])
    return {}


def _capture(engine: Engine, bucket: str, params: Params) -> Answer:
    """The same, and wait until they are captured, as far as that can be done now."""
    engine.region_of(bucket).flush(bucket, [base64.b64decode(key) for key in params["keys"]])
    return {}


def _pass(engine: Engine, params: Params) -> Answer:
    """Return when every region has finished what it was at when this was asked."""
    for name in list(engine.regions):
        with contextlib.suppress(TimeoutError):
            engine.ask(name, lambda: None, _PASS_S)
    return {}


def _check_site(engine: Engine, params: Params) -> Answer:
    return {"Site": str(Path(engine.settings.path).parent)}


OPERATIONS: dict[str, Callable[[Engine, Params], Answer]] = {
    "region.add": lambda e, p: sites.add_region(
        e, p["name"], p["path"], replaced=p.get("replace", False), umask=p.get("umask")
    ),
    "region.forget": lambda e, p: sites.forget_region(e, p["name"]),
    "bucket.create": _in_region(
        "bucket",
        lambda e, b, p: buckets.create_bucket(e, b, versioning=p.get("versioning", False), umask=p.get("umask")),
    ),
    "bucket.adopt": _adopt,
    "bucket.rm": _in_region("bucket", lambda e, b, p: buckets.remove_bucket(e, b, purge=p.get("purge", False))),
    "versioning.set": _in_region("bucket", _versioning),
    "replication.enable": _in_region("source", _enable),
    "replication.put": _in_region("source", _put),
    "replication.disable": _in_region("source", lambda e, b, p: replication.disable_replication(e, b)),
    "replication.rm": _in_region("source", lambda e, b, p: replication.remove_replication(e, b)),
    "replication.backfill": _in_region("source", _backfill),
    "replication.cancel": _cancel,
    "replication.jobs": _jobs,
    "role.create": lambda e, p: roles.create_role(e, p["name"], p["source"], p["destinations"]),
    "role.rm": lambda e, p: roles.remove_role(e, p["name"]),
    "object.restore": _restore,
    "object.rm": _in_region("bucket", _remove),
    "tag.set": _in_region("bucket", _tag),
    "tag.rm": _in_region("bucket", _tag),
    "verify.repair": _repair,
    "look": _look,
    "capture": _in_region("bucket", _capture),
    "pass": _pass,
    "doctor": lambda e, p: doctor_facts.where_it_works(e.site, e.probes.ask),
    "site": _check_site,
    "retry": _retry,
}
