"""One folder of a bucket, a page at a time: what S3's list calls give with a delimiter.

The names come from the journal, so that a page of a folder of 100,000 names takes no longer than one of a small folder.
The properties of each version come from its record.
"""

from __future__ import annotations

import base64
import contextlib

from msgspec import Struct

from fsrepl.commands import reader
from fsrepl.commands.documents import objects as documents
from fsrepl.commands.reader import Document
from fsrepl.errors import StoreDamaged
from fsrepl.model import keys
from fsrepl.model.version import Version, Versioning
from fsrepl.storage import listing, unversioned, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import FileType
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.listing import Entry
from fsrepl.storage.site import Site
from fsrepl.storage.walk import Directory, Walk

VERSIONS_MAX = 20
"""How many versions of a key are listed in its folder."""


class Cursor(Struct, frozen=True):
    """Where a page begins: after a subfolder, or after a key. Subfolders come first."""

    after_folder: bytes | None = None
    after_name: bytes | None = None


def folder(
    site: Site, address: str, path: bytes, *, starts: bytes = b"", at: Cursor | None = None, most: int = 200,
    with_versions: bool = False,
) -> Document:  # fmt: skip
    """A page: {"Folders": [key documents], "Entries": [documents of `ls`], "Next": Cursor or None}.

    path: the folder, without a slash at its end. starts: only names that begin with this. with_versions: every version
    and marker, and deleted keys too. Raises FsreplError where the bucket is away.
    """
    at = at or Cursor()
    with listing.open_bucket(site, address) as bucket:
        if bucket.bucket.versioning is Versioning.OFF:
            return _of_files(bucket, path, starts, at, most)
        with reader.reader(site) as journal:
            return _of_versions(bucket, journal, path, starts, at, most, with_versions=with_versions)


def _of_versions(
    bucket: OpenBucket, journal: Journal, path: bytes, starts: bytes, at: Cursor, most: int, *, with_versions: bool
) -> Document:
    address = bucket.address
    folders: list[bytes] = []
    names: list[bytes] = []
    if at.after_name is None:
        folders = journal.folders.subfolders(
            address, path, starts=starts, after=at.after_folder, most=most + 1, deleted=with_versions
        )
    if len(folders) > most:
        return _page(path, folders[:most], [], Cursor(after_folder=folders[most - 1]))
    left = most - len(folders)
    names = journal.folders.names(
        address, path, starts=starts, after=at.after_name, most=left + 1, deleted=with_versions
    )  # fmt: skip
    following = None
    if len(names) > left:
        names = names[:left]
        following = Cursor(after_name=names[-1] if names else b"")
    entries: list[Document] = []
    for name in names:
        key = keys.join(path, name)
        rows = journal.versions.versions_of(address, key)
        shown = rows[:VERSIONS_MAX] if with_versions else rows[:1]
        entries += [_entry(bucket, key, each, latest=number == 0) for number, each in enumerate(shown)]
        if with_versions and len(rows) > len(shown):
            entries.append(keys.key_document(key) | {"More": len(rows) - len(shown)})
    return _page(path, folders, entries, following)


def _entry(bucket: OpenBucket, key: bytes, row: tuple[str, int, bool], *, latest: bool) -> Document:
    version_id, created_ns, marker = row
    trouble = ""
    found: Version | None = None
    try:
        found = versions.read(bucket, key, version_id, marker=marker)
    except StoreDamaged as error:
        trouble = str(error)
    known = found or Version(key, version_id, created_ns, marker)
    document = documents.entry_document(Entry(known, latest), versions=True) | {"DeleteMarker": marker}
    if found is None:
        document |= {"Trouble": trouble or "the version was removed just now"}
    return document


def _of_files(bucket: OpenBucket, path: bytes, starts: bytes, at: Cursor, most: int) -> Document:
    """A folder of a never-versioned bucket: its files, whose names are read on each request."""
    folders: list[bytes] = []
    files: list[bytes] = []
    entries: list[Document] = []
    following = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), Walk([path]).step(bucket.fs, bucket.fd) as found:
        for name, kind in found.entries:
            if not name.startswith(starts) or not keys.is_key(keys.join(path, name)):
                continue
            if kind is FileType.REGULAR and (at.after_name is None or name > at.after_name):
                files.append(name)
            elif kind is FileType.DIRECTORY and at.after_name is None and name > (at.after_folder or b""):
                folders.append(name)
        folders.sort()
        if len(folders) > most:
            return _page(path, folders[:most], [], Cursor(after_folder=folders[most - 1]))
        files.sort()
        shown = files[: most - len(folders)]
        if len(files) > len(shown):
            following = Cursor(after_name=shown[-1] if shown else b"")
        page = Directory(path, found.fd, iter([(name, FileType.REGULAR) for name in shown]))
        entries = [
            documents.entry_document(Entry(version, True), versions=True) | {"DeleteMarker": False}
            for version in unversioned.in_directory(bucket, page)
        ]
    return _page(path, folders, entries, following)


def _page(path: bytes, folders: list[bytes], entries: list[Document], following: Cursor | None) -> Document:
    return {
        "Folders": [keys.key_document(keys.join(path, name)) for name in folders],
        "Entries": entries,
        "Next": following,
    }


def key_of(document: Document) -> bytes:
    """The exact key of a document that has "Key", and "KeyBase64" where that is inexact."""
    if "KeyBase64" in document:
        return base64.b64decode(document["KeyBase64"])
    return str(document["Key"]).encode()
