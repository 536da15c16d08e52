"""One batch of content is moved to its tier: copied and named in a background worker, recorded in the region's thread.

copied      to the new place, hidden; durable, read back, compared with the BLAKE3 (tier_copy.py)
named       in the new place, durably; nothing refers to it yet, and a crash leaves it to the sweep
recorded    the stored file is replaced in one step; from then on the content is there
removed     from the old place, once no view leads there; a crash leaves it to the sweep
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import StoreDamaged, Unavailable, reason
from fsrepl.lifecycle import tier_copy
from fsrepl.lifecycle.tier_copy import Pace
from fsrepl.lifecycle.wanted_tier import wanted_tier
from fsrepl.model import keys
from fsrepl.model.version import Place, Version
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.region import Region
from fsrepl.settings import ARCHIVES
from fsrepl.storage import placed, staging, tiers, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Classed, traits_of
from fsrepl.storage.tiers import OpenTier
from fsrepl.views import stale

log = logging.getLogger("fsrepl")


class Batch(Struct):
    """The result of copying a batch. placed: versions that lie where they should, which the journal does not know
    yet, as after a crash. failed: by tier, empty for the bucket's store, why nothing could be moved there; also by
    from_tier."""

    copies: list[Copy] = field(default_factory=list)
    placed: list[Version] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class Copy(Struct, frozen=True):
    """A version whose content was copied. place: in a tier; None: in .fsrepl/tmp. name: of the staged copy."""

    version: Version
    place: Place | None
    name: bytes


# -- copied and named


def copy(bucket: OpenBucket, wanted: Sequence[Classed], pace: Pace) -> Batch:
    """Copy the content of versions to where it is to lie, and name it there. A tier that fails delays no other."""
    batch = Batch()
    for each in wanted:
        _copy(bucket, each, batch, pace)
    try:
        _name(bucket, batch.copies)
    except (OSError, Unavailable) as error:
        for copied in batch.copies:
            _drop(bucket, copied)
            batch.failed[copied.place.tier if copied.place else ""] = reason(error)
        batch.copies.clear()
    return batch


def _copy(bucket: OpenBucket, wanted: Classed, batch: Batch, pace: Pace) -> None:
    """Copy a version's content, hidden. A version that is damaged stays where it is."""
    try:
        version = versions.read(bucket, wanted.key, wanted.id, marker=False)
        version = versions.ensure_whole(version) if version else None
    except StoreDamaged:
        batch.damaged.append(Damaged(bucket.address, wanted.key, wanted.id))
        return
    if version is None:
        return
    tier = version.place.tier if version.place else ""
    to = wanted_tier(bucket.bucket, version.storage_class, tier)
    if to == tier:
        batch.placed.append(version)
    elif _is_lent(bucket, version, to):
        return
    elif to not in batch.failed and from_tier(tier) not in batch.failed:
        try:
            fd = versions.open_stored(bucket, version)
        except FileNotFoundError:
            return  # removed just now, or lost, which `verify` names
        except (OSError, Unavailable) as error:
            batch.failed[from_tier(tier) if tier else to] = reason(error)
            return
        try:
            _copy_open(bucket, version, fd, to, batch, pace)
        except (OSError, Unavailable) as error:
            batch.failed[to] = reason(error)
        finally:
            bucket.fs.close(fd)


def _copy_open(bucket: OpenBucket, version: Version, fd: int, to: str, batch: Batch, pace: Pace) -> None:
    """Copy the content in an open file. Raises OSError, Unavailable."""
    target = tier_copy.target(bucket, version, to, large=version.size >= pace.large_bytes)
    if tier_copy.is_whole_copy(bucket, version, fd, target, pace):
        batch.copies.append(Copy(version, target.place, target.name))
        return
    log.error(
        'not moved bucket=%s key="%s" version=%s: its content no longer matches its BLAKE3',
        bucket.address, keys.shown(version.key), version.id,
    )  # fmt: skip
    batch.damaged.append(Damaged(bucket.address, version.key, version.id))


def from_tier(tier: str) -> str:
    """The name in `failed` of a tier from which nothing could be moved: it delays no move to that tier."""
    return f"from {tier}"


def _is_lent(bucket: OpenBucket, version: Version, to: str) -> bool:
    """Whether archived content is restored for some days, and would not be in another archive: it moves after that."""
    is_restored = version.place is not None and version.place.until_ns > bucket.bucket.root.now()
    return is_restored and to in ARCHIVES


def _name(bucket: OpenBucket, copies: Sequence[Copy]) -> None:
    """Give copies in tiers their names, durably."""
    changed: dict[str, OpenTier] = {}
    for each in copies:
        if each.place is not None:
            tier = changed[each.place.tier] = bucket.tier(each.place.tier)
            name = tiers.content_name(each.version.key, each.place)
            bucket.fs.rename_new(tier.tmp, each.name, tier.fd, name)
            if each.place.is_archived:
                tier.block(each.version.key, each.place)
    for tier in changed.values():
        bucket.fs.sync_file(tier.fd)


