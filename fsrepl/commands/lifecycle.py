"""Lifecycle configurations by command: stored, run, and previewed."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator

from fsrepl.commands.documents.lifecycle import due
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import PutLifecycle, RemoveLifecycle, RunLifecycle
from fsrepl.daemon.worker import Worker
from fsrepl.errors import Refused, Unavailable
from fsrepl.lifecycle import run
from fsrepl.lifecycle.judge import Due, Judge
from fsrepl.model import keys
from fsrepl.model.amounts import counted
from fsrepl.model.keys import Document
from fsrepl.model.lifecycle import Lifecycle
from fsrepl.model.version import Versioning
from fsrepl.region.lifecycle_state import LifecycleRun
from fsrepl.s3 import lifecycle
from fsrepl.s3.due import Kind
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.documents import remove_document, write_document
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site

_ALL = 1 << 60
_PATIENCE_S = 1.0
_REFUSALS_MAX = 5
"""After so many in a row, some seconds apart, a command does not wait for the disk any longer."""


def configuration(site: Site, address: str) -> Lifecycle:
    """The lifecycle of a bucket. Raises Refused(NoSuchLifecycleConfiguration)."""
    bucket = site.bucket(address)
    with bucket.open():
        return _required(bucket.lifecycle, address)


def _required(found: Lifecycle | None, address: str) -> Lifecycle:
    if found is None:
        raise Refused(
            "NoSuchLifecycleConfiguration",
            f"{address} has no lifecycle configuration; `fsrepl lifecycle put {address} FILE` sets one",
        )
    return found


def put_lifecycle(engine: Engine, request: PutLifecycle) -> Document:
    """Validate and save a configuration, and apply it from now on. Raises Refused with S3's codes."""
    bucket = engine.site.bucket(str(request.bucket))
    document = dict(lifecycle.read_new(request.document).document)
    with bucket.open() as opened:
        write_document(engine.fs, opened.meta, b"lifecycle.json", document)
        bucket.refresh(opened)
    run.begin(engine.journal, bucket.address, engine.site.now())
    engine.region_of(bucket.address).follow(bucket.address)
    return document


def remove_lifecycle(engine: Engine, request: RemoveLifecycle) -> Document:
    """Remove a configuration; as in S3, that there was none is no error."""
    bucket = engine.site.bucket(str(request.bucket))
    with bucket.open() as opened:
        if bucket.lifecycle is None:
            return {"Bucket": bucket.address, "Removed": False}
        remove_document(engine.fs, opened.meta, b"lifecycle.json")
        bucket.refresh(opened)
    engine.region_of(bucket.address).follow(bucket.address)
    return {"Bucket": bucket.address, "Removed": True}


def run_lifecycle(engine: Engine, request: RunLifecycle) -> Document:
    """Carry out what is due, a slice at a time; between two slices the region does its other work.

    Waiting changes are captured first. Raises Refused(NoSuchLifecycleConfiguration), Unavailable; also where the disk
    goes on refusing.
    """
    address = engine.site.bucket(str(request.bucket)).address
    region, going = engine.region_of(address), LifecycleRun(engine.site.now())
    _required(region.ask(lambda: region.flush(address).bucket.lifecycle), address)
    with engine.tasks.begin(str(request), engine.journal.totals.keys(address)) as task:
        while region.ask(functools.partial(_go_on, region, address, going)):
            if going.refused >= _REFUSALS_MAX:
                raise Unavailable(_gives_up(address, going))
            task.done = min(going.judged, task.total or going.judged)  # some keys are judged again
            time.sleep(min(_PATIENCE_S, max(0.0, going.due_s - time.monotonic())))
            going.due_s = 0.0
    return {
        "Bucket": address,
        "Judged": going.judged,
        "Done": {kind.value: going.done.get(kind.value, 0) for kind in Kind},
        "Blocked": going.blocked,
        "Busy": [keys.text(key) for key in going.again],
    }


def _gives_up(address: str, going: LifecycleRun) -> str:
    done = sum(going.done.values())
    return (
        f"the lifecycle run of {address} cannot go on: {going.why}; {counted(done, 'action')} carried out; once that "
        "is mended run the command again, or the daemon does the rest after midnight UTC"
    )


def _go_on(region: Worker, address: str, going: LifecycleRun) -> bool:
    """Run one slice; whether more are left."""
    state = region.flush(address, list(going.again)) if going.again else region.ready(address)
    with run.guarded(region, state):
        return run.go_on(region, state, going)
    raise Unavailable(f"the lifecycle run of {address} has stopped: {state.why}; run the command again")


def preview(
    site: Site, journal: Journal, address: str, at_ns: int, document: object = None
) -> Iterator[Document]:  # fmt: skip
    """The actions of a run at a given time, and what delays others. document: a configuration to be tried; None: the
    saved one. Raises Refused, with NoSuchLifecycleConfiguration where none is saved."""
    bucket = site.bucket(address)
    with bucket.open() as opened:
        rules = _required(bucket.lifecycle, address) if document is None else lifecycle.read_new(document)
        judge = Judge(site, journal, opened, rules, at_ns)
        for each in _all_due(opened, judge):
            yield due(each)


def _all_due(bucket: OpenBucket, judge: Judge) -> Iterator[Due]:
    todo, last = [b""], None
    while True:
        if bucket.bucket.versioning is Versioning.OFF:
            found = judge.look_below(todo, time.monotonic(), _ALL)
        else:
            found = judge.look(last, float("inf"), _ALL)
        yield from found.due
        if found.is_over:
            return
        last = found.last


def upcoming(site: Site, journal: Journal, bucket: OpenBucket, key: bytes, version_id: str) -> list[Document]:
    """Future lifecycle actions on one version, the earliest first; empty without a lifecycle."""
    if bucket.bucket.lifecycle is None:
        return []
    asked = Judge(site, journal, bucket, bucket.bucket.lifecycle, 0).upcoming(key)
    return [due(each) for each in asked if each.action.version_id == version_id]
