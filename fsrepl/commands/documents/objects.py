"""Objects and their versions as JSON, in S3's names: `ls`, `head`, `tag`."""

from __future__ import annotations

import base64
import email.utils
import os
import stat
from collections.abc import Mapping

from fsrepl.model import clock, keys
from fsrepl.model.keys import Document
from fsrepl.model.version import DeliveryRecord, Posix, Version, Versioning
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.listing import Entry


def entry_document(entry: Entry, *, versions: bool) -> Document:
    version = entry.version
    document: Document = keys.key_document(version.key)
    if versions:
        document |= {"VersionId": version.id, "IsLatest": entry.latest}
    document["LastModified"] = clock.stamp(version.created_ns)
    if not version.marker:
        document["Size"] = version.size
        if version.digest:
            document["ETag"] = version.digest.hex()
        document["StorageClass"] = storage_class(version)
    if version.status is not None:
        document["ReplicationStatus"] = str(version.status)
    return document


def storage_class(version: Version) -> str:
    return version.storage_class or "STANDARD"


def list_document(found: list[Entry], truncated: bool, *, versions: bool) -> Document:
    """`ls --json`: S3's ListObjectVersions, or ListObjectsV2's Contents."""
    if not versions:
        document: Document = {"Contents": [entry_document(e, versions=False) for e in found]}
        if truncated:
            document |= {"IsTruncated": True, **_next("NextStartAfter", found[-1].version.key)}
        return document
    document = {
        "Versions": [entry_document(e, versions=True) for e in found if not e.version.marker],
        "DeleteMarkers": [entry_document(e, versions=True) for e in found if e.version.marker],
    }
    if truncated:
        last = found[-1].version
        document |= {"IsTruncated": True, **_next("NextKeyMarker", last.key), "NextVersionIdMarker": last.id}
    return document


def _next(name: str, key: bytes) -> Document:
    """The key where the next page begins; also its bytes where the text is not exact."""
    exact = {} if keys.is_exact(key) else {f"{name}Base64": base64.b64encode(key).decode()}
    return {name: keys.text(key), **exact}


def head_document(bucket: OpenBucket, entry: Entry) -> Document:
    """`head --json`: the whole record of one version."""
    version = entry.version
    document: Document = keys.key_document(version.key) | {
        "VersionId": version.id,
        "IsLatest": entry.latest,
        "LastModified": clock.stamp(version.created_ns),
        "ContentLength": version.size,
        **({"ContentType": version.kind.content_type} if version.kind.content_type else {}),
        "ETag": version.digest.hex(),
        "StorageClass": storage_class(version),
    }
    if version.status is not None:
        document["ReplicationStatus"] = str(version.status)
    document |= {
        "Origin": f"{version.origin}:{version.source}" if version.source else str(version.origin),
        **({"CapturedWhile": version.taken} if version.taken else {}),
        "TagCount": len(version.tags),
        "Metadata": {name.removeprefix("user."): _value(value) for name, value in sorted(version.attrs.items())},
        "Posix": _posix_document(version.posix),
        "StoredAs": keys.text(_stored_as(bucket, version)),
    }
    if version.place is not None and version.place.until_ns > bucket.bucket.root.now():
        document["Restore"] = restore_header(version.place.until_ns)
    if version.deliveries:
        document["Deliveries"] = {
            name: {"Rule": d.rule, "Status": str(d.status), **({"Reason": d.reason} if d.reason else {}), **_crossed(d)}
            for name, d in version.deliveries.items()
        }
    return document


def _crossed(recorded: DeliveryRecord) -> Document:
    return {} if recorded.crossed_bytes is None else {"CrossedBytes": recorded.crossed_bytes}


def restore_header(until_ns: int) -> str:
    """When a restored copy of archived content goes, as S3's x-amz-restore says it."""
    return f'ongoing-request="false", expiry-date="{email.utils.formatdate(until_ns / 1e9, usegmt=True)}"'


def _stored_as(bucket: OpenBucket, version: Version) -> bytes:
    """The path of a version's content."""
    path = os.fsencode(bucket.bucket.path)
    if bucket.bucket.versioning is Versioning.OFF:
        return keys.join(path, version.key)
    if version.place is not None and (tier := bucket.bucket.root.tier(version.place.tier)) is not None:
        return tier.path_of(bucket.bucket.name, version.key, version.place)
    directory, last = keys.split(version.key)
    stored = keys.join(keys.stored_directory(directory), keys.stored_name(last, version.id))
    return path + b"/" + keys.RESERVED + b"/versions/" + stored


def _value(data: bytes) -> object:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _posix_document(posix: Posix | None) -> Document:
    if posix is None:
        return {}
    document: Document = {
        "mode": f"{posix.mode:04o}",
        "uid": posix.uid,
        "gid": posix.gid,
        **({} if stat.S_ISDIR(posix.mode) else {"mtime_ns": posix.mtime_ns}),  # it changes with each entry
    }
    for name, acl in (("acl", posix.acl), ("default_acl", posix.default_acl)):
        if acl:
            document[name] = {"base64": base64.b64encode(acl).decode()}
    return document


def tags_document(tags: Mapping[str, str]) -> list[Document]:
    """S3's TagSet."""
    return [{"Key": _printable(name), "Value": _printable(tags[name])} for name in sorted(tags)]


def _printable(text: str) -> str:
    return keys.text(os.fsencode(text))
