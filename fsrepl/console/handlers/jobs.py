"""Jobs: backfills, and comparisons of a source with its replicas."""

from __future__ import annotations

from starlette.responses import Response

from fsrepl.commands import backfills, reader
from fsrepl.commands.reader import Document
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import jobs as pages
from fsrepl.daemon import requests
from fsrepl.errors import NotRunning


def jobs(visit: Visit) -> Response:
    frame = visit.frame()
    return visit.html(pages.page(frame, live(visit)))


def live(visit: Visit) -> str:
    """The part of the page that changes."""
    return pages.live(visit.live_frame(), _backfills(visit))


def _backfills(visit: Visit) -> list[Document]:
    """The backfills of the last 90 days, the newest first."""
    try:
        found = visit.gateway.ask(requests.ListBackfills())["Jobs"]
    except NotRunning:
        site = visit.gateway.site()
        with reader.reader(site) as journal:
            found = backfills.read_all(site, journal, sorted(site.buckets))
    return sorted(found, key=lambda job: str(job["JobId"]), reverse=True)


def cancel(visit: Visit) -> Response:
    job = visit.get("job")
    visit.perform(requests.CancelBackfill(job))
    return visit.done(f"Job {job} is being cancelled. Replicas that it sent stay.")
