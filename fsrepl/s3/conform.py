"""JSON documents checked against types: unknown, missing and mistyped fields are errors. Pure.

A document's form is written once, as a TypedDict. mypy checks fsrepl's code against it, and `conform` checks users'
documents.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Required, TypeVar, cast, get_args, get_origin, get_type_hints, is_typeddict

from fsrepl.errors import Refused

T = TypeVar("T")

_NAMES: Mapping[object, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_SHOWN_MAX = 100


def conform(value: object, kind: type[T], code: str, of: str = "") -> T:
    """The value itself, checked against a form.

    kind is a TypedDict, of str, int, bool, Literal strings, list, X | list[X], and nested TypedDicts. A field is
    optional unless Required. A field that is Annotated[Never, why] is known but refused with that reason.

    Raises Refused(code); the message names the document (`of`), the field, and the right form.
    """
    try:
        _check(value, kind, "")
    except ValueError as error:
        raise Refused(code, f"{of}: {error}" if of else str(error)) from None
    return cast(T, value)


def quoted(value: object) -> str:
    """A value as JSON for a message: one line of limited length, without terminal control characters."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    if not text.isprintable():
        text = json.dumps(value, default=repr)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


def _check(value: object, kind: Any, where: str) -> None:
    origin, args = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        _check_object(_typed(value, dict, where), kind, where)
    elif origin is list:
        for i, item in enumerate(_typed(value, list, where)):
            _check(item, args[0], f"{where}[{i}]")
    elif origin is UnionType:  # X | list[X]
        one, many = args
        _check(value, many if isinstance(value, list) else one, where)
    elif origin is Literal:
        if value not in args:
            raise ValueError(f"{where} must be {' or '.join(map(quoted, args))}, not {quoted(value)}")
    elif origin is Annotated:  # Annotated[Never, reason]
        raise ValueError(f"{where}: {args[1]}")
    else:
        _typed(value, kind, where)


def _check_object(value: dict[str, object], kind: Any, where: str) -> None:
    fields, required = _fields(kind)
    for name in value:
        if name not in fields:
            raise ValueError(f"{where or 'the document'} has an unknown field {quoted(name)}; {_advice(name, fields)}")
    for name in required:
        if name not in value:
            raise ValueError(f"{where or 'the document'} lacks {quoted(name)}")
    for name, inner in value.items():
        _check(inner, fields[name], f"{where}.{name}" if where else name)


def _typed(value: object, kind: type[T], where: str) -> T:
    if type(value) is not kind:  # exact type, since True is also an int
        raise ValueError(f"{where or 'the document'} must be {_NAMES[kind]}, not {quoted(value)}")
    return value


@functools.cache
def _fields(kind: Any) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The fields of a TypedDict, and the names of the required ones."""
    hints = get_type_hints(kind, include_extras=True)
    required = tuple(name for name, hint in hints.items() if get_origin(hint) is Required)
    return {name: get_args(hint)[0] if name in required else hint for name, hint in hints.items()}, required


def _advice(name: str, fields: Mapping[str, Any]) -> str:
    known = {field.lower(): field for field in fields}
    near = difflib.get_close_matches(name.lower(), list(known), 1, 0.6)
    return f"did you mean {quoted(known[near[0]])}?" if near else "known are " + ", ".join(fields)
