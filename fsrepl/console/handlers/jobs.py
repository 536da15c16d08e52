"""Jobs: backfills, the scrub, and comparisons of a source with its replicas."""

from __future__ import annotations

from starlette.responses import Response

from fsrepl.commands import backfills, reader, scrubs
from fsrepl.commands.reader import Document
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import jobs as pages
from fsrepl.console.pages.rendering import url
from fsrepl.daemon import requests
from fsrepl.errors import NotRunning
from fsrepl.model.address import Address


def jobs(visit: Visit) -> Response:
    frame = visit.frame()
    return visit.html(pages.page(frame, live(visit), _sources(visit)))


def _sources(visit: Visit) -> list[str]:
    """The buckets that are replicated: those can be compared."""
    look = visit.watch.newest(wait_s=0.1)
    return [bucket["bucket"] for bucket in look.status["buckets"] if bucket["rules"]] if look is not None else []


def live(visit: Visit) -> str:
    """The part of the page that changes."""
    compared = [each.document() for each in reversed(visit.gateway.verifications.all())]
    return pages.live(visit.live_frame(), _backfills(visit), _scrubs(visit), compared)


def _scrubs(visit: Visit) -> Document:
    """The progress of the scrub of each bucket."""
    site = visit.gateway.site()
    with reader.reader(site) as journal:
        return scrubs.status(site, journal)


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


# -- the scrub


def run_scrub(visit: Visit) -> Response:
    address = visit.bucket()
    visit.perform(requests.RunScrub(address))
    return visit.done(f"All stored versions of {address} are read now.")


def pause_scrub(visit: Visit) -> Response:
    address = visit.bucket()
    visit.perform(requests.PauseScrub(address))
    return visit.done(f"The scrub of {address} is paused.")


def resume_scrub(visit: Visit) -> Response:
    address = visit.bucket()
    visit.perform(requests.PauseScrub(address, on=False))
    return visit.done(f"The scrub of {address} goes on at its own pace.")


# -- comparisons


def verify(visit: Visit) -> Response:
    """Compare a source with its replicas; with repair, mend what differs from the copy that matches its hash."""
    source = str(Address.parse_bucket(visit.given("source")))
    visit.gateway.site().bucket(source)
    begun = visit.gateway.verifications.start(source, repair=bool(visit.given("repair")))
    return visit.done(f"{source} is being compared.", url("/job", number=begun.number))


def verification(visit: Visit) -> Response:
    found = visit.gateway.verifications.find(visit.number("number"))
    result, said = found.result() if found.took_s is not None else (None, "")
    return visit.html(pages.verification(visit.frame(), found.document(), result, said))


def stop(visit: Visit) -> Response:
    visit.gateway.verifications.stop(visit.number("number"))
    return visit.done("The comparison is being stopped.", "/jobs")
