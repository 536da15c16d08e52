"""Requests: each is the same after the control socket, and each has a handler."""

from __future__ import annotations

import json
from typing import get_type_hints

import pytest
from msgspec import NODEFAULT, structs

from fsrepl.commands import operations
from fsrepl.daemon import request_json, requests
from fsrepl.daemon.requests import Request
from fsrepl.model.address import Address

AT = Address("east", "src", b"2026/caf\xe9")
EXAMPLES: dict[object, object] = {
    str: "ä b\n",
    bytes: bytes(range(256)),
    bool: True,
    float | None: 2.5,
    int: 7,
    int | None: 0o22,
    str | None: "01K",
    object: {"Rules": [{"ID": "1"}]},
    Address: AT,
    Address | None: AT,
}


def example(wanted: object) -> object:
    if wanted in EXAMPLES:
        return EXAMPLES[wanted]
    if str(wanted).startswith("collections.abc.Mapping"):
        return {"a": "ä"}
    return (EXAMPLES[wanted.__args__[0]],) * 2  # type: ignore[attr-defined]


def filled(kind: type[Request], *, whole: bool) -> Request:
    hints = get_type_hints(kind)
    needed = [each for each in structs.fields(kind) if whole or request_json._default(each) is NODEFAULT]
    return kind(**{each.name: example(hints[each.name]) for each in needed})


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "bare"])
@pytest.mark.parametrize("kind", request_json.KINDS.values(), ids=request_json.KINDS.keys())
def test_a_request_comes_out_as_it_went_in(kind: type[Request], whole: bool) -> None:
    """Section 5: whatever bytes a key has, whatever a document holds."""
    request = filled(kind, whole=whole)
    line = request_json.encode(request)
    assert line.count(b"\n") == 1
    assert request_json.decode(line) == request
    assert str(request).startswith(request.op.replace(".", " "))


@pytest.mark.parametrize("kind", request_json.KINDS.values(), ids=request_json.KINDS.keys())
def test_what_is_at_its_default_is_not_sent(kind: type[Request]) -> None:
    """Section 5: a daemon that does not know a new parameter still accepts all requests that do not use it."""
    sent = json.loads(request_json.encode(filled(kind, whole=False)))["params"].keys()
    assert all(request_json._default(each) is NODEFAULT for each in structs.fields(kind) if each.name in sent)


def test_every_request_is_answered() -> None:
    """Section 5: by an operation, or by the daemon itself where only the daemon knows the answer."""
    own = {
        requests.GetStatus,
        requests.GetStatusPage,
        requests.GetSamples,
        requests.GetProgress,
        requests.ExplainObject,
        requests.Wait,
    }
    assert own | operations.OPERATIONS.keys() == set(request_json.KINDS.values())
    assert not own & operations.OPERATIONS.keys()
