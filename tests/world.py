"""A site in a temporary directory, driven in one thread, for tests of the engine."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from fsrepl import settings
from fsrepl.capture import schedule
from fsrepl.commands import operations, sites
from fsrepl.daemon import request_json, requests
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.worker import Worker
from fsrepl.errors import Refused
from fsrepl.model import attributes
from fsrepl.model.address import Address
from fsrepl.model.version import Posix, Status, Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.s3 import arn
from fsrepl.settings import reading
from fsrepl.storage import versions
from fsrepl.storage.fs import Fs
from tests import copied, shown
from tests.counted import counted, recounted
from tests.doubles import DyingFs, UnsyncedFs

SOURCE, DESTINATION = "east/src", "west/dst"
ROLE = "courier"
USER = 65533
"""An ordinary user, whom tests become that root would pass without noticing."""

Json = dict[str, Any]
History = dict[bytes, list[Version]]
"""The versions and markers of each key, oldest first. Reading them opens every stored version: several assertions share
one history where worlds are built by the hundred."""


def v1(prefix: str = "", *, to: str = DESTINATION, status: str = "Enabled", **destination: object) -> Json:
    """A V1 rule: markers are always replicated."""
    return {"Prefix": prefix, "Status": status, "Destination": {"Bucket": arn.bucket_arn(to), **destination}}


def v2(
    prefix: str = "", priority: int = 1, *, to: str = DESTINATION, markers: bool = False, status: str = "Enabled",
    tags: Mapping[str, str] | None = None, **destination: object,
) -> Json:  # fmt: skip
    """A V2 rule, by prefix, tags or both."""
    predicates: list[Json] = [{"Prefix": prefix}] if prefix or not tags else []
    tag_set = [{"Key": name, "Value": value} for name, value in (tags or {}).items()]
    if tag_set and (prefix or len(tag_set) > 1):
        predicates = [{"And": {**({"Prefix": prefix} if prefix else {}), "Tags": tag_set}}]
    elif tag_set:
        predicates = [{"Tag": tag_set[0]}]
    return {
        "Filter": predicates[0],
        "Priority": priority,
        "Status": status,
        "DeleteMarkerReplication": {"Status": "Enabled" if markers else "Disabled"},
        "Destination": {"Bucket": arn.bucket_arn(to), **destination},
    }


def worlds(home: Path, **more: Any) -> Iterator[tuple[int, World]]:
    """New worlds without end, each with its number; a world is removed when the next is requested."""
    for number in itertools.count():
        with World(home / str(number), **more) as world:
            yield number, world
        shutil.rmtree(world.home)


def ids(history: History) -> dict[bytes, list[tuple[str, int, bool, bytes]]]:
    return {key: [(v.id, v.created_ns, v.marker, v.digest) for v in found] for key, found in history.items()}


def statuses(history: History) -> set[Status | None]:
    return {v.status for found in history.values() for v in found}


def at(bucket: str, key: bytes = b"") -> Address:
    return replace(Address.parse_bucket(bucket), key=key)


def request(name: str, /, **params: object) -> requests.Request:
    """A request as it comes through the socket: buckets are text, and an object may be given by bucket and key."""
    if "key" in params:
        bucket, key = params.pop("bucket"), params.pop("key")
        assert isinstance(bucket, str)
        assert isinstance(key, bytes)
        params["address"] = f"{bucket}/{os.fsdecode(key)}"
    return request_json.decode(json.dumps({"op": name, "params": params}, default=_as_json).encode())


def _as_json(value: object) -> object:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else list(value)  # type: ignore[call-overload]


@contextlib.contextmanager
def _unsynced_journal() -> Iterator[None]:
    """A context in which a journal is opened without waiting for the disk: as with UnsyncedFs, the power stays on."""
    real = sqlite3.connect

    def connect(*given: Any, **more: Any) -> sqlite3.Connection:
        opened = real(*given, **more)
        with contextlib.suppress(sqlite3.Error):  # which the engine meets itself
            opened.execute("PRAGMA synchronous = OFF")
        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        yield


class World:
    """Two regions, a versioned bucket in each, the first replicated to the second; other buckets as the arguments say.

    The engine has no threads and no watcher: `settle` lets scans find all changes, and runs every region until nothing
    is left to do. `restart` is the start after a crash: a new engine on the same disk.
    """

    _made: ClassVar[dict[tuple[object, ...], tuple[copied.Made, list[str]]]] = {}
    """By what they are made from: sites to copy, and the buckets that had been scanned when they were made."""

    def __init__(
        self,
        home: Path,
        *,
        fs: Fs | None = None,
        replicate: bool = True,
        buckets: tuple[str, ...] = (SOURCE, DESTINATION),
        regions: Mapping[str, Path] | None = None,
        trees: bool = False,
    ) -> None:
        self.home = home
        places = {name: str(path) for name, path in (regions or {}).items()}
        names = sorted({bucket.partition("/")[0] for bucket in buckets})
        what = (buckets, replicate, trees, os.geteuid(), copied.umask())
        is_plain = fs is None and not regions and copied.is_plain(home)
        if is_plain and what in self._made:
            made, scanned = self._made[what]
            made.write(home)
            self.settings = reading.load(home / settings.FILE)
            self._start(fs)
            for address in scanned:
                self.region(address).probe_buckets()
                self.capture(address)
            return
        sites.init(home, {name: places.get(name) for name in names}, fs=UnsyncedFs())
        self.settings = reading.load(home / settings.FILE)
        self._start(fs)
        for bucket in buckets:
            self.run("bucket.create", bucket=bucket, versioning=True, trees=trees)
        if replicate:
            self.run("replication.enable", source=SOURCE, destination=DESTINATION)
        if is_plain:
            states = [state for region in self.engine.regions.values() for state in region.states.values()]
            self._made[what] = (copied.Made.read(home), [s.bucket.address for s in states if s.is_scanned])

    def run(self, name: str, /, **params: object) -> dict[str, object]:
        return operations.run(self.engine, request(name, **params))

    def refused(self, name: str, /, **params: object) -> str:
        """Run an operation that must be refused. Returns S3's code."""
        try:
            done = self.run(name, **params)
        except Refused as error:
            return error.code
        raise AssertionError(f"{name} {params} was not refused: {done}")

    def configure(self, *rules: Json, source: str = SOURCE, role: str = "") -> None:
        """Put a configuration; without a role, with one that may send every bucket's objects to every other."""
        if not role:
            role = f"{ROLE}-{source.replace('/', '-')}"
            others = [bucket for bucket in self.engine.site.buckets if bucket != source]
            if not (self.settings.roles / f"{role}.json").exists():
                self.run("role.create", name=role, source=source, destinations=others)
        self.run("replication.put", source=source, document={"Role": arn.role_arn(role), "Rules": list(rules)})

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            with contextlib.suppress(sqlite3.ProgrammingError):  # the test has closed it
                assert kind is not None or counted(self.engine.journal) == recounted(self.engine.journal)
        finally:
            self.engine.close()

    # -- time passes

    def look(self) -> None:
        """Begin a scan of every bucket, as after lost events."""
        for region in self.engine.regions.values():
            region.probe_buckets()
            for state in region.states.values():
                if state.is_up:
                    schedule.begin(region, state)

    def capture(self, bucket: str) -> None:
        """Capture the changes in one bucket, and deliver nothing of it yet."""
        self.region(bucket).flush(bucket)

    def settle(self) -> None:
        self.look()
        self.flush_settling()
        assert self.engine.run_until_idle(), "it turns for ever"

    def flush_settling(self) -> None:
        """Make everything due that waits for its next try."""
        for region in self.engine.regions.values():
            region.outcomes.retry_late()
            for address in region.states:
                region.changes.flush_settling(address)
            for queue in region.queues.values():
                queue.retry_now()
            for state in region.states.values():
                state.attachment.up_again_at_s = state.attachment.displaced_at_s = state.lifecycle.look_s = 0.0
                if state.lifecycle.run is not None:
                    state.lifecycle.run.due_s = 0.0
                state.captures.copy_again_at_s.clear()
                state.lifecycle.placing.waits = dict.fromkeys(state.lifecycle.placing.waits, 0.0)
                state.views.resting = {path: replace(each, due_s=0.0) for path, each in state.views.resting.items()}
                for each in (*state.captures.deferred.values(), *state.views.stale.values()):
                    each.due_s = 0.0

    def restart(self, *, fs: Fs | None = None, without_journal: bool = False) -> None:
        """Start again as after a crash: only the disk is left of the old process."""
        self.engine.journal.close()
        for region in self.engine.regions.values():
            for state in region.states.values():
                state.replicas.forget(state.bucket.fs)  # a crash closes all files
        if without_journal:
            for path in Path(self.engine.site.state).glob("journal.db*"):
                path.unlink()
        self._start(fs)

    def _start(self, fs: Fs | None) -> None:
        with _unsynced_journal():
            self.engine = Engine(self.settings, fs=fs or UnsyncedFs())
        if isinstance(fs, DyingFs):
            fs.commits = lambda: self.engine.journal.commits
        self.engine.journal.execute("PRAGMA synchronous = OFF")  # which the engine has set to NORMAL

    def set_sharing(self, **regions: str) -> None:
        """Set how view and store share, by region, and start the site again."""
        text = self.settings.path.read_text()
        for region, sharing in regions.items():
            text = text.replace(f"[regions.{region}]\n", f'[regions.{region}]\nsharing = "{sharing}"\n')
        self.settings.path.write_text(text)
        self.settings = reading.load(self.settings.path)
        self.restart()

    def stays_quiet(self) -> None:
        """Check that nothing is left to do: further scans touch no file, and make no edit, no version and no
        delivery."""
        before = self.snapshot()
        for _ in range(2):
            self.settle()
        after = self.snapshot()
        assert before == after, sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))

    # -- places

    def path(self, key: str = "", bucket: str = SOURCE) -> Path:
        region, name = bucket.split("/")
        return self.settings.regions[region].path / name / key

    def state(self, bucket: str = SOURCE) -> BucketState:
        return self.region(bucket).states[bucket]

    def region(self, bucket: str = SOURCE) -> Worker:
        return self.engine.region_of(bucket)

    # -- actions of users

    def write(self, key: str, data: bytes, bucket: str = SOURCE) -> None:
        path = self.path(key, bucket)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def drop(self, key: str, data: bytes, bucket: str = SOURCE, *, tags: Mapping[str, str] | None = None) -> None:
        """Move a finished file in, with its tags already set."""
        aside = self.home / "aside"
        aside.write_bytes(data)
        for name, value in (tags or {}).items():
            os.setxattr(aside, attributes.TAG + name, value.encode())
        path = self.path(key, bucket)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(path)

    def link(self, key: str, target: str, bucket: str = SOURCE) -> None:
        """Make a symlink, in place of another one."""
        path = self.path(key, bucket)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.home / "aside"
        aside.symlink_to(target)
        aside.rename(path)

    def unlink(self, key: str, bucket: str = SOURCE) -> None:
        self.path(key, bucket).unlink()

    def remove(self, key: str, bucket: str = SOURCE, version: str | None = None) -> Json:
        """By command: add a marker, or with a version id permanently remove that version."""
        return self.run("object.rm", bucket=bucket, key=key.encode(), version_id=version)

    def away(self, region: str) -> None:
        """Take a region's disk away."""
        path = self.settings.regions[region].path
        path.rename(path.with_name(path.name + ".away"))

    def back(self, region: str) -> None:
        path = self.settings.regions[region].path
        path.with_name(path.name + ".away").rename(path)

    # -- state

    def tree(self, bucket: str) -> dict[str, bytes]:
        return shown.files(self.path(bucket=bucket))

    def links(self, bucket: str) -> dict[str, str]:
        """The symlinks of a bucket, and their targets."""
        return shown.links(self.path(bucket=bucket))

    def history(self, bucket: str) -> History:
        """Every version and marker of every key in the store, oldest first."""
        out: History = {}
        with self.engine.site.bucket(bucket).open() as opened:
            for version in versions.read_all(opened):
                out.setdefault(version.key, []).append(version)
        return {key: sorted(versions, key=lambda v: v.order) for key, versions in sorted(out.items())}

    def ids(self, bucket: str) -> dict[bytes, list[tuple[str, int, bool, bytes]]]:
        return ids(self.history(bucket))

    def of(self, key: str, bucket: str = SOURCE) -> list[Version]:
        """The versions and markers of one key, newest first."""
        return self.history(bucket).get(key.encode(), [])[::-1]

    def current(self, key: str, bucket: str = SOURCE) -> Version:
        return self.of(key, bucket)[0]

    def statuses(self, bucket: str = SOURCE) -> set[Status | None]:
        return statuses(self.history(bucket))

    def records(self, bucket: str) -> dict[tuple[bytes, str], tuple[object, ...]]:
        """The recorded metadata of every version that two buckets have in common."""
        return {
            (key, v.id): (v.posix, dict(v.attrs), dict(v.tags), dict(v.edited))
            for key, versions in self.history(bucket).items()
            for v in versions
        }

    def look_of(self, key: str, bucket: str = SOURCE) -> tuple[Posix, dict[str, bytes]]:
        """A view's metadata as users see it: mode, owner, time and ACL, and the attributes that are its own."""
        path = self.path(key, bucket)
        found = path.stat()
        raw = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        own = {n: v for n, v in raw.items() if n.startswith("user.") and not attributes.is_ours(n)}
        mode = found.st_mode & 0o7777
        return Posix(mode, found.st_uid, found.st_gid, found.st_mtime_ns, raw.get("system.posix_acl_access")), own

    def snapshot(self) -> dict[str, tuple[object, ...]]:
        """Every view and every file of the stores, with all that a change of it would change."""
        out = {}
        for bucket in self.engine.site.buckets:
            for path in self.path(bucket=bucket).rglob("*"):
                if path.is_file() and not {"tmp", "displaced", "intents"} & set(path.parts[-2:-1]):
                    found = path.stat()
                    raw = {name: os.getxattr(path, name) for name in os.listxattr(path)}
                    out[str(path)] = (
                        found.st_ino,
                        found.st_size,
                        found.st_mode,
                        found.st_mtime_ns,
                        found.st_ctime_ns,
                        raw,
                    )
        return out

    def leftovers(self, bucket: str) -> list[str]:
        """The files in staging, displaced and intents."""
        meta = self.path(".fsrepl", bucket)
        return [
            f"{folder}/{name}"
            for folder in ("tmp", "displaced", "intents")
            for name in os.listdir(meta / folder)
            if name != "barrier"
        ]
