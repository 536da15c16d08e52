"""The operation of each request that changes something: run by the daemon, or by the command where none runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fsrepl.commands import (
    archives,
    backfills,
    buckets,
    doctor_facts,
    heal,
    hosts,
    lifecycle,
    objects,
    regions,
    replication,
    roles,
    scrubs,
    services,
    tiers,
    trees,
    undelete,
    versioning,
)
from fsrepl.commands.why import REMEDIES, reason_code
from fsrepl.daemon import requests
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import OnBucket, OnObject, OnSource, Request
from fsrepl.daemon.worker import Worker
from fsrepl.errors import ContentDamaged, FsreplError, Refused, Unavailable, Usage, reason
from fsrepl.model import keys
from fsrepl.repair import repair
from fsrepl.repair.target import Target
from fsrepl.settings import Settings
from fsrepl.storage import backfill_jobs
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views import following

__all__ = ["OPERATIONS", "local_engine", "run"]

_RETRIED_AT_ONCE = 64
_PASS_S = 5.0
"""How long a region that hangs can delay a caller."""

Answer = dict[str, object]
R = TypeVar("R", bound=Request)
B = TypeVar("B", bound=OnBucket)
L = TypeVar("L", bound=OnBucket | OnSource | OnObject)
Row = tuple[type[Request], Callable[[Engine, Any], Answer]]


def run(engine: Engine, request: Request) -> Answer:
    """Run the operation of a request. Raises FsreplError; a refused request changes nothing."""
    try:
        with engine.journal_faults_as_unavailable():
            answer = hosts.perform(engine, request)
            return OPERATIONS[type(request)](engine, request) if answer is None else answer
    except OSError as error:
        raise FsreplError(f"{request}: {reason(error)}") from error


@contextlib.contextmanager
def local_engine(settings: Settings) -> Iterator[Engine]:
    """A site at work without a daemon. The caller has the site's lock."""
    engine = Engine(settings)
    try:
        yield engine
        for region in engine.receivers.values():
            region.last_turn()
    finally:
        engine.close()


def _bucket_of(request: OnBucket | OnSource | OnObject) -> str:
    match request:
        case OnBucket():
            return request.bucket.bucket
        case OnSource():
            return request.source.bucket
        case OnObject():
            return request.address.bucket


def _ask_region(engine: Engine, request: L, step: Callable[[Engine, L], Answer]) -> Answer:
    """Run a step in the thread of its region."""
    if request.region in engine.site.destinations:
        engine.site.bucket(_bucket_of(request))  # raises: what is asked is of a bucket here
    if request.region not in engine.regions:
        raise Usage(engine.site.no_region(request.region))
    return engine.regions[request.region].ask(lambda: step(engine, request))


def _add_region(engine: Engine, request: requests.AddRegion) -> Answer:
    if request.path.startswith("ssh://"):
        return hosts.add(engine, request)
    return services.add(engine, request) if "://" in request.path else regions.add_region(engine, request)


def _adopt(engine: Engine, request: requests.AdoptBucket) -> Answer:
    """Turn a folder into a bucket, or restore a bucket of the site that has lost its .fsrepl or its folder."""
    known = engine.site.buckets.get(str(request.bucket))
    if known is not None and heal.is_lost(engine.site, known):
        if not (request.dry_run or request.although_away):
            heal.require_all(engine.site, known)
        return buckets.heal_bucket(
            engine, known.address, dry_run=request.dry_run, umask=request.umask, trees=request.trees
        )
    return _ask_region(
        engine, request, lambda e, r: buckets.adopt_bucket(e, r.bucket, dry_run=r.dry_run, trees=r.trees)
    )


def _retry(engine: Engine, request: requests.Retry) -> Answer:
    scope = request.scope
    key = scope.key if scope else b""
    addresses = [scope.bucket] if scope else sorted(engine.site.buckets)
    number, left_out = 0, dict[str, str]()
    _check_reason(engine, addresses, request.reason)
    for address in addresses:
        engine.site.bucket(address)
        home = engine.region_of(address)
        if home.name in left_out:
            continue
        try:
            if why := home.ask(functools.partial(_why_away, home, address, asked=scope is not None)):
                if objects.pending(home, address, key):
                    left_out[address] = why
                continue
            number += _retry_in(home, address, key, request)
        except Unavailable as error:
            if scope or not home.pulse.is_stuck:
                raise
            left_out[home.name] = str(error)
    return {"Retried": number, **({"LeftOut": [*dict.fromkeys(left_out.values())]} if left_out else {})}


