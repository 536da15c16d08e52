"""TOML as text: its statements with their lines, and how it writes names and values. Pure."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass

Keys = tuple[str, ...]
"""Where something is in the file: ("capture", "settle_ms"), ("regions", "us-east-1", "path")."""


@dataclass(frozen=True, slots=True)
class Statement:
    """A header, an assignment, or a line without either: lines first to end, end excluded."""

    first: int
    end: int
    table: Keys
    """The table in force, a header's own included."""
    keys: tuple[Keys, ...]
    """All it sets, by whole names, outer ones first; nothing for a comment or a blank line."""
    header: bool


def statements(text: str) -> Iterator[Statement]:
    """The statements of a text that is valid TOML.

    tomllib keeps no line numbers. But a statement ends with its line, unless a bracket or a multi-line
    string is open, and then it is not valid yet: so lines are added until tomllib takes them.
    """
    lines = text.split("\n")
    table: Keys = ()
    first = 0
    while first < len(lines):
        end = first + 1
        while (found := _parsed(lines[first:end])) is None:
            end += 1
            assert end <= len(lines), "not valid TOML"
        header = lines[first].lstrip(" \t").startswith("[")
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
    if isinstance(value, list) and len(value) == 1:  # an array of tables, of which a header makes one
        value = value[0]
    if isinstance(value, dict):
        for name, below in value.items():
            yield (*above, name)
            yield from _walk(below, (*above, name))


def quoted(value: object) -> str:
    """A value as TOML writes it, on one line: strings, numbers, booleans and arrays of these."""
    return json.dumps(value, ensure_ascii=False, default=str).replace("\x7f", "\\u007f")


def title_of(keys: Keys) -> str:
    """A table or a setting by its name: regions."eu.west"."""
    return ".".join(k if re.fullmatch(r"[A-Za-z0-9_-]+", k) else quoted(k) for k in keys)
