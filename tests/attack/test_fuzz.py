"""Bytes that somebody else wrote, in any state of damage, are read or refused, and never end a loop.

Hypothesis damages what is valid: bytes are cut, doubled and changed, and in JSON any value is replaced by any other.
FSREPL_LONG=1 tries a hundred times as many.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsrepl.daemon import request_json, requests
from fsrepl.errors import FsreplError
from fsrepl.model import attributes, blockmap, clock, keys, record_form, scrub
from fsrepl.model.version import DeliveryRecord, Origin, Posix, Status, Version
from fsrepl.s3 import arn, lifecycle, replication, roles
from fsrepl.settings import reading
from tests.world import DESTINATION, SOURCE, World

TIMES = 100 if os.environ.get("FSREPL_LONG") else 1

POSIX = Posix(0o644, 1000, 1000, 1_800_000_000_000_000_000)
VERSION = Version(
    b"d/k", "01K9ZZZZZZZZZZZZZZZZZZZZZZ", 1_800_000_000_000_000_000, False, 3, bytes(32), Origin.REPLICA, "east/src",
    posix=POSIX, attrs={"user.colour": b"blue"}, tags={"class": "x"},
    deliveries={"west/dst": DeliveryRecord("rule", Status.PENDING, since_ns=1)}, edited={"posix": "12 east/src"},
)  # fmt: skip
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

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just("9" * 30)
    | st.just(1 << 70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NESTED = b"[" * 100_000


# Strategies are made once, since Hypothesis checks and measures each anew.
_TIMES = st.integers(1, 4)
_HOW = st.sampled_from(("cut", "put", "double", "zero"))
_MORE = st.binary(max_size=8)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were valid."""
    data = bytearray(whole)
    for _ in range(draw(_TIMES)):
        at, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
        match draw(_HOW):
            case "cut":
                del data[at:end]
            case "put":
                data[at:at] = draw(_MORE)
            case "double":
                data[at:at] = data[at:end]
            case "zero":
                data[at:end] = bytes(end - at)
    return bytes(data)


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a JSON document."""
    yield path
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for name, value in inner:
        yield from places(value, (*path, name))


_CHANGE = st.sampled_from(("value", "value", "value", "gone", "more"))
_NAME = st.text(max_size=6)


def changed(document: Any) -> st.SearchStrategy[Any]:
    """A JSON document in which one value is another, is missing, or has another name."""
    return _changed(document, st.sampled_from(list(places(document))))


@st.composite
def _changed(draw: st.DrawFn, document: Any, paths: st.SearchStrategy[tuple[Any, ...]]) -> Any:
    path = draw(paths)
    if not path:
        return draw(JSON)
    copy = json.loads(json.dumps(document))
    at = copy
    for name in path[:-1]:
        at = at[name]
    match draw(_CHANGE):
        case "value":
            at[path[-1]] = draw(JSON)
        case "gone":
            del at[path[-1]]
        case "more" if isinstance(at, dict):
            at[draw(_NAME)] = draw(JSON)
    return copy


def _records(raw: dict[str, bytes]) -> object:
    return attributes.decode(b"d/k", keys.StoredName(b"k", VERSION.id, False, False), record_form.read(raw), POSIX, 3)


def _replication(document: object) -> object:
    return replication.read_replication(document, source=SOURCE, named=lambda name: [])


RAW = record_form.on_file(attributes.encode(VERSION))

BYTES: dict[str, tuple[bytes, Callable[[bytes], object], tuple[type[Exception], ...]]] = {
    "settings": (SETTINGS.encode(), lambda data: reading.parse(data.decode(), Path("/s/fsrepl.toml")), (UnicodeError,)),
    "request": (request_json.encode(requests.Retry()), request_json.decode, ()),
    "sidecar": (attributes.encode_sidecar(RAW), lambda data: _records(attributes.decode_sidecar(data)), ()),
    "map": (b"fsrepl blocks 1\n{}\n" + bytes(64), blockmap.decode, ()),
    "name": (b"a b;01K9ZZZZZZZZZZZZZZZZZZZZZZ;meta.json", keys.parse, ()),
    "displaced": (b"d%2Fk.01K9ZZZZ", keys.displaced_key, ()),
    "time": (b"2026-11-24T01:53:51.5Z", lambda data: clock.parse(data.decode()), (ValueError,)),
    "role": (b"arn:aws:iam::000000000000:role/r", lambda data: arn.parse_role_arn(data.decode()), (UnicodeError,)),
    "bucket": (
        b"arn:aws:s3:west::dst",
        lambda data: arn.parse_bucket_arn(data.decode(), lambda name: []),
        (UnicodeError,),
    ),
    "scrub": (
        scrub.encode(scrub.Scrub()).encode(), lambda data: scrub.decode(data.decode()), (UnicodeError,)
    ),
    **{
        name: (value, lambda data, name=name: _records({**RAW, name: data}), ())  # type: ignore[misc]
        for name, value in RAW.items()
    },
}  # fmt: skip

DOCUMENTS: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "replication": (RULES, _replication),
    "lifecycle": (LIFECYCLE, lifecycle.read_lifecycle),
    "role": (ROLE, lambda document: roles.parse_role(document, "r")),
    "versioning": ({"Status": "Enabled"}, replication.parse_versioning),
    "request": (
        json.loads(request_json.encode(requests.Retry())),
        lambda document: request_json.decode(json.dumps(document).encode()),
    ),
    "record": (
        json.loads(RAW[record_form.RECORD]),
        lambda document: _records({**RAW, record_form.RECORD: json.dumps(document).encode()}),
    ),
    "sidecar": (
        json.loads(attributes.encode_sidecar(RAW)),
        lambda document: _records(attributes.decode_sidecar(json.dumps(document).encode())),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BYTES)
def test_damaged_bytes_are_read_or_refused(what: str) -> None:
    """Settings, control frames, records, sidecars, names: one of our own errors, or the errors that are documented."""
    whole, parse, allowed = BYTES[what]

    @settings(max_examples=100 * TIMES)
    @given(damaged(whole) | st.binary(max_size=40))
    def read(data: bytes) -> None:
        try:
            parse(data)
        except (FsreplError, *allowed):
            pass

    read()
    with contextlib.suppress(FsreplError, *allowed):
        parse(NESTED)


@pytest.mark.parametrize("what", DOCUMENTS)
def test_documents_with_any_value_in_any_place_are_read_or_refused(what: str) -> None:
    """S3's documents, roles, requests and records."""
    whole, parse = DOCUMENTS[what]
    parse(whole)

    @settings(max_examples=200 * TIMES)
    @given(changed(whole))
    def read(document: Any) -> None:
        with contextlib.suppress(FsreplError):
            parse(document)

    read()


