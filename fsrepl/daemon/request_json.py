"""A request to the daemon <-> its line of JSON on the control socket.

A parameter at its default is not sent, so that a command and a daemon of different versions understand each other in
all that both know; otherwise they report the difference.
"""

from __future__ import annotations

import base64
import functools
import json
import types
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from msgspec import NODEFAULT
from msgspec.structs import FieldInfo, fields

from fsrepl.daemon.requests import Request
from fsrepl.errors import Usage
from fsrepl.model.address import Address

_VERSIONS = "restart it if it is of another version of fsrepl than this command"


def _kinds(base: type[Request]) -> dict[str, type[Request]]:
    found: dict[str, type[Request]] = {}
    for kind in base.__subclasses__():
        found |= _kinds(kind) or {kind.op: kind}
    return found


KINDS: Mapping[str, type[Request]] = _kinds(Request)


def encode(request: Request) -> bytes:
    """The line that decode reads."""
    given = {each.name: getattr(request, each.name) for each in _fields(type(request))}
    params = {
        each.name: _plain(given[each.name]) for each in _fields(type(request)) if given[each.name] != _default(each)
    }
    return json.dumps({"op": request.op, "params": params}).encode() + b"\n"


def decode(line: bytes) -> Request:
    """The request of a line. Raises Usage, in one sentence, for a request unknown to this version of fsrepl."""
    try:
        document = json.loads(line)
        op, given = str(document["op"]), document["params"]
        if not isinstance(given, dict):
            raise ValueError(f"its params are {json.dumps(given)[:80]}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Usage(f"the daemon was asked something it does not understand: {error}") from error
    kind = KINDS.get(op)
    if kind is None:
        raise Usage(f"the daemon knows no operation {op!r}, which the command asks for; {_VERSIONS}")
    wanted = {each.name: each.type for each in _fields(kind)}
    known = {each.name: _default(each) for each in _fields(kind)}
    if unknown := sorted(given.keys() - known.keys()):
        raise Usage(f"the daemon knows no {unknown[0]!r} of {op}, which the command gives; {_VERSIONS}")
    if missing := [name for name, default in known.items() if default is NODEFAULT and name not in given]:
        raise Usage(f"the daemon needs {missing[0]!r} for {op}, which the command does not give; {_VERSIONS}")
    return kind(**{name: _read(kind, name, wanted[name], value) for name, value in given.items()})


@functools.cache
def _fields(kind: type[Request]) -> tuple[FieldInfo, ...]:
    """The parameters of an operation with their types, which msgspec evaluates anew at each call."""
    return fields(kind)


def _default(each: FieldInfo) -> object:
    """The value of an omitted parameter; NODEFAULT where it is required."""
    return each.default if each.default_factory is NODEFAULT else each.default_factory()


def _plain(value: object) -> object:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case Address():
            return str(value)
        case tuple():
            return [_plain(each) for each in value]
        case Mapping():
            return dict(value)
        case _:
            return value


def _read(kind: type[Request], name: str, wanted: Any, value: object) -> object:
    try:
        return _typed(wanted, value)
    except (ValueError, Usage) as error:
        raise Usage(f"the daemon cannot read {name!r} of {kind.op}: {error}; {_VERSIONS}") from error


def _typed(wanted: Any, value: object) -> object:
    """A JSON value, converted to the type of a field. Raises ValueError, Usage."""
    if wanted is object:
        return value
    if isinstance(wanted, types.UnionType):  # all such unions have None as second member
        first, _ = get_args(wanted)
        return None if value is None else _typed(first, value)
    if wanted is bytes and isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if wanted is Address and isinstance(value, str):
        return Address.parse(value)
    if get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(_typed(get_args(wanted)[0], each) for each in value)
    if get_origin(wanted) is Mapping and isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
        return value
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is wanted:
        return value
    raise ValueError(f"it is {json.dumps(value)[:80]}")