# -- recorded


def record(region: Region, state: BucketState, batch: Batch) -> None:
    """Replace the stored files of versions whose content was copied, then remove the content from its old place.

    A version that changed meanwhile is moved later, if it is still to be moved. Raises OSError where something is half
    done; where nothing is, `failed` says why.
    """
    state.damaged += batch.damaged
    if not (batch.copies or batch.placed):
        return
    with state.bucket.open() as bucket:
        staged = _staged(region, state, bucket, batch)
        _expect_other_ctimes(region, bucket, [was for was, _ in staged])
        for _, new in staged:
            versions.publish_moved(bucket, new)
        bucket.sync()
        for was, new in staged:
            region.engine.recent.forget(bucket.address, was.key, was.id)
            log.info(
                'placed bucket=%s key="%s" version=%s size_bytes=%d in=%s', bucket.address, keys.shown(was.key), was.id,
                was.size, new.version.place.tier if new.version.place else "STANDARD",
            )  # fmt: skip
        _index(region, state, bucket, [*batch.placed, *(new.version for _, new in staged)])
        for was, _ in staged:
            if was.place is not None and not placed.is_shown(bucket, was.key, was.place):
                with contextlib.suppress(OSError, Unavailable):  # the sweep removes what stays
                    bucket.tier(was.place.tier).remove(was.key, was.place)


def _staged(
    region: Region, state: BucketState, bucket: OpenBucket, batch: Batch
) -> list[tuple[Version, versions.Staged]]:
    """The versions whose content was copied, each with its new stored file, durable; none where that failed."""
    staged: list[tuple[Version, versions.Staged]] = []
    try:
        for each in batch.copies:
            was = _unchanged(bucket, each.version)
            if was is None:
                _drop(bucket, each)
                state.ask_to_place([each.version.key])
            elif each.place is None:
                staged.append((was, versions.stage_copy(bucket, each.name, was)))
            else:
                staged.append((was, versions.stage_placed(bucket, replace(was, place=each.place))))
        if staged:
            region.engine.syncer.staged(bucket, [(bucket.tmp, new.name) for _, new in staged])
    except OSError as error:
        for _, new in staged:
            with contextlib.suppress(OSError):  # what stays is swept at the next start
                versions.discard(bucket, new)
        for each in batch.copies:
            _drop(bucket, each)
        batch.failed[""] = reason(error)
        return []
    return staged


def _index(region: Region, state: BucketState, bucket: OpenBucket, moved: Sequence[Version]) -> None:
    """Record in the journal where versions lie now, and make the views of current ones anew."""
    journal = region.engine.journal
    with journal.transaction():
        journal.versions.set_traits(bucket.address, [(each.key, each.id, traits_of(each)) for each in moved])
    for version in moved:
        known = journal.versions.object(bucket.address, version.key)
        if known is None or known.view is None or known.id != version.id:
            continue
        is_right = placed.is_shown(bucket, version.key, version.place) if version.place else not known.view.is_link
        if not is_right:
            stale.show_anew(region, state, bucket, version.key)
            stale.show_current(region, state, bucket, version.key)
    bucket.sync()


def _expect_other_ctimes(region: Region, bucket: OpenBucket, moved: Sequence[Version]) -> None:
    """Record of views that are hard links to their stored files that these are about to lose a name."""
    journal = region.engine.journal
    seen: list[tuple[bytes, View | None]] = []
    for version in moved:
        known = journal.versions.object(bucket.address, version.key)
        if known is None or known.view is None or known.view.shown != version.id:
            continue
        with contextlib.suppress(OSError):
            found = bucket.view_status(version.key)
            if known.view.is_like(found) and versions.is_file_of(bucket, version, found):
                seen.append((version.key, replace(known.view, ctime_ns=0)))
    with journal.transaction():
        journal.views.see_all(bucket.address, seen)


def _unchanged(bucket: OpenBucket, version: Version) -> Version | None:
    """The record of a version as it is now, where its content still lies where it was copied from."""
    with contextlib.suppress(StoreDamaged):
        now = versions.read(bucket, version.key, version.id, marker=False)
        if now is not None and now.digest == version.digest and now.place == version.place:
            return now
    return None


def _drop(bucket: OpenBucket, copy: Copy) -> None:
    with contextlib.suppress(OSError, Unavailable):  # the sweep removes what stays
        if copy.place is None:
            staging.unstage(bucket, copy.name)
        else:
            bucket.tier(copy.place.tier).remove(copy.version.key, copy.place)
