"""A bucket: its folders, its properties, and the acts on both."""

from __future__ import annotations

import os

from msgspec.structs import replace
from starlette.responses import Response

from fsrepl.commands import folder as folders
from fsrepl.commands.documents import buckets as documents
from fsrepl.commands.folder import Cursor
from fsrepl.commands.reader import Document
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import bucket as pages
from fsrepl.console.pages.rendering import url
from fsrepl.daemon import requests
from fsrepl.model import keys
from fsrepl.model.address import Address
from fsrepl.model.amounts import kinds_text


def bucket(visit: Visit) -> Response:
    """A folder of a bucket, a page at a time, below the bucket's properties."""
    address, path = str(visit.bucket()), visit.folder()
    site = visit.gateway.site_with(address)
    site.bucket(address)
    where = pages.Listing(address, path, visit.get("starts"), versions=bool(visit.get("versions")))
    page: Document = {"Folders": [], "Entries": [], "Next": None}
    if not path or keys.is_key(path):
        page = folders.folder(
            site, address, path, starts=os.fsencode(where.starts), at=_cursor(visit), with_versions=where.versions
        )
    (found,) = (each for each in documents.buckets(site) if each["Bucket"] == address)
    return visit.html(pages.page(visit.frame(), where, found, _status(visit, address), page, site.buckets))


def _cursor(visit: Visit) -> Cursor:
    found = Cursor()
    if after := visit.parameters.get("after-folder"):
        found = replace(found, after_folder=os.fsencode(after))
    if (after := visit.parameters.get("after")) is not None:
        found = replace(found, after_name=os.fsencode(after))
    return found


def _status(visit: Visit, address: str) -> Document | None:
    """The bucket in the last status; None where it is too new for that."""
    look = visit.watch.newest(wait_s=0)
    return next((b for b in look.status["buckets"] if b["bucket"] == address), None) if look is not None else None


def create(visit: Visit) -> Response:
    wanted = Address.parse_bucket(f"{visit.given('region').strip()}/{visit.given('name').strip()}")
    versioning, trees = bool(visit.given("versioning")), bool(visit.given("trees"))
    visit.perform(requests.CreateBucket(wanted, versioning, visit.gateway.umask, trees))
    is_tree = wanted.region in visit.gateway.settings.regions  # one of an S3 service has no page here
    return visit.done(f"Bucket {wanted} is created.", url("/bucket", bucket=str(wanted)) if is_tree else "/")


def adopt_page(visit: Visit) -> Response:
    """The page before a folder with files becomes a bucket: space and time needed. Nothing is changed."""
    wanted = Address.parse_bucket(f"{visit.get('region').strip()}/{visit.get('name').strip()}")
    trees = bool(visit.get("trees"))
    room = visit.gateway.ask(requests.AdoptBucket(wanted, dry_run=True, trees=trees))
    return visit.html(pages.adopt(visit.frame(), str(wanted), room, trees=trees))


def adopt(visit: Visit) -> Response:
    wanted, trees = visit.bucket(), bool(visit.get("trees"))
    answer = visit.perform(requests.AdoptBucket(wanted, umask=visit.gateway.umask, trees=trees))
    what = "it"
    if "Adopted" in answer:
        what = kinds_text(answer["Adopted"] - answer["Directories"], answer["Directories"], answer["Symlinks"])
    return visit.done(f"{wanted}: {what} adopted, versioning Enabled.", url("/bucket", bucket=str(wanted)))


def set_versioning(visit: Visit) -> Response:
    address = visit.bucket()
    status = visit.given("status")
    visit.perform(requests.SetVersioning(address, status))
    return visit.done(f"Versioning of {address} is {status}.")
