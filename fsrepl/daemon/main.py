"""The daemon: starts the regions' threads, answers commands, notifies systemd, stops cleanly. Read this first.

The steps for an object are in the regions' threads (daemon/worker.py: turn). This file has the rest:
readiness, signals, the control socket, the barrier of `fsrepl wait`, and the watchdog.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from msgspec import Struct

from fsrepl.capture.watch import open_watcher
from fsrepl.daemon import control, exporter, live, memory, metrics, requests, samples, systemd
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.exporter import Exporter
from fsrepl.daemon.hooks import Hooks
from fsrepl.daemon.lock import FILE, Lock
from fsrepl.daemon.log_output import LogOutput
from fsrepl.daemon.requests import Request, Wait
from fsrepl.daemon.samples import Samples
from fsrepl.errors import FsreplError, NotRunning, Refused
from fsrepl.model import clock
from fsrepl.region.places import Place, open_places
from fsrepl.region.stager import Stager, command
from fsrepl.remote import client
from fsrepl.replicate import thresholds
from fsrepl.settings import Settings, reading
from fsrepl.storage import probe
from fsrepl.storage.journal import database
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.probe import Threads

log = logging.getLogger("fsrepl")


_TURN_S, _STARTING_S, _REST_S = 1.0, 0.2, 60.0
"""Between two turns; before the daemon is ready, since that is waited for; and while there is nothing to do."""
STDERR = 2
_WORKERS_S, _REGIONS_S, _STATE_S = 2.0, 5.0, 1.0
"""How long a stop waits for background workers, for the regions, and for the state folder: within 10 s in all."""
_STATE_LOOK_S = 5.0
"""How often the state folder is looked at while there is work: each look wakes up two threads."""
_TELL_S = 10.0
"""How often a daemon that is not ready yet logs how far it is."""
_SWITCH_S = 0.001
"""Seconds that a busy thread keeps others waiting: the thread that reads events must never wait long."""
_KEPT = frozenset({FILE.encode(), control.SOCKET.encode()})
"""The files of the state folder that nobody may remove while the daemon runs."""
_STAGER = "fsrepl.daemon.stager_process:main"


class Commands(Struct, frozen=True):
    """Handlers of requests that need more than the daemon itself; passed in, since they are above the daemon in the
    import order.
    """

    run: Callable[[Engine, Request], dict[str, object]]
    """Carry out a request."""
    wait: Callable[[Engine, Wait, Callable[[], bool]], dict[str, object]]
    """Wait as a request says, or until its caller is gone."""


_FILES_MIN = 512
"""With fewer open files directories are opened again and again, and now and then a file is tried again later."""


def run(found: Settings, commands: Commands, *, verbose: int = 0, quiet: bool = False) -> int:
    """Run in the foreground until SIGTERM or SIGINT; the exit status."""
    signals = Signals()
    signals.listen({signal.SIGHUP: signals.reload})  # from now on: its default ends the process
    open_standard_streams()
    output = LogOutput(STDERR)
    log.addHandler(output)
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    exporter.check(found)
    check_services(found)
    prepare_process()
    os.makedirs(found.state, mode=0o700, exist_ok=True)
    with Lock(found.state) as lock:
        lock.acquire()
        daemon = Daemon(found, commands, lock, signals, output)
        status = daemon.run()
        if daemon.hangs:
            logging.shutdown()
            os._exit(status)  # the interpreter would wait for threads that may never end
        return status


def check_services(found: Settings) -> None:
    """Raises Usage where a region is an S3 service, and the package for it is not installed."""
    for name in found.endpoints:
        client.check_installed(name)


def open_standard_streams() -> None:
    """Open those that the caller closed: else a file of the site would get their descriptor, and what is printed."""
    for fd in (0, 1, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor is this one


def prepare_process() -> None:
    """Set what holds for a whole process that runs regions."""
    _raise_file_limit()
    os.umask(0o077)
    signal.signal(signal.SIGIO, signal.SIG_IGN)  # the signal of a broken lease
    sys.setswitchinterval(_SWITCH_S)
    memory.prepare()


def _raise_file_limit() -> None:
    """Use as many descriptors as the process may have. Where these are few, work goes on, and is slow."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES_MIN:
        log.warning(
            "only %d open files are allowed: work goes on, but slowly; allow %d or more (ulimit -n, LimitNOFILE=)",
            soft, _FILES_MIN,
        )  # fmt: skip


