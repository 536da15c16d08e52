"""The doctor: present and coming problems."""

from __future__ import annotations

import contextlib

from starlette.responses import Response

from fsrepl.commands import doctor as commands
from fsrepl.commands import doctor_facts, reader
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import doctor as pages
from fsrepl.daemon import requests
from fsrepl.errors import FsreplError


def doctor(visit: Visit) -> Response:
    site = visit.gateway.site()
    said = reader.daemon_status(site.settings)
    there: dict[str, object] | None = None
    if said["running"] and "trouble" not in said:
        with contextlib.suppress(FsreplError):
            there = visit.gateway.ask(requests.Diagnose())
    if there is None:  # not in child processes: this process has threads
        there = doctor_facts.where_it_works(site, visit.gateway.probes.ask)
    found = commands.findings(doctor_facts.facts(site, said, there))
    return visit.html(pages.page(visit.frame(), [finding.document() for finding in found]))
