"""The replication of one source: its rules, its document, its role."""

from __future__ import annotations

import json

from msgspec.structs import replace
from starlette.responses import Response

from fsrepl.commands import replication as commands
from fsrepl.commands.documents import roles as role_documents
from fsrepl.commands.reader import Document
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import replication as pages
from fsrepl.console.pages.rendering import url
from fsrepl.daemon import requests
from fsrepl.errors import FsreplError, Refused
from fsrepl.model.address import Address
from fsrepl.s3 import arn


def replication(visit: Visit) -> Response:
    return _page(visit, None, "")


def _page(visit: Visit, text: str | None, trouble: str) -> Response:
    """text: the document as it is being edited; None: as it is."""
    address = str(visit.bucket())
    site = visit.gateway.site_with(address)
    document: Document | None = None
    role, role_trouble = None, ""
    try:
        found = commands.configuration(site, address)
        document = {"ReplicationConfiguration": found.document}
        role = role_documents.role(site.settings, arn.parse_role_arn(str(found.document["Role"])))
    except FsreplError as error:
        if document is None and not (isinstance(error, Refused) and error.code.startswith("Replication")):
            raise
        role_trouble = str(error) if document is not None else ""
    look = visit.watch.newest(wait_s=0)
    status = next((b for b in look.status["buckets"] if b["bucket"] == address), None) if look is not None else None
    return visit.html(
        pages.page(
            replace(visit.frame(), path=url("/replication", bucket=address)),
            address,
            document,
            status,
            role,
            role_trouble,
            known=site.buckets,
            text=text,
            trouble=trouble,
        ),
        409 if trouble else 200,
    )


def put(visit: Visit) -> Response:
    """Save a document as it was edited; where it is refused, the page shows it again with the reason."""
    address, text = visit.bucket(), visit.given("document")
    try:
        document = json.loads(text)
        visit.perform(requests.PutReplication(address, document, len(text.encode())))
    except (ValueError, RecursionError) as error:
        return _page(visit, text, f"MalformedXML: this is not JSON: {error}")
    except FsreplError as error:
        return _page(visit, text, str(error))
    return visit.done(f"The rules of {address} are saved.")


def disable(visit: Visit) -> Response:
    address = visit.bucket()
    visit.perform(requests.DisableReplication(address))
    return visit.done(f"The rules of {address} are disabled. Changes made meanwhile need a backfill later.")


def enable(visit: Visit) -> Response:
    address = visit.bucket()
    visit.perform(requests.EnableReplication(Address.parse_bucket(str(address))))
    return visit.done(f"The rules of {address} are enabled. A backfill sends what was changed meanwhile.")


def remove(visit: Visit) -> Response:
    address = visit.bucket()
    if visit.given("confirmed") != "yes":
        raise Refused("InvalidRequest", "the box was not ticked that confirms the removal")
    visit.perform(requests.RemoveReplication(address))
    return visit.done(f"{address} is not replicated any more. Replicas in the destinations stay.")
