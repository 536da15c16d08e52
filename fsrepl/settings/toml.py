"""TOML as text: statements with their line numbers, and the notation of names and values. Pure."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator

from msgspec import Struct

Keys = tuple[str, ...]
"""The path of a value in the file: ("capture", "settle_ms"), ("regions", "us-east-1", "path")."""


class Statement(Struct, frozen=True):
    """A header, an assignment, or a line without either: lines first to end, end excluded."""

    first: int
    end: int
    table: Keys
    """The current table; for a header, its own."""
    keys: tuple[Keys, ...]
    """All full names that the statement sets, outer ones first; empty for a comment or a blank line."""
    header: bool


def statements(text: str) -> Iterator[Statement]:
    """The statements of a valid TOML text.

    tomllib keeps no line numbers. A statement ends with its line unless a bracket or a multi-line string is open, and
    until then the text is not valid. Lines are therefore added until tomllib accepts them; comments and blank lines,
    which are most of a new site's file, are accepted without it.
    """
    lines = text.split("\n")
    table: Keys = ()
    first = 0
    while first < len(lines):
        end = first + 1
        begins = lines[first].lstrip(" \t\r")[:1]
        if begins in ("", "#"):
            yield Statement(first, end, table, (), False)
            first = end
            continue
        while (found := _parsed(lines[first:end])) is None:
            end += 1
            assert end <= len(lines), "not valid TOML"
        header = begins == "["
        keys = tuple(_walk(found, () if header else table))
        table = keys[-1] if header else table
        yield Statement(first, end, table, keys, header)
        first = end


def _parsed(lines: list[str]) -> dict[str, object] | None:
    try:
        return tomllib.loads("\n".join(lines) + "\n")
    except tomllib.TOMLDecodeError:
        return None


def _walk(value: object, above: Keys) -> Iterator[Keys]:
    if isinstance(value, list) and len(value) == 1:  # an array of tables; a header creates one element
        value = value[0]
    if isinstance(value, dict):
        for name, below in value.items():
            yield (*above, name)
            yield from _walk(below, (*above, name))


def quoted(value: object) -> str:
    """A value in TOML on one line: strings, numbers, booleans and arrays of these."""
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")


def title_of(keys: Keys) -> str:
    """The name of a table or setting in messages: regions."eu.west"."""
    return ".".join(k if re.fullmatch(r"[A-Za-z0-9_-]+", k) else quoted(k) for k in keys)
