"""A site in a temporary directory, driven in one thread: what a test of the engine stands on."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from fsrepl import admin, operations, settings, store
from fsrepl.engine import Engine
from fsrepl.fs import Fs
from fsrepl.model import Status, Version
from fsrepl.region import Place, Region

SOURCE, DESTINATION = "east/src", "west/dst"


class World:
    """Two regions, a versioned bucket in each, the first replicated to the second.

    The engine has no threads and no watcher: `settle` lets scans find what was done, and turns every
    region until nothing is left to do. `restart` is what a crash leads to: a new engine on the same disk.
    """

    def __init__(self, home: Path, *, fs: Fs | None = None, replicate: bool = True) -> None:
        self.home = home
        admin.init(home, {"east": None, "west": None})
        self.settings = settings.load(home / settings.FILE)
        self.engine = Engine(self.settings, fs=fs)
        for bucket in (SOURCE, DESTINATION):
            self.run("bucket.create", bucket=bucket, versioning=True)
        if replicate:
            self.run("replication.enable", source=SOURCE, destination=DESTINATION)

    def run(self, name: str, **params: object) -> dict[str, object]:
        return operations.run(self.engine, name, params)

    def __enter__(self) -> World:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.engine.close()

    # -- time passes

    def look(self) -> None:
        """Begin a scan of every bucket, as after lost events."""
        for region in self.engine.regions.values():
            region._probe()
            for place in region.places.values():
                if place.up:
                    region.scan(place)

    def settle(self) -> None:
        self.look()
        self.hurry()
        self.engine.settle_down()

    def hurry(self) -> None:
        """Everything that waits for a next try is tried now."""
        for region in self.engine.regions.values():
            for queue in region.queues.values():
                queue.kick()
            for place in region.places.values():
                for each in (*place.later.values(), *place.held.values()):
                    each.due_s = 0.0

    def restart(self, *, fs: Fs | None = None, without_journal: bool = False) -> None:
        """What follows a crash: nothing of the old process is left but the disk."""
        self.engine.journal.close()
        self.engine.pool.shutdown(wait=False)
        if without_journal:
            for path in Path(self.engine.site.state).glob("journal.db*"):
                path.unlink()
        self.engine = Engine(self.settings, fs=fs)

    # -- places

    def path(self, key: str = "", bucket: str = SOURCE) -> Path:
        region, name = bucket.split("/")
        return self.settings.regions[region].path / name / key

    def place(self, bucket: str = SOURCE) -> Place:
        return self.region(bucket).places[bucket]

    def region(self, bucket: str = SOURCE) -> Region:
        return self.engine.region_of(bucket)

    # -- what people do

    def write(self, key: str, data: bytes, bucket: str = SOURCE) -> None:
        path = self.path(key, bucket)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    # -- what is there

    def tree(self, bucket: str) -> dict[str, bytes]:
        top = self.path(bucket=bucket)
        return {
            str(p.relative_to(top)): p.read_bytes()
            for p in sorted(top.rglob("*"))
            if p.is_file() and not p.is_symlink() and p.relative_to(top).parts[0] != ".fsrepl"
        }

    def history(self, bucket: str) -> dict[bytes, list[Version]]:
        """Every version and marker of every key in the store, oldest first."""
        out: dict[bytes, list[Version]] = {}
        with self.engine.site.bucket(bucket).open() as opened:
            for version in store.read_all(opened):
                out.setdefault(version.key, []).append(version)
        return {key: sorted(versions, key=lambda v: v.order) for key, versions in sorted(out.items())}

    def ids(self, bucket: str) -> dict[bytes, list[tuple[str, int, bool, bytes]]]:
        return {
            key: [(v.id, v.created_ns, v.marker, v.digest) for v in versions]
            for key, versions in self.history(bucket).items()
        }

    def statuses(self, bucket: str = SOURCE) -> set[Status | None]:
        return {v.status for versions in self.history(bucket).values() for v in versions}

    def leftovers(self, bucket: str) -> list[str]:
        """What lies in staging, displaced and intents."""
        meta = self.path(".fsrepl", bucket)
        return [
            f"{folder}/{name}"
            for folder in ("tmp", "displaced", "intents")
            for name in os.listdir(meta / folder)
            if name != "barrier"
        ]
