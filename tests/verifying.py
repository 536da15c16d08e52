"""Verify and repair in a world, as `fsrepl verify` runs them."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterator, Sequence

from fsrepl.model import keys
from fsrepl.repair.compare import Difference
from fsrepl.repair.verify import Verification
from fsrepl.repair.verify_progress import Hooks, Tally
from fsrepl.storage.fs import ReadingFs
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site
from tests.world import SOURCE, World

Found = list[tuple[str, str, str, bool]]
"""(bucket, key, problem, repaired)"""


@contextlib.contextmanager
def verification(world: World, destination: str | None = None, *, repair: bool = False) -> Iterator[Verification]:
    site = Site(world.settings, ReadingFs(), world.engine.site.now)
    journal = Journal(os.path.join(site.state, "journal.db"), read_only=True)

    def capture(bucket: str, found: Sequence[bytes]) -> None:
        world.run("capture", bucket=bucket, keys=list(found))

    def repair_one(found: Difference) -> None:
        repair_version(world, found.bucket, found.path, found.version, marker=found.marker)

    hooks = Hooks(capture=capture, repair=repair_one) if repair else Hooks()

    def examine(bucket: str, wanted: bytes) -> bytes:
        return base64.b64decode(str(world.run("verify.examine", bucket=bucket, versions=wanted)["Found"]))

    hooks.examine = examine
    try:
        with Verification(site, SOURCE, destination, journal, hooks) as found:
            yield found
    finally:
        journal.close()


def repair_version(world: World, bucket: str, path: bytes, version: str, *, marker: bool = False) -> None:
    """Repair one version. path: the key as the store spells it."""
    world.run("verify.repair", bucket=bucket, path=path, version_id=version, marker=marker)


def whys(world: World) -> list[str]:
    """What verify says of each difference, while a daemon runs."""
    with verification(world) as found:
        found.hooks.is_daemon_running = lambda: True
        return [difference.why for difference in found.differences()]


def verify(world: World, *, repair: bool = False) -> Found:
    with verification(world, repair=repair) as found:
        return [(d.bucket, keys.shown(d.key), str(d.problem), d.repaired) for d in found.differences()]


def tally(world: World) -> Tally:
    with verification(world) as found:
        assert list(found.differences()) == []
        return found.tally
