"""Deliveries: failures by kind, lists, another try; and what is to become of held deletions."""

from __future__ import annotations

import os
from typing import Any

from msgspec.structs import replace
from starlette.responses import Response

from fsrepl.commands import reader
from fsrepl.commands.documents import deliveries as documents
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import deliveries as pages
from fsrepl.console.pages.rendering import url
from fsrepl.daemon import requests
from fsrepl.errors import Refused, Usage
from fsrepl.model import keys
from fsrepl.model.amounts import counted
from fsrepl.model.version import Status

_PAGE = 200
_FILTERS = ("destination", "rule", "reason")


def failures(visit: Visit) -> Response:
    """The kinds of failures of all buckets."""
    site = visit.gateway.site()
    with reader.reader(site) as journal:
        found = [each for address in sorted(site.buckets) for each in documents.failures(journal, address)]
    return visit.html(pages.failures(visit.frame(), found))


def deliveries(visit: Visit) -> Response:
    """The deliveries of a bucket that have a status, and perhaps a destination, a rule and a reason."""
    address = str(visit.bucket())
    try:
        status = Status(visit.get("status"))
    except ValueError as error:
        raise Usage("the address of this page names no status of deliveries") from error
    only = {name: visit.parameters[name] for name in _FILTERS if name in visit.parameters}
    skip = visit.number("skip")
    site = visit.gateway.site()
    site.bucket(address)
    with reader.reader(site) as journal:
        found = [documents.delivery(each) for each in journal.deliveries.page(address, status, only, skip, _PAGE + 1)]
    skip_next = skip + _PAGE if len(found) > _PAGE else None
    return visit.html(pages.deliveries(visit.frame(), address, str(status), only, found[:_PAGE], skip_next))


def retry(visit: Visit) -> Response:
    """Retry an object, a bucket, or its failures of one kind, as the address says."""
    scope = visit.object() if visit.get("key") else visit.bucket()
    only = {name: visit.get(name) for name in _FILTERS}
    answer = visit.perform(requests.Retry(scope, **only))
    left_out = "; ".join(answer.get("LeftOut", ()))
    also = f" Left out: {left_out}" if left_out else ""
    name = f"{scope.bucket}/{keys.shown(scope.key)}" if scope.key else str(scope)
    return visit.done(f"{name}: {counted(answer['Retried'], 'delivery is', 'deliveries are')} tried again.{also}")


# -- after a mass deletion


def acknowledge_page(visit: Visit) -> Response:
    address = str(visit.bucket())
    return visit.html(pages.acknowledge(visit.frame(), address))


def acknowledge(visit: Visit) -> Response:
    answer = visit.perform(requests.Acknowledge(visit.bucket()))
    what = counted(answer.get("Released", 0), "deletion crosses", "deletions cross")
    return visit.done(f"{visit.bucket()}: {what} now." if answer["Halted"] else f"{visit.bucket()} is not halted.", "/")


def undelete_page(visit: Visit) -> Response:
    """The page before an undelete: the keys that would come back."""
    address, since = visit.bucket(), visit.get("since")
    found: dict[str, Any] = {"Keys": 0, "Bytes": 0, "First": []}
    for batch in _batches(visit, requests.Undelete(address, since=since, count=True)):
        found["Keys"] += batch["Keys"]
        found["Bytes"] += batch["Bytes"]
        found["First"] += batch["First"][: 20 - len(found["First"])]
    return visit.html(pages.undelete(visit.frame(), str(address), since, found))


def undelete(visit: Visit) -> Response:
    address, since = visit.bucket(), visit.get("since")
    restored, left, halted = 0, list[str](), False
    for batch in _batches(visit, requests.Undelete(address, since=since)):
        restored += batch["Restored"]
        left += [f"{each['Key']}: {each['Why']}" for each in batch["Left"]]
        halted = batch["Halted"]
    if left:
        visit.session.tell(f"Not brought back: {'; '.join(left[:5])}{' and others' if left[5:] else ''}", is_error=True)
    if halted:
        visit.session.tell(f"{address} is HALTED still: other deletions are held.", is_error=True)
    return visit.done(
        f"{address}: {counted(restored, 'file is', 'files are')} back.", url("/bucket", bucket=str(address))
    )


def _batches(visit: Visit, request: requests.Undelete) -> Any:
    """The answers, a batch at a time. Counting changes nothing, so a read-only console counts too."""
    if not request.count and visit.read_only:
        raise Refused("AccessDenied", "this console is read-only")
    while True:
        batch = visit.gateway.ask(request)
        yield batch
        if batch["After"] is None:
            return
        request = replace(request, after=os.fsencode(batch["After"]))
