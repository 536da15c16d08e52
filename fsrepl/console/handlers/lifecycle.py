"""The lifecycle of a bucket: edited, tried out, saved, run."""

from __future__ import annotations

import itertools
import json

from msgspec.structs import replace
from starlette.responses import Response

from fsrepl.commands import lifecycle as commands
from fsrepl.commands import reader
from fsrepl.commands.documents import buckets as bucket_documents
from fsrepl.commands.reader import Document
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import lifecycle as pages
from fsrepl.console.pages.rendering import url
from fsrepl.daemon import requests
from fsrepl.errors import FsreplError, Refused
from fsrepl.model import clock
from fsrepl.model.amounts import counted

_SHOWN = 500


def lifecycle(visit: Visit) -> Response:
    """The lifecycle of one bucket; without one, all buckets."""
    if not visit.get("bucket"):
        return visit.html(pages.buckets(visit.frame(), bucket_documents.buckets(visit.gateway.site())))
    return _page(visit)


def _page(
    visit: Visit, text: str | None = None, at: str = "", items: list[Document] | None = None, trouble: str = ""
) -> Response:
    """text: the document as it is being edited; None: as it is saved. items: what it would do at a time."""
    address = str(visit.bucket())
    site = visit.gateway.site_with(address)
    saved: Document | None = None
    try:
        saved = dict(commands.configuration(site, address).document)
    except Refused as error:
        if error.code != "NoSuchLifecycleConfiguration":
            raise
    frame = replace(visit.frame(), path=url("/lifecycle", bucket=address))
    shown = items[:_SHOWN] if items is not None else None
    more = items is not None and len(items) > _SHOWN
    return visit.html(
        pages.page(frame, address, saved, text=text, at=at, items=shown, more=more, trouble=trouble),
        409 if trouble else 200,
    )


def change(visit: Visit) -> Response:
    """Save the document of the form, or only try it out at a time: the button says which."""
    address, text, at = visit.bucket(), visit.given("document"), visit.given("at").strip()
    try:
        document = json.loads(text)
        if visit.given("do") == "preview":
            return _page(visit, text, at, _preview(visit, document, at))
        visit.perform(requests.PutLifecycle(address, document))
    except (ValueError, RecursionError) as error:
        return _page(visit, text, at, trouble=f"MalformedXML: this is not JSON: {error}")
    except FsreplError as error:
        return _page(visit, text, at, trouble=str(error))
    return visit.done(f"The lifecycle of {address} is saved. It acts after midnight UTC, or at once with “Run now”.")


def _preview(visit: Visit, document: object, at: str) -> list[Document]:
    """The first actions that would be due. Raises Refused."""
    address = str(visit.bucket())
    site = visit.gateway.site_with(address)
    site.look()
    try:
        at_ns = clock.moment(at) if at else site.now()
    except ValueError as error:
        raise Refused("InvalidArgument", str(error)) from error
    with reader.reader(site) as journal:
        return list(itertools.islice(commands.preview(site, journal, address, at_ns, document), _SHOWN + 1))


def remove(visit: Visit) -> Response:
    address = visit.bucket()
    visit.perform(requests.RemoveLifecycle(address))
    return visit.done(f"{address} has no lifecycle any more.")


def run(visit: Visit) -> Response:
    address = visit.bucket()
    answer = visit.perform(requests.RunLifecycle(address))
    done = [f"{name} {number:,}" for name, number in answer["Done"].items() if number]
    waits = f"; {counted(answer['Blocked'], 'version')} kept until replicated" if answer["Blocked"] else ""
    return visit.done(f"{counted(answer['Judged'], 'key')} judged; {', '.join(done) or 'nothing was due'}{waits}.")