def commands_max(descriptors: int) -> tuple[int, int]:
    """The number of commands served at once, and how many of them may wait, by the descriptors of a process.

    The rest of the descriptors is for the regions, the rest of the commands for status, settings and repairs.
    """
    served = max(4, min(control.COMMANDS_MAX, descriptors // 2))
    return served, served * 3 // 4


class Signals:
    """The signals received, for the daemon's loop. Each ends a wait at once."""

    def __init__(self) -> None:
        self.stop, self.reload, self._came = threading.Event(), threading.Event(), threading.Event()

    def listen(self, wanted: Mapping[int, threading.Event]) -> None:
        """wanted: signal to the event that it sets."""
        for number, event in wanted.items():
            signal.signal(number, partial(self._note, event))

    def _note(self, event: threading.Event, *_: object) -> None:
        event.set()
        self._came.set()

    def wait(self, seconds: float) -> None:
        self._came.wait(seconds)
        self._came.clear()

    def end_wait(self) -> None:
        self._came.set()


class Daemon:
    def __init__(self, found: Settings, commands: Commands, lock: Lock, signals: Signals, output: LogOutput) -> None:
        self.commands, self.lock, self.output = commands, lock, output
        self.watcher, self.places = open_watcher(), open_places()
        self.engine = Engine(found, watcher=self.watcher, asks_first=True)
        self.since_ns = self.engine.site.now()
        self.ready = False
        self._tell_s = time.monotonic() + _TELL_S
        self._state, self._state_answers, self._look_s = Threads(_STATE_S), True, 0.0
        self._has_more, self._late_s = False, 0.0
        """Whether there is housekeeping left for the next turn, and how long no delivery becomes late."""
        self.hangs = False
        """Whether threads outlived the stop: they are in a filesystem that does not answer."""
        self._stager = Stager(command(_STAGER), self.engine.run_lock.released)
        self.hooks = Hooks(self.engine.reporter.eventlog)
        self.exporter = Exporter(self._gauges, self.engine.fs)
        self.samples = Samples(samples.load(self.engine.site.state))
        self._commands_max, self._waits_max = commands_max(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self._waits = threading.BoundedSemaphore(self._waits_max)
        self._signals, self._stop = signals, signals.stop
        self._rests = False
        """Whether this thread waits for work, and is woken up by it."""
        is_told = self.places is not None and not clock.is_from_file()
        self._rest_s = min(_REST_S, systemd.turn_max_s()) if is_told else _TURN_S
        self._state_is_told = False
        """Whether the kernel tells of changes in the state folder."""
        self._server: control.Server | None = None

    def run(self) -> int:
        self._signals.listen({signal.SIGTERM: self._stop, signal.SIGINT: self._stop})
        engine = self.engine
        engine.threaded = True
        engine.stager = self._stager
        self.hooks.configure(engine.settings.events)
        self.watcher.start()
        engine.stir, engine.places = self._stir, self.places
        if self.places is not None:
            self.places.start()
            engine.rest_s = _TURN_S if clock.is_from_file() else _REST_S
        for region in engine.receivers.values():
            region.start()
        self.exporter.configure(engine.settings.metrics)
        server = self._server = control.Server(engine.settings.state, self.handle, self._commands_max, _REST_S)
        log.info("started pid=%d site=%s", os.getpid(), engine.settings.path.parent)
        for why in engine.site.unattached():
            log.warning("not looked into: %s", why)
        status = 0
        try:
            while not self._stop.is_set():
                status = self._turn()
                if status:
                    break
                self._pause()
        finally:
            self._finish(server)
        return status

    def _pause(self) -> None:
        """Wait for the next turn: long where nothing goes on, until something does."""
        self._rests = self.ready and self._is_at_rest()  # in this order: who begins now sees it, or is seen
        if self._rests and self._is_at_rest():
            most_s = self._rest_s if self._state_is_told and self._state_answers else min(self._rest_s, _STATE_LOOK_S)
            self._signals.wait(max(_TURN_S, min(most_s, self._late_s)))
        else:
            self._signals.wait(_TURN_S if self.ready else _STARTING_S)
        self._rests = False

    def _is_at_rest(self) -> bool:
        """Whether nothing goes on that this thread looks after."""
        engine = self.engine
        return not (
            self._has_more
            or not engine.journal.is_whole
            or self._stager.pid
            or engine.transfers
            or engine.verifications.under_way()
            or any(region.busy_since_s for region in list(engine.receivers.values()))
        )

    def _stir(self) -> None:
        """Work begins, in another thread, which may hang in it: end the rest."""
        if self._rests:
            self._signals.end_wait()

    def _note_state(self) -> None:
        """Something has changed in the state folder."""
        self._look_s = 0.0
        self._signals.end_wait()

    def _turn(self) -> int:
        """Run one turn of the loop: notice changes, keep the site's lock, feed the watchdog."""
        if self._signals.reload.is_set():
            self._signals.reload.clear()
            self.reload()
        if (damage := self.engine.journal.damage_found) is not None and not database.is_passing(damage):
            log.error("stopping: the journal is damaged (%s); it is removed, and the next start makes it anew", damage)
            database.discard(self.engine.journal.path)
            return 1
        dead = [r.name for r in self.engine.receivers.values() if r.thread and not r.thread.is_alive()]
        if dead or not self.watcher.is_alive() or not (self.places is None or self.places.is_alive()):
            log.error("stopping: the thread of %s ended; the cause is above", ", ".join(dead) or "the watcher")
            return 1
        if not self.ready and all(region.has_looked() for region in self.engine.receivers.values()):
            self.ready = True
            log.info("ready watching=%d directories", self.watcher.watched)
            systemd.notify(f"READY=1\nSTATUS=watching {self.watcher.watched} directories")
        elif not self.ready:
            self._tell_scans()
        self._state.ask({"journal": self._look_after_journal})
        self.engine.look_for_stuck()
        self._stager.rest(time.monotonic())
        self._tell_of_transfers()
        self._look_after_state()
        systemd.notify("WATCHDOG=1")
        return 0

    def _look_after_journal(self) -> None:
        """Check it, find late deliveries in it, and give back its space. In a thread: see _look_after_state."""
        # The file that FSREPL_CLOCK names may be half written, or the journal's disk full.
        with contextlib.suppress(FsreplError), self.engine.journal_faults_as_unavailable():
            if self.ready:
                self.engine.journal.begin_check()
            self._has_more = thresholds.check(self.engine) | self.engine.journal.give_back_space()
            self._late_s = thresholds.next_s(self.engine)

    def _take_sample(self) -> None:
        """Count what is pending, for plots. Without the journal or the state the next turn tries again."""
        with contextlib.suppress(sqlite3.Error, OSError):
            began_s = time.monotonic()
            pending = self._count_pending()
            completed = self.engine.reporter.completed().values()
            totals = sum(number for number, _ in completed), sum(size for _, size in completed)
            now_s = time.monotonic()
            if self.samples.take(time.time(), now_s, pending, totals, now_s - began_s):
                self.samples.save(self.engine.fs, self.engine.site.state)

    def _count_pending(self) -> int:
        """By a connection of its own: the regions do not wait for it."""
        journal = Journal(self.engine.journal.path, read_only=True)
        try:
            return journal.deliveries.count_all_pending()
        finally:
            journal.close()

    def _look_after_state(self) -> None:
        """Keep the site's lock, and others out of the state folder; and count what is pending. In threads, since the
        filesystem of the state may hang, and this one has to notice signals."""
        if (now_s := time.monotonic()) < self._look_s:
            return
        self._look_s = now_s + _STATE_LOOK_S

        def look() -> None:
            if self.places is not None:
                there = [Place(os.fsencode(self.engine.site.state), _KEPT)]
                self._state_is_told = self.places.watch("the state", there, self._note_state)
            self.lock.keep()
            self.engine.keep_state_private()
            if self._server is not None:
                self._server.keep()

        due = {"sample": self._take_sample} if self.samples.is_due(now_s) else {}
        answers = "state" in self._state.ask({"state": look, **due})
        if not answers and self._state_answers:
            log.warning(
                "no command can be answered: the state, %s: %s", self.engine.site.state, probe.no_answer(_STATE_S)
            )
        self._state_answers = answers

    def _tell_of_transfers(self) -> None:
        """Log how far each transfer, capture and verification is that takes long."""
        now_s = time.monotonic()
        for progress in [*self.engine.transfers, *self.engine.verifications.under_way()]:
            if news := progress.news(now_s):
                log.info("%s", news)

    def _tell_scans(self) -> None:
        """Say how far the first scans are: always to systemd, and now and then in the log."""
        states = [state for region in list(self.engine.regions.values()) for state in list(region.states.values())]
        left = sum(state.is_up and not state.is_scanned for state in states)
        watched = self.watcher.watched
        systemd.notify(
            "EXTEND_TIMEOUT_USEC=60000000\n"
            f"STATUS=scanning, {left} of {len(states)} buckets left; watching {watched} directories"
        )
        now_s = time.monotonic()
        if now_s >= self._tell_s:
            self._tell_s = now_s + _TELL_S
            log.info("scanning buckets_left=%d of=%d watching=%d directories", left, len(states), watched)

    def reload(self) -> None:
        """Read the settings again; where they cannot be read the old ones stay in force."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            found = reading.load(self.engine.settings.path, partial(probe.real_path, ask=Threads(probe.LOOK_S).ask))
            exporter.check(found)
            check_services(found)
            with self.engine.journal_faults_as_unavailable():
                self.engine.reload(found)
            self.hooks.configure(found.events)
            self.exporter.configure(found.metrics)
            log.info("reloaded settings=%s", self.engine.settings.path)
        except FsreplError as error:
            log.error("not reloaded: %s", error)
        systemd.notify("READY=1")

    def _finish(self, server: control.Server) -> None:
        """Stop within seconds: finish the current batch; the rest is pending, and found again."""
        systemd.notify("STOPPING=1")
        state = Threads(_WORKERS_S)  # its filesystem may hang
        answers = bool(state.ask({"close": server.close}))
        self.engine.fs.interrupted = True
        self._stager.is_ending = True
        self.engine.stop_workers(_WORKERS_S)  # before the regions, which finish the results of background workers
        for region in self.engine.receivers.values():
            region.stopping = True
            region.wake()
        until_s = time.monotonic() + _REGIONS_S
        for region in self.engine.receivers.values():
            if region.thread is not None:
                region.thread.join(0.1 if region.pulse.is_stuck else max(0.1, until_s - time.monotonic()))
        self._stager.end()
        self.watcher.stop()
        if self.places is not None:
            self.places.stop()
        self.ready = False
        self.exporter.close()
        answers = answers and bool(state.ask({"last": self._close_state}))
        regions = [r.name for r in self.engine.receivers.values() if r.thread and r.thread.is_alive()]
        self.hangs = bool(regions) or not answers or not self.engine.stop_workers(_WORKERS_S)
        if self.hangs:
            log.warning("left behind regions=%s: a filesystem hangs", ",".join(regions) or "-")
        else:
            self.engine.close()
        log.info("stopped pid=%d", os.getpid())

    def _close_state(self) -> None:
        """Write what is kept in the state folder for the next start."""
        self._take_sample()
        self.samples.end()
        with contextlib.suppress(OSError):
            self.samples.save(self.engine.fs, self.engine.site.state)
        self.hooks.close()

    def _gauges(self) -> list[metrics.Gauge]:
        """The exported gauges, through their own journal connection, for the exporter's threads."""
        journal = Journal(self.engine.journal.path, read_only=True)
        try:
            daemon = metrics.Daemon(
                self.ready, self.watcher.watched, self.watcher.overflows, self._spaces(),
                self.engine.reporter.completed(), self.output.dropped,
            )  # fmt: skip
            return list(metrics.gauges(self.engine.site, journal, daemon))
        finally:
            journal.close()

    def _spaces(self) -> dict[str, tuple[int, int]]:
        """Bytes free and in all of each region that answers in time."""
        site = self.engine.site

        def space(region: str) -> tuple[int, int] | None:
            try:
                with site.open_region(region) as at:
                    return site.fs.space(at)
            except (FsreplError, OSError):
                return None

        names = {f"space of {name}": name for name in site.settings.regions}
        answers = self.engine.probes.ask({what: partial(space, name) for what, name in names.items()})
        return {names[what]: found for what, found in answers.items() if found is not None}

    # -- commands

    def handle(self, request: Request, alive: control.Alive) -> dict[str, object]:
        """Answer one request of the control socket, in its own thread."""
        self._stir()
        match request:
            case requests.GetStatus():
                return self.status()
            case requests.GetSamples():
                return self.samples.document()
            case requests.GetProgress():
                task = self.engine.tasks.find(request.of)
                return {"Done": task.done, "Total": task.total}
            case requests.GetStatusPage():
                return live.page(self.engine, str(request.bucket), request.list, request.after)
            case requests.ExplainObject():
                return live.of_key(self.engine, request.address)
            case Wait():
                return self._wait(request, alive)
            case _:
                return self.commands.run(self.engine, request)

    def _wait(self, request: Wait, alive: control.Alive) -> dict[str, object]:
        """Wait for all in scope. The number of waits is limited, so that other commands are still served."""
        if not self._waits.acquire(blocking=False):
            most = self._waits_max
            raise Refused(control.TOO_MANY, f"{most:,} commands wait already, which is as many as may; try again later")
        try:
            given_up = lambda: self._stop.is_set() or not alive()  # noqa: E731
            try:
                with self.engine.journal_faults_as_unavailable():
                    answer = self.commands.wait(self.engine, request, given_up)
            except (sqlite3.Error, FsreplError):
                if not self._stop.is_set():
                    raise
                raise _ended() from None  # the journal may be closed by now
            if self._stop.is_set() and answer["pending"]:
                raise _ended()
            return answer
        finally:
            self._waits.release()

    def status(self) -> dict[str, object]:
        """The daemon's own knowledge: what runs, and what waits and why."""
        regions = self.engine.receivers.values()
        return {
            "running": True,
            "pid": os.getpid(),
            "ready": self.ready,
            "since": clock.stamp(self.since_ns),
            "watched": self.watcher.watched,
            "events_lost": self.watcher.overflows,
            "stuck": [r.name for r in regions if r.pulse.is_stuck],
            **live.status(self.engine),
        }


def _ended() -> NotRunning:
    return NotRunning("the daemon of this site is ending before all is done; once it runs again, wait again")
