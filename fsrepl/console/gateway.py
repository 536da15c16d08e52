"""Where pages get their documents, and how they change something: as the commands do, from outside the daemon.

What is read comes from the trees and the journal, what is changed goes to the daemon's socket as a typed request. The
status of a site takes a second at a million objects, so one thread looks at it now and then, and pages show what it saw
last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from dataclasses import replace
from typing import Any

from msgspec import Struct

from fsrepl.commands import doctor, doctor_facts, reader
from fsrepl.commands import status as statuses
from fsrepl.commands.doctor import Finding
from fsrepl.commands.documents import regions
from fsrepl.commands.reader import Document, Record
from fsrepl.console.diagnosing import Diagnoses
from fsrepl.console.verifying import Verifications
from fsrepl.daemon import control, requests
from fsrepl.daemon.requests import Request
from fsrepl.errors import FsreplError, Unavailable, Usage, reason
from fsrepl.model.address import region_of
from fsrepl.settings import Settings, reading
from fsrepl.storage import probe
from fsrepl.storage.fs import Fs
from fsrepl.storage.site import Site

log = logging.getLogger("fsrepl")

_ANSWER_S = 120.0
"""How long a page waits for an operation of the daemon."""
_BUSY_S, _IDLE_S = 2.0, 10.0
"""Pauses between two looks at the status: while a page shows it, and otherwise."""
_WATCHED_S = 30.0
_SHARE = 20
"""A look that took a second is followed by a pause of at least so many."""


class Gateway:
    """The site as pages see it. Each request opens the site anew, as a command does."""

    def __init__(self, settings: Settings, umask: int = 0o022) -> None:
        """umask: this process's, for the folders that the daemon makes for it."""
        self._settings, self._stamp, self.umask = settings, _stamp(settings), umask
        self._guard = threading.Lock()
        self.silent: frozenset[str] = frozenset()
        """Regions that did not answer when last asked."""
        self.probes = probe.Threads()
        self.verifications = Verifications(settings.path)
        self.diagnoses = Diagnoses(self._diagnose)

    @property
    def settings(self) -> Settings:
        """The settings, read again when their file changed. While the file is invalid, the last valid settings."""
        with self._guard:
            stamp = _stamp(self._settings)
            if stamp != self._stamp:
                self._stamp = stamp
                try:  # resolving real paths needs the regions' filesystems, of which one may hang
                    found = reading.load(self._settings.path, os.path.normpath)
                    self._settings = replace(found, console=self._settings.console)  # as it was started
                except FsreplError as error:
                    log.error("console: the settings are not read again: %s", error)
            return self._settings

    def site(self) -> Site:
        """The site, without the regions that do not answer."""
        site = Site(self.settings, Fs())
        site.set_silent(self.silent)
        return site

    def site_with(self, address: str) -> Site:
        """The site, for reading one of its buckets. Raises Unavailable at once where its region does not answer."""
        if region_of(address) in self.silent:
            raise Unavailable(f"region {region_of(address)} gives {probe.no_answer()}")
        return self.site()

    def ask(self, request: Request) -> Document:
        """The daemon's answer to a request. Raises FsreplError, NotRunning where no daemon runs."""
        return control.ask(self.settings.state, request, _ANSWER_S)

    def _diagnose(self) -> list[Finding]:
        """The findings, as `fsrepl doctor` makes them."""
        site = self.site()
        said = reader.daemon_status(site.settings)
        there: Document | None = None
        if said["running"] and "trouble" not in said:
            with contextlib.suppress(FsreplError):
                there = self.ask(requests.Diagnose())
        if there is None:  # not in child processes: this process has threads
            there = doctor_facts.where_it_works(site, self.probes.ask)
        return doctor.findings(doctor_facts.facts(site, said, there))


def _stamp(settings: Settings) -> tuple[int, int] | None:
    try:
        found = os.stat(settings.path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class Look(Struct, frozen=True):
    """The status of the site at a moment. number counts the looks, from 1."""

    number: int
    time_s: float
    status: Document
    regions: list[Document]
    record: Record
    trouble: str = ""


class Watch:
    """Looks at the status of the site in its own thread, from start to stop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._changed = threading.Condition()
        self._look: Look | None = None
        self._wanted = self._stopping = False
        self._watched_s = 0.0
        self._look_again_s = float("inf")
        """When a visitor need not wait for the end of the pause."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(probe.ANSWER_S)

    def newest(self, *, wait_s: float = 0.1) -> Look | None:
        """The last look; None where not even the first is done within wait_s."""
        with self._changed:
            now_s, self._watched_s = time.monotonic(), time.monotonic()
            if self._look_again_s < now_s:  # nobody watched for a while: the pause was a long one
                self._look_again_s = float("inf")
                self._wanted = True
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._look is not None, wait_s)
            return self._look

    def look_again(self, *, wait_s: float = 0.15) -> None:
        """Look at once, since something was changed, and wait a moment for that."""
        with self._changed:
            before = self._look.number if self._look else 0
            self._wanted = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._look is not None and self._look.number > before, wait_s)

    def _run(self) -> None:
        number = 0
        while True:
            number += 1
            began_s = time.monotonic()
            look = self._take(number)
            took_s = time.monotonic() - began_s
            with self._changed:
                self._look = look
                self._changed.notify_all()
                is_watched = time.monotonic() - self._watched_s < _WATCHED_S
                pause_s = max(_BUSY_S if is_watched else _IDLE_S, took_s * _SHARE)
                self._look_again_s = time.monotonic() + max(_BUSY_S, took_s * _SHARE)
                self._changed.wait_for(lambda: self._wanted or self._stopping, pause_s)
                self._wanted = False
                if self._stopping:
                    return

    def _take(self, number: int) -> Look:
        gateway = self._gateway
        try:
            site = Site(gateway.settings, Fs())
            site.ask_regions_in_threads(gateway.probes.ask)
            gateway.silent = site.silent
            status = statuses.status(site, reader.daemon_status(gateway.settings))
            record = reader.record(gateway.settings, time.time())
            return Look(number, time.time(), status, [*regions.regions(site), *_services(site)], record)
        except (FsreplError, OSError, sqlite3.Error) as error:
            return self._without(number, reason(error))
        except Exception as error:
            log.exception("console: the status cannot be shown")
            return self._without(
                number, f"the status cannot be shown: {type(error).__name__}; the console's log has it"
            )

    def _without(self, number: int, trouble: str) -> Look:
        """The last look again, with the reason why there is no new one."""
        before = self._look or Look(0, 0, _NOTHING, [], Record())
        return Look(number, time.time(), before.status, before.regions, before.record, trouble)


def _services(site: Site) -> list[Document]:
    """The regions that only take replicas, as in `region ls`. They are not asked: deliveries say how they are."""
    return [
        {"Name": name, "Path": each.url, "Service": True} for name, each in sorted(site.settings.destinations.items())
    ]


_NOTHING: dict[str, Any] = {"daemon": {"running": False, "ready": False}, "buckets": [], "transfers": []}


def check_user(settings: Settings) -> None:
    """Raises Usage where this user cannot do the daemon's part of a site: its socket obeys its own user and root."""
    try:
        uid = os.lstat(settings.state).st_uid
    except OSError:
        raise Usage(f"this site has no state yet in {settings.state}; `fsrepl daemon` makes it") from None
    if uid not in (0, os.geteuid()) or (uid == 0 and os.geteuid() != 0):
        raise Usage(f"this site belongs to uid {uid}; run `fsrepl console` as that user")
