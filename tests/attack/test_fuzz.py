"""Bytes that somebody else wrote, in any state of damage, are read or refused, and never end a loop.

Hypothesis damages what is valid: bytes are cut, doubled and changed, and in JSON any value is replaced by any other.
FSREPL_LONG=1 tries a hundred times as many. fuzz.py does the same led by coverage, for as long as it is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model import attributes, record_form
from tests.attack.formats import FORMATS, LIFECYCLE, POSIX, RAW, STORED, WHOLE_RECORD
from tests.attack.fuzz import exchange
from tests.world import DESTINATION, SOURCE, World

TIMES = 100 if os.environ.get("FSREPL_LONG") else 1

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


@pytest.mark.parametrize("what", FORMATS)
def test_damaged_bytes_are_read_or_refused(what: str) -> None:
    """Settings, frames, records, sidecars, names: one of our own errors, or the errors that are documented."""
    tried = FORMATS[what]
    tried.read(tried.whole)

    @settings(max_examples=100 * TIMES)
    @given(damaged(tried.whole) | st.binary(max_size=40))
    def read(data: bytes) -> None:
        with contextlib.suppress(FsreplError, *tried.allowed):
            tried.read(data)

    read()
    with contextlib.suppress(FsreplError, *tried.allowed):
        tried.read(NESTED)


@pytest.mark.parametrize("what", [what for what, tried in FORMATS.items() if tried.is_json])
def test_documents_with_any_value_in_any_place_are_read_or_refused(what: str) -> None:
    """S3's documents, roles, requests, records and metadata of objects."""
    tried = FORMATS[what]

    @settings(max_examples=200 * TIMES)
    @given(changed(json.loads(tried.whole)))
    def read(document: Any) -> None:
        with contextlib.suppress(FsreplError, *tried.allowed):
            tried.read(json.dumps(document).encode())

    read()


def test_an_exchange_of_values_changes_a_document() -> None:
    """The fuzzer's own changes: each kind of them is made, and the result is JSON again."""
    before = json.loads(json.dumps(WHOLE_RECORD))
    after = [exchange(json.loads(json.dumps(before)), random.Random(seed)) for seed in range(60)]
    assert sum(json.loads(json.dumps(each)) != before for each in after) > 50


@pytest.mark.parametrize(
    "value",
    [
        '{"west/dst":{"rule":"r","status":"PENDING","since_ns":1e999}}',
        '{"west/dst":{"rule":"r","status":"PENDING","since_ns":NaN}}',
        '{"west/dst":{"rule":[],"status":"PENDING"}}',
        '{"west/dst":{"rule":"r","status":"PENDING","crossed_bytes":-1}}',
    ],
)
def test_a_delivery_with_values_of_another_kind_is_damage(value: str) -> None:
    """Where files are linked their owner can set these attributes; nobody handles an OverflowError or a TypeError."""
    raw = record_form.read({**RAW, attributes.DELIVERIES: value.encode()})
    with pytest.raises(StoreDamaged):
        attributes.decode(b"d/k", STORED, raw, POSIX, 3)


def test_an_empty_acl_is_none() -> None:
    """No inode has it, and setxattr refuses it."""
    posix = {"mode": "0644", "uid": 0, "gid": 0, "mtime_ns": 0, "acl": "", "default_acl": ""}
    record = json.dumps(WHOLE_RECORD | {"posix": posix}).encode()
    found = attributes.decode(b"d/k", STORED, record_form.read({record_form.RECORD: record}), POSIX, 3).posix
    assert found == replace(POSIX, uid=0, gid=0, mtime_ns=0)


@pytest.mark.parametrize(
    "posix",
    [
        {"mode": [], "uid": 0, "gid": 0, "mtime_ns": 0},
        {"mode": "0644", "uid": 1 << 40, "gid": 0, "mtime_ns": 0},
        {"mode": "0644", "uid": 0, "gid": "0", "mtime_ns": 0},
        {"mode": "0644", "uid": 0, "gid": 0, "mtime_ns": 1 << 200},
    ],
)
def test_metadata_that_no_inode_has_is_damage(posix: object) -> None:
    """chown and utime would raise OverflowError, when the version is delivered."""
    record = json.dumps(WHOLE_RECORD | {"posix": posix}).encode()
    with pytest.raises(StoreDamaged):
        attributes.decode(b"d/k", STORED, record_form.read({record_form.RECORD: record}), POSIX, 3)


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
