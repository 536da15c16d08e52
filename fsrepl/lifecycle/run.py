"""Lifecycle runs: once a day after midnight UTC through each bucket that has rules, a slice a turn.

The journal has the midnight of each bucket's last complete run, so that runs that were missed are made up for by one
run. A run that is interrupted begins again at the next start: actions that were done are not due any more. New rules
wait for the next midnight, or for `fsrepl lifecycle run`. Source: s3-semantics, 5.3.
"""

from __future__ import annotations

import contextlib
import logging
import time

from fsrepl.errors import FsreplError, reason
from fsrepl.lifecycle import act
from fsrepl.lifecycle.judge import Judge, Slice
from fsrepl.model.version import Versioning
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.lifecycle_state import LifecycleRun
from fsrepl.region.region import Region
from fsrepl.s3.lifecycle import DAY_NS
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.questions import Facts

log = logging.getLogger("fsrepl")

_LOOK_S = 1.0
_STEP_S = 0.05
_SLICE_MAX_S = 0.25
"""A slice of a versioned bucket takes some 15 ms of CPU time to judge. A busy machine shall not make it a small one,
since each has its own syncs."""
_BATCH = 1024
_TRIES = 5
_AGAIN_S, _AGAIN_MAX_S = 1.0, 60.0


def step(region: Region) -> bool:
    """Go on with the runs of a region for a moment; whether there was anything to do."""
    busy = False
    for state in list(region.states.values()):
        if not _is_ready(state) or (state.lifecycle.run is None and time.monotonic() < state.lifecycle.look_s):
            continue
        try:
            with guarded(region, state):
                busy |= _step(region, state)
        except (FsreplError, OSError) as error:
            if state.lifecycle.run is not None:
                _later(state, state.lifecycle.run, reason(error))
    return busy


def next_s(state: BucketState) -> float | None:
    """The monotonic time when a bucket's run goes on; None where none does."""
    return state.lifecycle.run.due_s if state.lifecycle.run is not None and _is_ready(state) else None


def guarded(region: Region, state: BucketState) -> contextlib.AbstractContextManager[None]:
    """Around work in a bucket: an error in the midst of it suspends the bucket, which finishes it as it comes up.

    One that was never versioned does not come up, and has nothing to finish: there it is raised.
    """
    return contextlib.nullcontext() if state.bucket.versioning is Versioning.OFF else region.at_work(state)


def _step(region: Region, state: BucketState) -> bool:
    if state.lifecycle.run is None:
        state.lifecycle.look_s = time.monotonic() + _LOOK_S
        state.lifecycle.run = _due(region, state)
    run = state.lifecycle.run
    if run is None or run.due_s > time.monotonic():
        return False
    if not go_on(region, state, run):
        remember(region.engine.journal, state.bucket.address, run.now_ns)
        state.lifecycle.run = None
    return True


def _is_ready(state: BucketState) -> bool:
    """Whether changes made while a bucket was not watched are recorded, as far as its changes are recorded at all."""
    if state.bucket.versioning is Versioning.OFF:
        return bool(state.bucket.seen) and not state.bucket.trouble
    return state.is_scanned


def _due(region: Region, state: BucketState) -> LifecycleRun | None:
    """A new run, where the last one was before the last midnight."""
    if state.bucket.lifecycle is None:
        if state.lifecycle.has_rules:
            _set(region.engine.journal, state.bucket.address, "")
            state.lifecycle.has_rules = False
        return None
    state.lifecycle.has_rules = True
    now_ns, said = region.engine.site.now(), region.engine.journal.fact(_fact(state.bucket.address))
    midnight_ns = now_ns // DAY_NS * DAY_NS
    if not said or int(said) > midnight_ns:  # its rules are new, or the clock was set back
        remember(region.engine.journal, state.bucket.address, now_ns)
        return None
    return LifecycleRun(now_ns) if int(said) < midnight_ns else None


def begin(facts: Facts, address: str, now_ns: int) -> None:
    """The rules are new or have changed: actions that they make due wait for the next midnight."""
    if not facts.fact(_fact(address)):
        remember(facts, address, now_ns)


def remember(facts: Facts, address: str, now_ns: int) -> None:
    """A bucket was gone through, as of a moment."""
    _set(facts, address, str(now_ns // DAY_NS * DAY_NS))


def _fact(address: str) -> str:
    return f"lifecycle {address}"


def _set(facts: Facts, address: str, value: str) -> None:
    if facts.fact(_fact(address)) != value:
        with facts.transaction():
            facts.set_fact(_fact(address), value)


def go_on(region: Region, state: BucketState, run: LifecycleRun) -> bool:
    """Judge the next keys of a bucket, and do what is due; whether the run goes on.

    Raises FsreplError or OSError: where something is half done, the bucket has to come up again.
    """
    with state.bucket.open() as bucket:
        lifecycle = bucket.bucket.lifecycle
        if lifecycle is None:
            return False
        judge = Judge(region.engine.site, region.engine.journal, bucket, lifecycle, run.now_ns)
        if not run.judged:
            act.give_up_staged(bucket, lifecycle, run.now_ns)
        was = run.last, list(run.todo), run.is_over, dict(run.again)
        found = _look(region, bucket, judge, run)
        try:
            if bucket.bucket.versioning is Versioning.OFF:
                act.remove_files(bucket, run, found.due)
            else:
                act.ActionGroup(region, state, bucket, judge, run).carry_out(found.due)
        except act.NotBegun as error:
            run.last, run.todo, run.is_over, run.again = was
            _later(state, run, str(error))
            return True
    run.refused, run.why = 0, ""
    if found.due:
        region.engine.notify()
    run.judged += found.judged
    if not run.is_over:
        return True
    return _goes_on(state, run)


def _look(region: Region, bucket: OpenBucket, judge: Judge, run: LifecycleRun) -> Slice:
    """The next slice; once all are through, the keys that were not ready then."""
    now_s = time.monotonic()
    if bucket.bucket.versioning is Versioning.OFF:
        if not run.judged or run.refused:
            act.put_back_files(bucket)
        found = judge.look_below(run.todo, now_s + _STEP_S, _BATCH)
        run.is_over = found.is_over
        return found
    if run.is_over:
        again, run.again = list(run.again), {}
        found = judge.look_at(again)
    else:
        found = judge.look(run.last, now_s + _SLICE_MAX_S, _BATCH)
        run.last, run.is_over = found.last, found.is_over
    if found.read:
        region.engine.journal.versions.set_traits(bucket.address, found.read)
    return found


def _later(state: BucketState, run: LifecycleRun, why: str) -> None:
    run.refused, run.why = run.refused + 1, why
    run.due_s = time.monotonic() + min(_AGAIN_MAX_S, _AGAIN_S * 2.0 ** min(run.refused - 1, 10))
    level = logging.WARNING if run.refused == 1 else logging.DEBUG
    log.log(level, "lifecycle waits bucket=%s: %s", state.bucket.address, why)


def _goes_on(state: BucketState, run: LifecycleRun) -> bool:
    """All keys are through: whether some are tried once more. Those that are never ready wait for the next run."""
    if run.again and run.tries < _TRIES:
        run.tries += 1
        run.due_s = time.monotonic() + _AGAIN_S * 2.0 ** (run.tries - 1)
        return True
    if run.done or run.blocked or run.again:
        done = "".join(f" {name}={number}" for name, number in sorted(run.done.items()))
        log.info(
            "lifecycle ended bucket=%s keys=%d%s blocked=%d busy=%d",
            state.bucket.address, run.judged, done, run.blocked, len(run.again),
        )  # fmt: skip
    return False
