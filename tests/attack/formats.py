"""The formats that fsrepl reads and somebody else may have written or damaged: a valid example of each, and its reader.

A reader is right where it raises one of our own errors, or one that its docstring names, for all that it refuses, and
where what it has read can be written again: a value of a wrong type would be noticed much later, in a region's loop.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fsrepl.daemon import request_json, requests
from fsrepl.link import frames
from fsrepl.model import address, attributes, blockmap, clock, json_text, keys, record_form, scrub
from fsrepl.model.version import DeliveryRecord, Origin, Posix, Status, Version
from fsrepl.remote import form
from fsrepl.s3 import arn, lifecycle, replication, roles
from fsrepl.settings import reading
from fsrepl.storage import backfill_jobs
from tests.world import DESTINATION, SOURCE

POSIX = Posix(0o644, 1000, 1000, 1_800_000_000_000_000_000)
VERSION = Version(
    b"d/k", "01K9ZZZZZZZZZZZZZZZZZZZZZZ", 1_800_000_000_000_000_000, False, 3, bytes(32), Origin.REPLICA, "east/src",
    posix=POSIX, attrs={"user.colour": b"blue"}, tags={"class": "x"},
    deliveries={"west/dst": DeliveryRecord("rule", Status.PENDING, since_ns=1)}, edited={"posix": "12 east/src"},
)  # fmt: skip
STORED = keys.StoredName(b"k", VERSION.id, False, False)
ROLE = {
    "RoleName": "r",
    "AssumeRolePolicyDocument": {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}, "Action": "sts:AssumeRole"}],
    },
    "Policy": {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": ["s3:*"], "Resource": "*"}]},
}
RULES = {
    "Role": "arn:aws:iam::000000000000:role/service-role/r",
    "Rules": [
        {
            "ID": "a", "Priority": 1, "Status": "Enabled", "DeleteMarkerReplication": {"Status": "Disabled"},
            "Filter": {"And": {"Prefix": "p", "Tags": [{"Key": "k", "Value": "v"}]}},
            "Destination": {"Bucket": "arn:aws:s3:west::dst", "StorageClass": "GLACIER"},
        }
    ],
}  # fmt: skip
LIFECYCLE = {
    "Rules": [
        {
            "ID": "a", "Status": "Enabled", "Filter": {"ObjectSizeGreaterThan": 1}, "Expiration": {"Days": 3},
            "NoncurrentVersionTransitions": [{"NoncurrentDays": 30, "StorageClass": "STANDARD_IA"}],
        }
    ]
}  # fmt: skip
SETTINGS = (
    '[regions.east]\npath = "east"\n[capture]\nsettle_ms = 50\nkeep_free = "5%"\n[replication]\nlimit = "1MiB/s"\n'
)
JOB = {
    "JobId": "j", "Bucket": SOURCE, "CreationTime": "2026-11-24T01:53:51Z", "ObjectReplicationStatuses": ["FAILED"],
    "Rules": ["a"], "Status": "Active", "Versions": 3, "VersionsExamined": 2, "AlreadyThere": 1,
    "Unreadable": [{"KeyBase64": "YQ==", "VersionId": "01K9ZZZZZZZZZZZZZZZZZZZZZZ"}],
    "LastExamined": {"KeyBase64": "YS9i", "CreatedNs": 3, "VersionId": "01K9ZZZZZZZZZZZZZZZZZZZZZZ"},
}  # fmt: skip
WHOLE_RECORD = {
    "version-id": VERSION.id, "blake3": "0" * 64, "last-modified": "2027-01-15T08:00:00.000000000Z", "origin": "user",
    "posix": {"mode": "0644", "uid": 1, "gid": 1, "mtime_ns": 5, "acl": "AgA=", "default_acl": "AgA="},
    "edited": {"posix": "12 east/src"}, "link": "01K9ZZZZZZZZZZZZZZZZZZZZZZ d/other", "taken": "open",
    "shortfall": {"lacks": ["user.fsrepl.version-id"], "posix": {"mode": "0600", "uid": 1, "gid": 1, "mtime_ns": 5}},
    "place": {"tier": "cold", "token": "0" * 32, "size": 3, "form": "zstd", "until": "2026-11-24T01:53:51Z"},
    "attributes": {
        "user.colour": "blue",
        "user.fsrepl.deliveries": {
            "west/dst": {
                "rule": "r", "status": "FAILED", "reason": "x", "since_ns": 1, "crossed_bytes": 1, "batch": "j",
                "before": {"rule": "r", "status": "COMPLETED", "since_ns": 1}, "storage_class": "GLACIER",
            },
            "north/dst": "PENDING r",
        },
    },
}  # fmt: skip


class Format(Struct, frozen=True):
    """whole: a valid example. allowed: what `read` raises beside our own errors. is_json: values can be exchanged."""

    whole: bytes
    read: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = ()
    is_json: bool = False


def _stored(raw: dict[str, bytes]) -> None:
    """The version of these attributes is read, written and read again."""
    found = attributes.decode(b"d/k", STORED, raw, POSIX, 3)
    fields = record_form.on_file(attributes.encode(found))
    assert attributes.decode(b"d/k", STORED, record_form.read(fields), POSIX, 3) == found


def _record(data: bytes) -> None:
    _stored(record_form.read({**RAW, record_form.RECORD: data}))


def _object(data: bytes) -> object:
    """The metadata of an object that somebody else may have put into a bucket of an S3 service."""
    said = json_text.loads(data)
    metadata = {name: text for name, text in said.items() if isinstance(text, str)} if isinstance(said, dict) else {}
    form.identity_of(metadata)
    form.content_type_of(metadata)
    return attributes.encode(form.version_of("d/k", metadata, 3, tags={}))


def _item(data: bytes) -> object:
    frame = frames.of_site.decode(data)
    return [frames.unpack(each, frame.destination) for each in frame.items] if isinstance(frame, frames.Deliver) else []


def _settings(data: bytes) -> object:
    return reading.parse(data.decode(), Path("/s/fsrepl.toml"))


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    return lambda data: read(data.decode())


def _document(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda data: read(json_text.loads(data))


def _json(document: object, read: Callable[[bytes], object], *allowed: type[Exception]) -> Format:
    return Format(json.dumps(document).encode(), read, allowed, is_json=True)


def _field(name: str) -> Callable[[bytes], object]:
    return lambda data: _stored(record_form.read({**RAW, name: data}))


RAW = record_form.on_file(attributes.encode(VERSION))
_FORM = form.form_of(VERSION)
_ITEM = frames.pack(VERSION, "west/dst", with_tags=True, data=b"one")

FORMATS = {
    "settings": Format(SETTINGS.encode(), _settings, (UnicodeError,)),
    "request": Format(request_json.encode(requests.Retry()), request_json.decode, is_json=True),
    "request of a key": Format(
        request_json.encode(requests.Undelete(address=address.Address("east", "src", b"d"), since="x")),
        request_json.decode, is_json=True,
    ),
    "frame of the site": Format(
        frames.encode(frames.Deliver(SOURCE, DESTINATION, [_ITEM], {}, {})), _item, (ValueError,)
    ),
    "frame of the agent": Format(
        frames.encode(frames.Outcomes([frames.Told((SOURCE, DESTINATION, b"k", VERSION.id), Status.FAILED, "x", 3)])),
        frames.of_agent.decode, (msgspec.MsgspecError,),
    ),
    "greeting": Format(frames.greeting(frames.AGENT, "1.0"), lambda data: frames.read_greeting(frames.AGENT, data)),
    "record": _json(json.loads(RAW[record_form.RECORD]), _record),
    "whole record": _json(WHOLE_RECORD, _record),
    "deliveries": Format(RAW[attributes.DELIVERIES], _field(attributes.DELIVERIES), is_json=True),
    "attribute": Format(b"blue", _field("user.colour")),
    "tag": Format(b"x", _field("user.fsrepl.tag.class")),
    "sidecar": Format(
        attributes.encode_sidecar(attributes.encode(VERSION)),
        lambda data: _stored(record_form.read(attributes.decode_sidecar(data))), is_json=True,
    ),
    "object": _json(dict(_FORM.metadata), _object, ValueError),
    "map": Format(blockmap.BlockMap(bytes(32), 0, 1 << 16, b"").encode(), blockmap.decode),
    "name": Format(b"a b;01K9ZZZZZZZZZZZZZZZZZZZZZZ;meta.json", keys.parse),
    "displaced": Format(b"d%2Fk.01K9ZZZZ", keys.displaced_key),
    "time": Format(b"2026-11-24T01:53:51.5Z", _text(clock.parse), (ValueError,)),
    "address": Format(b"east/src/d/k", lambda data: address.Address.parse(os.fsdecode(data))),
    "role arn": Format(b"arn:aws:iam::000000000000:role/r", _text(arn.parse_role_arn), (UnicodeError,)),
    "bucket arn": Format(
        b"arn:aws:s3:west::dst", _text(lambda text: arn.parse_bucket_arn(text, lambda name: [])), (UnicodeError,)
    ),
    "scrub": Format(
        scrub.encode(scrub.Scrub(scrub.Pass(1, 2, (b"a", b"b", 3, "x")), scrub.Result(1, 2, 3, 4, 5))).encode(),
        _text(lambda text: scrub.encode(scrub.decode(text))), (UnicodeError,), is_json=True,
    ),
    "replication": _json(
        RULES, _document(lambda found: replication.read_replication(found, source=SOURCE, named=lambda name: [])),
        ValueError,
    ),
    "lifecycle": _json(LIFECYCLE, _document(lifecycle.read_lifecycle), ValueError),
    "role": _json(ROLE, _document(lambda found: roles.parse_role(found, "r")), ValueError),
    "versioning": _json({"Status": "Enabled"}, _document(replication.parse_versioning), ValueError),
    "backfill": _json(
        JOB, _document(lambda found: backfill_jobs.encode(backfill_jobs.decode(dict(found)))),
        ValueError, KeyError, TypeError,
    ),
}  # fmt: skip