@pytest.mark.slow
def test_damaged_documents_on_disk_end_no_loop(memory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bucket whose documents cannot be read is offline, says why, and goes on when they are as before."""
    with World(memory) as world:
        world.write("d/k", b"one")
        world.run("lifecycle.put", bucket=SOURCE, document=LIFECYCLE)
        world.settle()
        meta = world.path(".fsrepl")
        view = [1, 3, 5, 5, 33188, "", True]
        intents = [{"key": "ZC9r", "version": "", "was": was, "act": "show"} for was in (None, view)]
        (meta / "intents" / "1-x").write_text(json.dumps(intents))
        (meta / "removed.jsonl").write_text('{"key": "gone", "version": "01M8KJ3YBH6BRFRECPKNX5GBNR"}\n')
        stored = next(meta.glob("versions/d/k;*"))
        whole = {path: path.read_bytes() for path in (*meta.glob("*.json*"), meta / "intents" / "1-x")}
        record = os.getxattr(stored, "user.fsrepl.record")

        @settings(max_examples=40 * TIMES)
        @given(st.data())
        def damage(data: st.DataObject) -> None:
            path = data.draw(st.sampled_from([*whole, stored]))
            before = record if path == stored else whole[path]
            after = data.draw(damaged(before) | changed(json.loads(before)).map(lambda d: json.dumps(d).encode()))
            if path == stored:
                os.setxattr(stored, "user.fsrepl.record", after[:60_000])
            else:
                path.write_bytes(after)
            world.restart(without_journal=path == stored)
            world.settle()
            for known, content in whole.items():
                known.write_bytes(content)
            os.setxattr(stored, "user.fsrepl.record", record)

        damage()
        world.restart(without_journal=True)
        world.settle()
        assert world.tree(DESTINATION)["d/k"] == b"one"
    assert [each for each in caplog.records if each.exc_info] == []
