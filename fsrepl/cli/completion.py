"""Shell completion: regions, buckets, and keys a directory at a time. No function here may fail or be slow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import typer

from fsrepl.errors import FsreplError
from fsrepl.settings import Settings, reading


def regions(context: typer.Context, incomplete: str) -> list[str]:
    found = _settings(context)
    names = [*found.regions, *found.destinations] if found else []
    return [name for name in names if name.startswith(incomplete)]


def buckets(context: typer.Context, incomplete: str) -> list[str]:
    """Completions of REGION/BUCKET."""
    return sorted(address for address in _buckets(context) if address.startswith(incomplete))


def places(context: typer.Context, incomplete: str) -> list[str]:
    """Completions of REGION[/BUCKET]."""
    return (buckets if "/" in incomplete else regions)(context, incomplete)


def objects(context: typer.Context, incomplete: str) -> list[str]:
    """Completions of REGION/BUCKET/KEY, from the views."""
    region, _, rest = incomplete.partition("/")
    bucket, slash, key = rest.partition("/")
    if not slash:
        return [f"{address}/" for address in buckets(context, incomplete)]
    folder, _, begins = key.rpartition("/")
    found = []
    with contextlib.suppress(OSError, KeyError), os.scandir(_regions(context)[region] / bucket / folder) as entries:
        for entry in entries:
            if entry.name.startswith(begins) and (folder or entry.name != ".fsrepl"):
                name = f"{region}/{bucket}/{folder}/{entry.name}" if folder else f"{region}/{bucket}/{entry.name}"
                found.append(f"{name}/" if entry.is_dir(follow_symlinks=False) else name)
    return sorted(found)


def roles(context: typer.Context, incomplete: str) -> list[str]:
    found = _settings(context)
    if found is None or not found.roles.is_dir():
        return []
    return sorted(path.stem for path in found.roles.glob("*.json") if path.stem.startswith(incomplete))


def _settings(context: typer.Context) -> Settings | None:
    site = context.find_root().params.get("site")  # while completing, typer before 0.29 leaves it a string
    try:
        return reading.load(reading.find(Path(site) if site else None, os.environ))
    except FsreplError:
        return None


def _regions(context: typer.Context) -> dict[str, Path]:
    found = _settings(context)
    return {name: region.path for name, region in found.regions.items()} if found else {}


def _buckets(context: typer.Context) -> Iterator[str]:
    for name, path in _regions(context).items():
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                if os.path.exists(os.path.join(entry.path, ".fsrepl")):
                    yield f"{name}/{entry.name}"
