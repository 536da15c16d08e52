"""Tree buckets: whether directories and symlinks are objects in a bucket. Source: design.md, section 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from fsrepl.capture import schedule
from fsrepl.daemon.engine import Engine
from fsrepl.errors import FsreplError
from fsrepl.storage.bucket import Bucket
from fsrepl.storage.documents import read_document, write_document
from fsrepl.storage.site import Site
from fsrepl.views import stale

_IDENTITY = b"bucket.json"


def set_trees(engine: Engine, address: str, *, on: bool) -> dict[str, object]:
    """Make a bucket a tree bucket, or no longer one. What is recorded stays; the next scan finds the rest."""
    bucket = engine.site.bucket(address)
    changed = _write(bucket, on=on)
    if changed:
        region = engine.region_of(address)
        region.follow(address)
        state = region.states.get(address)
        if state is not None and state.is_up:
            schedule.begin(region, state)
            stale.retry_blocked(region, state)
    return {"Bucket": address, "Trees": on, "Changed": changed, "NotTrees": partners(engine.site, bucket) if on else []}


def _write(bucket: Bucket, *, on: bool) -> bool:
    """Write the setting to a bucket's identity; whether it changed."""
    with bucket.open() as opened:
        if bucket.trees == on:
            return False
        identity = read_document(bucket.fs, opened.meta, _IDENTITY) or {}
        identity = {name: value for name, value in identity.items() if name != "trees"}
        write_document(bucket.fs, opened.meta, _IDENTITY, {**identity, "trees": True} if on else identity)
        bucket.refresh(opened)
    return True


def partners(site: Site, bucket: Bucket) -> list[str]:
    """The destinations of a tree bucket that are no tree buckets, so that they do not show all of its objects."""
    rules = bucket.replication.rules if bucket.replication else ()
    return plain(site, sorted({rule.destination for rule in rules}))


def plain(site: Site, addresses: Iterable[str]) -> list[str]:
    """The buckets, of some, that are no tree buckets. Left out: buckets of S3 services, and those that are away."""
    found = []
    for address in addresses:
        with contextlib.suppress(FsreplError):
            bucket = site.bucket(address)
            with bucket.open():
                if not bucket.trees:
                    found.append(address)
    return found
