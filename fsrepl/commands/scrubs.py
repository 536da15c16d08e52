"""The scrub by command: begun at once, paused, and how far it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from msgspec.structs import replace

from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import PauseScrub, RunScrub
from fsrepl.errors import FsreplError, Refused
from fsrepl.model.address import Address
from fsrepl.model.keys import Document
from fsrepl.model.scrub import Scrub
from fsrepl.model.version import Versioning
from fsrepl.repair.scrub_state import load, save
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site


def run_scrub(engine: Engine, request: RunScrub) -> Document:
    """Have all stored versions read now, at the limit; a running daemon does it, or the next one that starts."""
    now_ns, journal = engine.site.now(), engine.journal

    def change(address: str, found: Scrub) -> Scrub:
        return found.asked(now_ns, journal.totals.counts(address).bytes) if request.on else found.unasked()

    return _change(engine, request.bucket, change)


def pause_scrub(engine: Engine, request: PauseScrub) -> Document:
    """Pause the scrub, or end the pause. What is being read is left at once, and a large version goes on there."""
    return _change(engine, request.bucket, lambda _, found: replace(found, paused=request.on))


def _change(engine: Engine, bucket: Address | None, change: Callable[[str, Scrub], Scrub]) -> Document:
    for address in _chosen(engine.site, bucket):
        region = engine.region_of(address)

        def apply(address: str = address) -> None:
            before = load(engine.journal, address)
            found = change(address, before)
            save(engine.journal, address, found)
            is_slowed = before.is_asked and not found.is_asked
            for state in engine.region_of(address).states.values():
                state.scrub.look_now()
                if (found.paused or is_slowed) and state.bucket.address == address:
                    state.scrub.stop()

        region.ask(apply)
        region.wake()
    return status(engine.site, engine.journal, bucket)


def _chosen(site: Site, bucket: Address | None) -> list[str]:
    """The versioned buckets that are meant. Raises Refused for a bucket that was never versioned, FsreplError."""
    if bucket is None:
        return [address for address in sorted(site.buckets) if _is_versioned(site, address)]
    address = site.bucket(str(bucket)).address
    if not _is_versioned(site, address):
        raise Refused("InvalidRequest", f"{address} was never versioned: it has no stored versions to read")
    return [address]


def _is_versioned(site: Site, address: str) -> bool:
    bucket = site.buckets[address]
    if not bucket.seen:
        with contextlib.suppress(FsreplError), bucket.open():
            pass
    return bucket.versioning is not Versioning.OFF


def status(site: Site, journal: Journal, bucket: Address | None = None) -> Document:
    """`scrub status --json`: of each bucket what is under way, and the last complete one."""
    settings = site.settings.scrub
    return {
        "every_seconds": settings.every_s,
        "limit": settings.limit_bytes_s,
        "buckets": [{"bucket": address} | load(journal, address).document() for address in _chosen(site, bucket)],
    }
