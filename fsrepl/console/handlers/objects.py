"""One object: its versions, their record, why it is or is not replicated, and the acts on it."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse

from fsrepl.commands import reader
from fsrepl.commands import why as explanation
from fsrepl.commands.documents import objects as documents
from fsrepl.commands.folder import key_of
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import object as pages
from fsrepl.console.pages.rendering import url
from fsrepl.daemon import requests
from fsrepl.errors import Refused
from fsrepl.model import keys
from fsrepl.model.version import Versioning
from fsrepl.storage import listing
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.listing import Entry

_VERSIONS_MAX = 500


def object_page(visit: Visit) -> Response:
    address = visit.object()
    wanted = visit.get("version") or None
    site = visit.gateway.site_with(address.bucket)
    with listing.open_bucket(site, address.bucket) as bucket:
        group = listing.versions_of(bucket, address.key)
        is_versioned = bucket.bucket.versioning is not Versioning.OFF
        if not group:
            meant = listing.meant(bucket, address.key)
            raise Refused("NoSuchKey", f"{address.bucket} has no {keys.shown(address.key)}{meant}")
        chosen = next((n for n, version in enumerate(group) if wanted in (None, version.id)), None)
        if chosen is None:
            raise Refused("NoSuchVersion", f"{address.bucket}/{keys.shown(address.key)} has no version {wanted}")
        entry = Entry(group[chosen], chosen == 0)
        record = None if entry.version.marker else documents.head_document(bucket, entry)
        tags = documents.tags_document(entry.version.tags)
    rows = [
        documents.entry_document(Entry(version, number == 0), versions=True) | {"DeleteMarker": version.marker}
        for number, version in enumerate(group[:_VERSIONS_MAX])
    ]
    why = None
    if is_versioned:
        why = explanation.why(site, address, entry.version.id, reader.daemon_of_key(site.settings, address))
    return visit.html(
        pages.page(
            visit.frame(), address, rows, len(group), chosen=entry.version.id, record=record, tags=tags,
            why=why, is_versioned=is_versioned,
        )
    )  # fmt: skip


def download(visit: Visit) -> Response:
    """The content of a version, compared with its hash before the first byte is sent; never shown by the browser."""
    address = visit.object()
    site = visit.gateway.site_with(address.bucket)
    bucket = listing.open_bucket(site, address.bucket)
    try:
        entry = listing.find(bucket, address.key, visit.get("version") or None)
        chunks = listing.content(bucket, entry.version)
        first = next(chunks, b"")
    except BaseException:
        bucket.close()
        raise
    name = keys.split(address.key)[1]
    plain = "".join(c if (c.isascii() and c.isalnum()) or c in "._- " else "_" for c in name.decode("utf-8", "replace"))
    headers = {
        "Content-Length": str(entry.version.size),
        "Content-Disposition": f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}",
    }
    return StreamingResponse(_content(bucket, first, chunks), 200, headers, "application/octet-stream")


def _content(bucket: OpenBucket, first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    with bucket:
        yield first
        yield from rest


def restore(visit: Visit) -> Response:
    address, version_id = visit.object(), visit.get("version") or None
    answer = visit.perform(requests.RestoreObject(address, version_id))
    name = keys.shown(address.key)
    if not answer["Changed"]:
        return visit.done(f"{name}: version {answer['VersionId']} is current already.")
    return visit.done(
        f"{name}: version {answer['RestoredFrom']} is current again, as {answer['VersionId']}.",
        url("/object", bucket=address.bucket, key=address.key),
    )


def delete(visit: Visit) -> Response:
    """Add a delete marker; with a version, remove that version for good, once the form confirms it."""
    address, version_id = visit.object(), visit.get("version") or None
    if version_id is not None and visit.given("confirmed") != "yes":
        raise Refused("InvalidRequest", "the box was not ticked that confirms the removal for good")
    answer = visit.perform(requests.RemoveObject(address, version_id))
    name = keys.shown(key_of(answer))
    folder = url("/bucket", bucket=address.bucket, folder=keys.split(address.key)[0])
    if version_id is not None:
        return visit.done(f"{name}: version {version_id} is removed for good.", folder)
    if not answer["DeleteMarker"]:
        return visit.done(f"{name} is deleted.", folder)
    page = url("/object", bucket=address.bucket, key=address.key)
    text = f"{name} is deleted; “Undelete”, on its page or where versions are shown, brings it back."
    return visit.done(text, page if visit.back().startswith("/object?") else "")


def set_tag(visit: Visit) -> Response:
    address, version_id = visit.object(), visit.get("version") or None
    name = visit.given("name")
    visit.perform(requests.SetTags(address, version_id, {name: visit.given("value")}))
    return visit.done(f"Tag {name} is set.")


def remove_tag(visit: Visit) -> Response:
    address, version_id = visit.object(), visit.get("version") or None
    visit.perform(requests.RemoveTags(address, version_id, (visit.given("name"),)))
    return visit.done(f"Tag {visit.given('name')} is removed.")
