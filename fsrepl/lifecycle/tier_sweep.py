"""The sweep of tiers: contents that no record names are removed, and versions that the store has lost are restored.

A tier is swept once it is there, and then daily. A content is removed only where its version has content elsewhere, or
was removed for good. Where the store is an older state, as from a backup, its record is made to name the content again.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import NULL, Version
from fsrepl.region import tier_watches
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.lifecycle_state import Placing
from fsrepl.region.region import Region
from fsrepl.storage import placed, publishing, tiers, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE
from fsrepl.storage.tiers import OpenTier

log = logging.getLogger("fsrepl")

_BATCH = 256
_SWEEP_S, _AGAIN_S = 2 * 86400.0, 300.0


class _Fate(enum.Enum):
    KEEP = enum.auto()
    REMOVE = enum.auto()
    LOST = enum.auto()
    """Its version is to be brought back with it: the store has lost it, or where its content is."""


class _Swept(Struct):
    """The result of a sweep. lost: by their records on the contents, versions that the store does not know any more.
    troubles: by tier, why it could not be swept."""

    lost: list[Version] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)
    removed: int = 0
    strange: int = 0


def sweep(region: Region, state: BucketState, placing: Placing, names: Sequence[str]) -> None:
    """Remove what crashes left in tiers, in a background worker. While it goes on nothing is moved.

    A version that the store has lost, as with a removed .fsrepl, gets its file there again: its content is in the tier.
    """
    placing.in_hand = True

    def work() -> _Swept:
        swept = _Swept()
        with state.bucket.open() as bucket:
            for name in names:
                _sweep_tier(bucket, name, swept)
        return swept

    def finish(found: _Swept | Exception) -> None:
        placing.in_hand = False
        if isinstance(found, Exception):
            found = _Swept(troubles=dict.fromkeys(names, reason(found)))
        for name in names:
            placing.swept[name] = time.monotonic() + (_AGAIN_S if name in found.troubles else _SWEEP_S)
        if state.is_up and len(found.troubles) < len(names):
            tier_watches.watch_again(region, state)
        if state.is_up and found.lost:
            with region.at_work(state):
                _bring_back(region, state, found.lost)
        if found.removed or found.lost or found.strange:
            log.info(
                "swept bucket=%s removed=%d brought_back=%d unknown=%d",
                state.bucket.address, found.removed, len(found.lost), found.strange,
            )  # fmt: skip

    region.in_background(work, finish, pool=("tiers", region.name), whose=state.bucket.address)


def _sweep_tier(bucket: OpenBucket, name: str, swept: _Swept) -> None:
    found = bucket.bucket.root.tier(name)
    if found is None or not found.expected:
        return
    try:
        tier = bucket.tier(name)
        tier.sweep()
        for entry in tier.entries():
            _sweep_content(bucket, tier, entry, swept)
    except (OSError, FsreplError) as error:
        swept.troubles[name] = reason(error)


def _sweep_content(bucket: OpenBucket, tier: OpenTier, entry: bytes, swept: _Swept) -> None:
    """Remove a content that the record of its version does not name; note it where the version is unknown."""
    try:
        found = tier.read(entry)
        if found is None and (copied := _archived(tier, entry)) is not None:
            _sweep_restored(bucket, tier, entry, copied, swept)
            return
        if found is None or not bucket.bucket.owns(found[0]):
            swept.strange += 1
            return
        content = found[1]
        stored = versions.read(bucket, content.key, content.id, marker=False)
        stored = versions.ensure_whole(stored) if stored else None
    except StoreDamaged:
        return  # its record is rebuilt first
    match _fate(bucket, content, stored):
        case _Fate.LOST:
            swept.lost.append(content)
        case _Fate.REMOVE:
            assert content.place is not None
            tier.remove(content.key, content.place)
            swept.removed += 1
        case _Fate.KEEP:
            if content.place is not None and content.place.is_archived:
                tier.block(content.key, content.place)
            if stored is not None and stored.place == content.place and not _leads_to(bucket, content):
                placed.close_to_readers(bucket, content.key, content.id)


def _fate(bucket: OpenBucket, content: Version, stored: Version | None) -> _Fate:
    """The decision on a content in a tier. stored: the record of its version in the store."""
    if stored is None:
        return _Fate.REMOVE if _is_gone(bucket, content) else _Fate.LOST
    if stored.place == content.place:
        return _Fate.KEEP
    if stored.digest == content.digest and not _is_there(bucket, stored):
        return _Fate.LOST
    return _Fate.KEEP if _leads_to(bucket, content) else _Fate.REMOVE


def _archived(tier: OpenTier, entry: bytes) -> Version | None:
    """The version of whose archived content an entry is a restored copy, by its name; None for any other."""
    for suffix in tiers.SUFFIXES.values():
        if suffix and (found := tier.read(entry + suffix)) is not None:
            return found[1]
    return None


def _sweep_restored(bucket: OpenBucket, tier: OpenTier, entry: bytes, content: Version, swept: _Swept) -> None:
    """Remove a copy of archived content whose days are over, or that a crash left."""
    stored = versions.read(bucket, content.key, content.id, marker=False)
    until_ns = stored.place.until_ns if stored is not None and stored.place == content.place and stored.place else 0
    if until_ns <= bucket.bucket.root.now() and content.place is not None:
        tier.block(content.key, content.place, replaces=True)
        swept.removed += 1


def _is_there(bucket: OpenBucket, version: Version) -> bool:
    """Whether a version has content where its record says. A store that was set back names a place before the last."""
    try:
        if version.place is None:
            return bucket.fs.stat(*bucket.stored_file(version.key, version.id)).st_size == version.size
        bucket.fs.close(versions.open_stored(bucket, version))
    except OSError as error:
        if error.errno in GONE:
            return False
        raise
    return True


def _leads_to(bucket: OpenBucket, content: Version) -> bool:
    return content.place is not None and placed.is_shown(bucket, content.key, content.place)


def _is_gone(bucket: OpenBucket, content: Version) -> bool:
    """Whether a version was removed for good, or a marker took the place of a null version."""
    is_removed = (content.key, content.id) in bucket.bucket.documents.removed
    return is_removed or (content.id == NULL and versions.has(bucket, content.key, NULL, marker=True))


def _bring_back(region: Region, state: BucketState, lost: Sequence[Version]) -> None:
    """Give versions that the store has lost their files there again, or the place that their content has."""
    journal, address = region.engine.journal, state.bucket.address
    with state.bucket.open() as bucket:
        for start in range(0, len(lost), _BATCH):
            some = [_as_it_was(bucket, version) for version in lost[start : start + _BATCH]]
            publishing.publish(region.engine.syncer, bucket, [versions.stage_placed(bucket, v) for v in some])
            with journal.transaction():
                for version in some:
                    journal.versions.add(address, version)
            for version in some:
                state.bucket.ids.saw(version.id, version.created_ns)
                region.engine.recent.forget(address, version.key, version.id)
                log.warning(
                    'brought back bucket=%s key="%s" version=%s: the store had lost it, and the tier has its content',
                    address, keys.shown(version.key), version.id,
                )  # fmt: skip


def _as_it_was(bucket: OpenBucket, content: Version) -> Version:
    """A version with the record in the store, where there is one, and the place of its content."""
    stored = versions.read(bucket, content.key, content.id, marker=False)
    return replace(stored, place=content.place) if stored is not None else content
