"""Checks common to replication and lifecycle configurations that have the right form. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from fsrepl.errors import Refused
from fsrepl.s3.conform import quoted

T = TypeVar("T")

ID_MAX = 255
PREFIX_MAX_BYTES = 1024

Fault = tuple[str, str]
"""S3's code, and a message."""


def refuse_first(faults: Iterator[Fault], where: str = "") -> None:
    """Raises Refused with the first fault, if any."""
    for code, message in faults:
        raise Refused(code, where + message)


def unwrapped(document: object, name: str) -> object:
    """A document without the wrapper that `aws s3api` accepts."""
    return document[name] if isinstance(document, dict) and document.keys() == {name} else document


def named(rule_id: str | None, number: int) -> str:
    """The name of a rule in messages."""
    return f"rule {quoted(rule_id)}" if rule_id else f"Rules[{number}]"


def of_tags(tag_keys: list[str]) -> Iterator[Fault]:
    """Faults in the tags of a filter."""
    if "" in tag_keys:
        yield "MalformedXML", "the Key of a tag is empty"
    if key := repeated(tag_keys):
        yield "InvalidRequest", f"Duplicate Tag Keys are not allowed: {quoted(key)}"


def of_prefix(prefix: str) -> Iterator[Fault]:
    """Faults in the prefix of a filter."""
    try:
        size_bytes = len(key_prefix(prefix))
    except UnicodeEncodeError:
        yield "MalformedXML", f"Prefix {quoted(prefix)} is no text"
        return
    if size_bytes > PREFIX_MAX_BYTES:
        yield (
            "InvalidArgument",
            f"Rule prefix cannot be longer than maximum allowed key length of {PREFIX_MAX_BYTES}; it has {size_bytes}",
        )


def of_id(rule_id: str) -> Iterator[Fault]:
    """Faults in the id of a rule."""
    if len(rule_id) > ID_MAX:
        yield "InvalidArgument", f"ID length should not exceed allowed limit of {ID_MAX}"
    if not (rule_id.isascii() and rule_id.isprintable()):
        yield "InvalidArgument", "ID must be printable ASCII"


def of_ids(rule_ids: Iterable[str | None]) -> Iterator[Fault]:
    """Faults in the ids of all rules together."""
    if name := repeated(rule_id for rule_id in rule_ids if rule_id):
        yield "InvalidArgument", f"Rule Id must be unique, and {quoted(name)} is there twice"


def key_prefix(prefix: str) -> bytes:
    """A prefix as bytes, like a key. Bytes that are not UTF-8 are \\udcNN in JSON, as in Python.

    Raises UnicodeEncodeError.
    """
    return prefix.encode("utf-8", "surrogateescape")


def repeated(values: Iterable[T]) -> T | None:
    """The first value that occurred before."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None