def _check_reason(engine: Engine, addresses: Sequence[str], reason: str) -> None:
    """Raises Usage for a reason that neither fsrepl knows nor any failure has: it is misspelt."""
    if not reason or reason in REMEDIES:
        return
    with engine.journal.guard:
        found = {each for address in addresses for _, _, each, _, _ in engine.journal.deliveries.failures(address)}
    if not any(_is_for(reason, each) for each in found):
        there = f"failures here have {', '.join(sorted(found))}; " if found else ""
        raise Usage(f"no reason is called {keys.shown(reason.encode())!r}; {there}known are {', '.join(REMEDIES)}")


def _is_for(wanted: str, reason: str) -> bool:
    """Whether a recorded reason is a given one, by S3's name for it or as it is recorded."""
    return wanted in (reason, reason_code(reason))


def _why_away(home: Worker, address: str, *, asked: bool) -> str:
    """Why a bucket allows no retry; for a bucket that the user named, only whether its region is away."""
    try:
        with home.engine.site.open_region(home.name):
            state = home.states.get(address)
            if asked or (state is not None and state.is_up):
                return ""
            return home.engine.site.buckets[address].trouble or f"bucket {address} is not up yet"
    except FsreplError as error:
        return str(error)


def _retry_in(home: Worker, address: str, prefix: bytes, request: requests.Retry) -> int:
    """Retry failed deliveries of one bucket, some at a time; in between its region does its other work."""
    failed = [each for each in home.ask(lambda: objects.failed(home, address, prefix)) if _is_asked(each, request)]
    number = 0
    if not (request.destination or request.rule or request.reason):
        number = home.ask(lambda: objects.retry_waiting(home, address, prefix))
    with home.engine.tasks.begin(str(request), len(failed)) as task:
        for start in range(0, len(failed), _RETRIED_AT_ONCE):
            some = failed[start : start + _RETRIED_AT_ONCE]
            number += home.ask(lambda some=some: objects.retry(home, address, some))  # type: ignore[misc]
            task.add(len(some))
    return number


def _is_asked(delivery: Delivery, request: requests.Retry) -> bool:
    """Whether a failed delivery is of the kind that a request names."""
    return (
        request.destination in ("", delivery.destination)
        and request.rule in ("", delivery.rule)
        and (not request.reason or _is_for(request.reason, delivery.reason))
    )


def _restore(engine: Engine, request: requests.RestoreObject) -> Answer:
    """Restore a version; where its content is damaged here, a good copy is fetched first."""
    try:
        return _ask_region(engine, request, objects.restore)
    except ContentDamaged as error:
        address, path = request.address, keys.stored_path(request.address.key)
        target = Target(address.bucket, path, error.version_id, marker=False)
        if not repair.repair(engine.region_of(address.bucket), target):
            raise
        return _ask_region(engine, request, objects.restore)


def _backfills(engine: Engine, request: requests.ListBackfills) -> Answer:
    """The backfill jobs of a bucket or of all buckets; only one job where it is named."""
    source = request.source
    addresses = [engine.site.bucket(str(source)).address] if source else sorted(engine.site.buckets)
    found = [job for address in addresses for job in backfills.listing(engine, address)]
    return {"Jobs": [job for job in found if request.job in (None, job["JobId"])]}


def _cancel(engine: Engine, request: requests.CancelBackfill) -> Answer:
    for region in engine.regions.values():
        for address, state in list(region.states.items()):
            if request.job in state.backfills.jobs:
                return region.ask(functools.partial(backfills.cancel, region, address, request.job))
    ended = backfill_jobs.find(engine.site, request.job)
    raise Refused("InvalidRequest", f"job {request.job} of {ended.bucket} has ended: it is {ended.state}")


def _repair(engine: Engine, request: requests.Repair) -> Answer:
    """Repair one version; or, without its id, the rights of a directory that is no object. The caller checks the
    result."""
    if request.region in engine.site.destinations:
        services.repair(engine, request)
        return {}
    address, path = engine.site.bucket(str(request.bucket)).address, request.path
    if not request.version_id:
        region = engine.region_of(address)
        region.ask(functools.partial(following.restore, region, address, path[:-1]))
        return {}
    repair.repair(engine.region_of(address), Target(address, path, request.version_id, request.marker))
    return {}


def _look(engine: Engine, request: requests.Look) -> Answer:
    address = engine.site.bucket(str(request.bucket)).address
    engine.region_of(address).look_at(address, request.keys)
    return {}


