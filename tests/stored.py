"""Files of the store: their paths, and their records changed by hand, damaged or as earlier builds wrote them; and a
journal that is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from pathlib import Path

from fsrepl.model import attributes, keys
from fsrepl.model.version import Version
from tests.world import SOURCE, World

INLINE = attributes.TRUSTED_RECORD if os.geteuid() == 0 else attributes.OWN_RECORD


def set_field(path: Path, name: str, value: object) -> None:
    """Change one field of the record in a stored file's attributes."""
    document = json.loads(os.getxattr(path, attributes.RECORD))
    os.setxattr(path, attributes.RECORD, json.dumps({**document, name: value}).encode())


def former(version: Version) -> dict[str, bytes]:
    """The attributes of a version as earlier builds wrote them, one for each field."""
    out = attributes.encode(version)
    if version.status:
        out[attributes.STATUS] = version.status.encode()
    if version.deliveries:
        said = {d: {"rule": x.rule, "status": str(x.status)} for d, x in version.deliveries.items()}
        out[attributes.DELIVERIES] = json.dumps(said).encode()
    return out


def as_earlier_builds(world: World, bucket: str) -> int:
    """Write every record of a bucket, and the labels of its views, as earlier builds did. Returns their number."""
    found = [v for versions in world.history(bucket).values() for v in versions]
    with world.engine.site.bucket(bucket).open() as opened:
        for version in found:
            at, name = opened.stored_file(version.key, version.id, marker=version.marker)
            path = Path(os.fsdecode(os.readlink(f"/proc/self/fd/{at}"))) / os.fsdecode(name)
            raw = former(version)
            side = path.with_name(path.name + os.fsdecode(keys.SIDECAR))
            shared = INLINE in os.listxattr(path) and path.stat().st_nlink > 1
            _put(path, raw, shared=shared)
            if side.exists():
                side.write_bytes(attributes.encode_sidecar(raw))
            elif shared:
                whole = {**raw, attributes.KEY: version.key}
                os.setxattr(path, INLINE, attributes.encode_sidecar(whole, compact=True))
            view = world.path(os.fsdecode(version.key), bucket)
            if view.is_file() and world.current(os.fsdecode(version.key), bucket).id == version.id:
                label = {n: v for n, v in raw.items() if attributes.is_ours(n) and n not in (attributes.POSIX,)}
                _put(view, label, shared=True)
    world.engine.recent.forget(bucket)
    return len(found)


def _put(path: Path, raw: dict[str, bytes], *, shared: bool) -> None:
    for name in os.listxattr(path):
        if name == attributes.RECORD or (attributes.is_ours(name) and name not in raw and not shared):
            os.removexattr(path, name)
    for name, value in raw.items():
        if name in (attributes.POSIX, attributes.KEY) and shared:
            continue
        with contextlib.suppress(OSError):  # there is no room
            os.setxattr(path, name, value)


def is_of_today(world: World, bucket: str) -> set[bool]:
    """By stored file of a bucket, whether its record is in today's form; without sidecars."""
    out = set()
    for path in world.path(".fsrepl/versions", bucket).rglob("*;*"):
        if path.name.endswith(os.fsdecode(keys.SIDECAR)):
            continue
        names = set(os.listxattr(path))
        out.add(attributes.RECORD in names and not names & attributes.FORMER)
    return out


def stored(world: World, key: str, bucket: str = SOURCE, number: int = -1) -> Path:
    """The file of a version of a key, by default the newest."""
    directory, _, name = key.rpartition("/")
    files = sorted(world.path(f".fsrepl/versions/{directory}", bucket).glob(f"{name};*"))
    return [f for f in files if not f.name.endswith(".json")][number]


def damage_journal(path: Path, statement: str, *values: object, is_strict: bool) -> None:
    """Change rows as no program can: SQLite refuses a value of another type in a strict table. is_strict: the tables
    are so afterwards, as this build makes them, and not as an earlier one did."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        made = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())
        _set_schema(db, {name: text.removesuffix(", STRICT") for name, text in made.items()})
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute(statement, values)
        _set_schema(db, made if is_strict else {})


def _set_schema(db: sqlite3.Connection, made: dict[str, str]) -> None:
    db.execute("PRAGMA writable_schema = ON")
    db.executemany("UPDATE sqlite_master SET sql = ? WHERE name = ?", [(text, name) for name, text in made.items()])