def _capture(engine: Engine, request: requests.Capture) -> Answer:
    address = str(request.bucket)
    engine.region_of(address).flush(address, request.keys)
    return {}


def _finish_turn(engine: Engine, request: requests.FinishTurn) -> Answer:
    for region in list(engine.receivers.values()):
        with contextlib.suppress(TimeoutError):
            region.ask(lambda: None, _PASS_S)
    return {}


def _note_verification(engine: Engine, request: requests.NoteVerification) -> Answer:
    if request.is_over:
        engine.verifications.end(request.token)
    else:
        source = engine.site.bucket(str(request.source)).address
        engine.verifications.note(request.token, source, request.bytes_done, request.bytes_total)
    return {}


def _does(kind: type[R], step: Callable[[Engine, R], Answer]) -> Row:
    """A row of the table: a kind of request, and the step that receives it."""
    return kind, step


def _in_region(kind: type[L], step: Callable[[Engine, L], Answer]) -> Row:
    """A row whose step runs in the thread of its region."""
    return kind, lambda engine, request: _ask_region(engine, request, step)


def _of_bucket(kind: type[B], step: Callable[[Engine, B], Answer], of_service: Callable[[Engine, B], Answer]) -> Row:
    """A row about a bucket here, whose step runs in the thread of its region, or about a bucket of an S3 service."""

    def run(engine: Engine, request: B) -> Answer:
        if request.region in engine.site.services:
            return of_service(engine, request)
        return _ask_region(engine, request, step)

    return kind, run


OPERATIONS: Mapping[type[Request], Callable[[Engine, Any], Answer]] = dict(
    [
        _does(requests.AddRegion, _add_region),
        _does(requests.AddTier, tiers.add_tier),
        _does(requests.RemoveTier, tiers.remove_tier),
        _does(requests.ForgetRegion, lambda e, r: regions.forget_region(e, r.name)),
        _of_bucket(requests.CreateBucket, buckets.create_bucket, services.create_bucket),
        _does(requests.AdoptBucket, _adopt),
        _in_region(requests.SetTrees, lambda e, r: trees.set_trees(e, str(r.bucket), on=r.on)),
        _in_region(requests.RemoveBucket, buckets.remove_bucket),
        _of_bucket(
            requests.SetVersioning,
            lambda e, r: versioning.set_versioning(e, str(r.bucket), r.status),
            services.set_versioning,
        ),
        _in_region(requests.EnableReplication, replication.enable_replication),
        _in_region(requests.PutReplication, replication.put_replication),
        _in_region(requests.DisableReplication, lambda e, r: replication.disable_replication(e, str(r.source))),
        _in_region(requests.RemoveReplication, lambda e, r: replication.remove_replication(e, str(r.source))),
        _in_region(requests.Backfill, backfills.accept),
        _does(requests.CancelBackfill, _cancel),
        _does(requests.ListBackfills, _backfills),
        _in_region(requests.PutLifecycle, lifecycle.put_lifecycle),
        _in_region(requests.RemoveLifecycle, lifecycle.remove_lifecycle),
        _does(requests.RunLifecycle, lifecycle.run_lifecycle),
        _does(requests.RunScrub, scrubs.run_scrub),
        _does(requests.PauseScrub, scrubs.pause_scrub),
        _does(requests.CreateRole, roles.create_role),
        _does(requests.RemoveRole, lambda e, r: roles.remove_role(e, r.name)),
        _does(requests.RestoreObject, _restore),
        _does(requests.RestoreArchived, archives.restore),
        _in_region(requests.RemoveObject, objects.remove),
        _in_region(requests.Acknowledge, undelete.acknowledge),
        _in_region(requests.Undelete, undelete.undelete),
        _in_region(requests.SetTags, objects.set_tags),
        _in_region(requests.RemoveTags, objects.remove_tags),
        _does(requests.Repair, _repair),
        _does(requests.Look, _look),
        _in_region(requests.Capture, _capture),
        _does(requests.FinishTurn, _finish_turn),
        _does(requests.NoteVerification, _note_verification),
        _does(requests.Diagnose, lambda e, r: doctor_facts.where_it_works(e.site, e.probes.ask)),
        _does(requests.LookAtServices, lambda e, r: {"Services": services.look(e.site)}),
        _does(requests.GetSite, lambda e, r: {"Site": str(Path(e.settings.path).parent)}),
        _does(requests.Retry, _retry),
        _does(requests.Examine, hosts.examine),
        _does(requests.RecallVersions, hosts.recall),
        _does(requests.LookAtHost, hosts.look),
    ]
)
