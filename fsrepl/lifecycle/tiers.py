"""Versions move to the tier of their storage class, and from one tier to another, as transitions and rules say.

The record of a version names its class, and the place of its content (model/version.py, Place). Where these differ the
content is moved, whatever came first: a transition, a replica with the class of its rule, or new settings. So a move
needs no other note than the record, and goes on after a crash:

    copied      in a background worker: to the new place, hidden; durable, read back, compared with the BLAKE3
    named       in the new place, durably; nothing refers to it yet, and a crash leaves it to the sweep
    recorded    in the region's thread: the stored file is replaced in one step; from then on the content is there
    removed     from the old place; a crash leaves it to the sweep

The sweep goes through a tier once it is there, and then daily: it removes contents that no record names, and brings
back versions that the store has lost.
"""

from __future__ import annotations

import contextlib
import json
import logging
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fsrepl.errors import FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.model import attributes, digests, keys, record_form
from fsrepl.model.version import NULL, Form, Place, Version, Versioning
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState, Damaged, Placing
from fsrepl.region.region import Region
from fsrepl.s3.lifecycle import DAY_NS
from fsrepl.storage import compression, placed, publishing, record_homes, staging, tiers, versions
from fsrepl.storage.bucket import Bucket, OpenBucket
from fsrepl.storage.fs import GONE
from fsrepl.storage.journal.rows import Classed, read_tier, read_traits, traits_of
from fsrepl.storage.tiers import OpenTier
from fsrepl.views import stale

log = logging.getLogger("fsrepl")

PLACED_MIN_BYTES = 4096
"""Smaller content stays with its record, whose file takes an inode and mostly a block in any case."""
_STEP_S = 0.02
_ROWS = 1000
_BATCH, _BATCH_BYTES = 256, 64 << 20
_PASS_S, _SWEEP_S = 3600.0, 2 * 86400.0
_AGAIN_S, _AGAIN_MAX_S = 1.0, 300.0


def wanted_tier(bucket: Bucket, storage_class: str, tier: str) -> str:
    """The tier in which content of a class is to lie; empty for the bucket's store.

    tier: where it lies. A class without a directory is a label, and so is one whose directory is not attached yet. What
    lies in a tier that the settings do not name any more stays there.
    """
    if tier and bucket.root.tier(tier) is None:
        return tier
    found = bucket.root.tier(storage_class)
    return storage_class if found is not None and found.expected and not found.settings.drain else ""


# -- what is to be done next


def step(region: Region) -> bool:
    """Begin the next moves of a region's buckets; whether there was anything to do."""
    busy = False
    for state in list(region.states.values()):
        placing = state.placing
        if placing.in_hand or not state.is_scanned or placing.due_s > time.monotonic():
            continue
        if state.bucket.versioning is Versioning.OFF or not state.bucket.root.settings.classes:
            continue
        busy |= _begin(region, state, placing)
    return busy


def _begin(region: Region, state: BucketState, placing: Placing) -> bool:
    now_s = time.monotonic()
    day = region.engine.site.now() // DAY_NS
    if day != placing.day:  # copies of archived content go at midnight
        placing.day = day
        placing.swept.clear()
    if sweepable := [name for name in state.bucket.root.settings.classes if placing.sweep_due(name) <= now_s]:
        _sweep(region, state, placing, sweepable)
        return True
    if placing.is_over and placing.pass_due_s <= now_s:
        placing.begin_again()
    elif placing.is_over and not placing.asked:
        return False
    found = _next(region, state, placing)
    if found.views or found.links:
        with state.bucket.open() as bucket:
            for key in [*found.views, *(key for key, id_ in found.links if _leads_elsewhere(bucket, key, id_))]:
                stale.show_anew(region, state, bucket, key)
    if not found.moves:
        return bool(found.views or found.links) or not placing.is_over
    placing.in_hand = True

    def work() -> list[_Copy | _Placed | Damaged]:
        with state.bucket.open() as bucket:
            copies = [copy for each in found.moves.values() if (copy := _copy(bucket, each)) is not None]
            _name(bucket, [copy for copy in copies if isinstance(copy, _Copy)])
        return copies

    def finish(copies: list[_Copy | _Placed | Damaged] | Exception) -> None:
        placing.in_hand = False
        if isinstance(copies, Exception):
            _later(state, placing, copies)
        elif state.is_up:
            state.damaged += [each for each in copies if isinstance(each, Damaged)]
            with region.at_work(state):
                _record(region, state, [copy for copy in copies if isinstance(copy, _Copy)])
                _index(region, state, [each.version for each in copies if isinstance(each, _Placed)])
            placing.tries, placing.why = 0, ""

    region.in_background(
        work, finish, pool=("tiers", region.name), whose=state.bucket.address,
        size_bytes=found.size,
    )  # fmt: skip
    return True


@dataclass(slots=True)
class _Found:
    """What a part of a pass found: versions to be moved, and keys whose views are to be made anew."""

    moves: dict[tuple[bytes, str], Classed] = field(default_factory=dict)
    views: list[bytes] = field(default_factory=list)
    links: list[tuple[bytes, str]] = field(default_factory=list)
    """Keys and versions whose views are symlinks, of which it is not known whether they lead to the content."""
    size: int = 0

    def is_full(self, more_bytes: int) -> bool:
        if not (self.moves or self.views or self.links):
            return False
        most = max(len(self.moves), len(self.views), len(self.links))
        return most >= _BATCH or self.size + more_bytes > _BATCH_BYTES


def _next(region: Region, state: BucketState, placing: Placing) -> _Found:
    """The next versions that do not lie where they should, as the journal has it; those first that are asked for."""
    until_s = time.monotonic() + _STEP_S
    journal, address, found = region.engine.journal.versions, state.bucket.address, _Found()
    while placing.asked and time.monotonic() < until_s:
        key = next(iter(placing.asked))
        for row in journal.classed_of(address, key):
            if found.is_full(row.size):
                return found
            _judge(state, row, found)
        del placing.asked[key]
    if placing.is_over:
        return found
    if placing.last is None:
        _read_traits(region, state)
        placing.checks_links |= region.engine.journal.fact(_fact(state)) != _paths(state)
    while time.monotonic() < until_s:
        rows = journal.classed(address, placing.last, _ROWS)
        for row in rows:
            if found.is_full(row.size):
                return found
            _judge(state, row, found)
            placing.last = row
        if not rows:
            placing.is_over, placing.pass_due_s = True, time.monotonic() + _PASS_S
            if placing.checks_links:
                with region.engine.journal.transaction():
                    region.engine.journal.set_fact(_fact(state), _paths(state))
                placing.checks_links = False
            break
    return found


def _judge(state: BucketState, row: Classed, found: _Found) -> None:
    if to_be_moved(state.bucket, row.traits, row.size) is not None:
        found.moves[row.key, row.id] = row
        found.size += row.size
    elif row.view_mode and row.size >= PLACED_MIN_BYTES:
        is_placed = bool(read_tier(row.traits))
        if stat.S_ISLNK(row.view_mode) != is_placed:
            found.views.append(row.key)
        elif is_placed and state.placing.checks_links:
            found.links.append((row.key, row.id))


def _fact(state: BucketState) -> str:
    return f"tiers {state.bucket.address}"


def _paths(state: BucketState) -> str:
    """The directories of a region's tiers, to which symlinks lead."""
    classes = state.bucket.root.settings.classes
    return json.dumps({name: str(classes[name].path) for name in sorted(classes)})


def _leads_elsewhere(bucket: OpenBucket, key: bytes, version_id: str) -> bool:
    """Whether the symlink in the place of a view leads to where its content was before, or its tier was mounted."""
    with contextlib.suppress(OSError, StoreDamaged, Unavailable):
        directory, name = keys.split(key)
        fd = bucket.fs.open_inode(bucket.views.get(directory), name)
        try:
            target = bucket.fs.read_link(fd) if bucket.fs.is_link(bucket.fs.stat_fd(fd)) else b""
        finally:
            bucket.fs.close(fd)
        version = versions.read(bucket, key, version_id, marker=False)
        if target and version is not None and version.place is not None:
            return placed.path_of(bucket, version) != target
    return False


def _read_traits(region: Region, state: BucketState) -> None:
    """Read what the journal does not know for sure, as after a change of tags: classes and places among it."""
    journal, address = region.engine.journal, state.bucket.address
    unread = journal.versions.unread(address, _BATCH)
    if unread:
        with state.bucket.open() as bucket:
            read = [(key, version_id, _traits(bucket, key, version_id)) for key, version_id in unread]
        journal.versions.set_traits(address, read)


def _traits(bucket: OpenBucket, key: bytes, version_id: str) -> str:
    """The traits of a version; none where its record cannot be read, which is found and repaired elsewhere."""
    with contextlib.suppress(StoreDamaged, OSError):
        version = versions.read(bucket, key, version_id)
        if version is not None:
            return traits_of(version)
    return ""


def to_be_moved(bucket: Bucket, traits: str, size: int) -> str | None:
    """The tier to which content is to be moved, empty for the bucket's store; None where it lies as its class says.

    size: of the content, in bytes; so are symlinks and directories of tree buckets left out.
    """
    if size < PLACED_MIN_BYTES:
        return None
    storage_class, _ = read_traits(traits)
    tier = read_tier(traits)
    to = wanted_tier(bucket, storage_class or "", tier)
    return to if to != tier else None


def _later(state: BucketState, placing: Placing, error: Exception) -> None:
    """The batch could not be moved: it is tried again, from the beginning, after a growing delay."""
    placing.tries += 1
    placing.begin_again()
    placing.due_s = time.monotonic() + min(_AGAIN_MAX_S, _AGAIN_S * 2.0 ** min(placing.tries - 1, 10))
    why = reason(error)
    level = logging.WARNING if placing.why != why else logging.DEBUG
    log.log(level, "tiers wait bucket=%s: %s", state.bucket.address, why)
    placing.why = why


# -- copied and named, in a background worker


@dataclass(frozen=True, slots=True)
class _Copy:
    """A version whose content was copied. name: of the copy in .fsrepl/tmp; place: or else in a tier."""

    version: Version
    place: Place | None
    name: bytes = b""


@dataclass(frozen=True, slots=True)
class _Placed:
    """A version that lies where it should, which the journal does not know yet, as after a crash."""

    version: Version


def _copy(bucket: OpenBucket, wanted: Classed) -> _Copy | _Placed | Damaged | None:
    """Copy a version's content, hidden, to where it is to lie; None where there is nothing to do any more.

    Raises OSError, Unavailable: then nothing is left of it. A version that is damaged stays where it is.
    """
    try:
        version = versions.read(bucket, wanted.key, wanted.id, marker=False)
        version = versions.ensure_whole(version) if version else None
    except StoreDamaged:
        return Damaged(bucket.address, wanted.key, wanted.id)
    if version is None:
        return None
    tier = version.place.tier if version.place else ""
    to = wanted_tier(bucket.bucket, version.storage_class, tier)
    if to == tier:
        return _Placed(version)
    try:
        fd = versions.open_stored(bucket, version)
    except FileNotFoundError:
        return None  # removed just now, or lost, which `verify` names
    try:
        if to:
            return _copy_to_tier(bucket, version, fd, to)
        name = staging.token()
        at, new = bucket.tmp, bucket.fs.create(bucket.tmp, name)
        return _filled(bucket, version, fd, new, _Copy(version, None, name), at, name)
    finally:
        bucket.fs.close(fd)


def _copy_to_tier(bucket: OpenBucket, version: Version, fd: int, to: str) -> _Copy | Damaged:
    tier, token = bucket.tier(to), tiers.new_token()
    name = token.encode()
    new = bucket.fs.create(tier.tmp, name)
    place = Place(to, token, tier.tier.form)
    return _filled(bucket, version, fd, new, _Copy(version, place), tier.tmp, name)


def _filled(
    bucket: OpenBucket, version: Version, fd: int, new: int, copy: _Copy, at: int, name: bytes
) -> _Copy | Damaged:  # fmt: skip
    """Write the content and the record of a copy, read it back, and close it; Damaged where its original is."""
    place, read = copy.place, digests.Passing(tiers.decoded(bucket.fs, fd, version.place))
    try:
        try:
            if place is not None:
                record = {**attributes.encode(replace(version, place=place)), attributes.KEY: version.key}
                values = {tiers.BUCKET: bucket.bucket.uuid.encode(), **record_form.on_file(record)}
                record_homes.put_values(bucket, new, values)
            with bucket.fs.released():
                if place is not None and place.form is Form.ZSTD:
                    for chunk in compression.compressed(read):
                        bucket.fs.write(new, chunk)
                else:
                    bucket.fs.write_sparse(new, read)
                bucket.fs.sync_file(new)
                whole = digests.of_chunks(tiers.decoded(bucket.fs, new, place)) == version.digest
            if whole:
                return copy
        except StoreDamaged:
            whole = False
        finally:
            bucket.fs.close(new)
        bucket.fs.unlink(at, name)
        if read.digest() == version.digest:
            raise Unavailable("the copy in the tier does not match its version; it is made again")
        log.error(
            'not moved bucket=%s key="%s" version=%s: its content no longer matches its BLAKE3',
            bucket.address, keys.shown(version.key), version.id,
        )  # fmt: skip
        return Damaged(bucket.address, version.key, version.id)
    except OSError:
        with contextlib.suppress(OSError):  # a file that stays is swept
            bucket.fs.unlink(at, name)
        raise


def _name(bucket: OpenBucket, copies: Sequence[_Copy]) -> None:
    """Give copies in tiers their names, durably."""
    changed: dict[str, OpenTier] = {}
    for each in copies:
        if each.place is not None:
            tier = changed[each.place.tier] = bucket.tier(each.place.tier)
            name = tiers.content_name(each.version.key, each.place)
            bucket.fs.rename_new(tier.tmp, each.place.token.encode(), tier.fd, name)
    for tier in changed.values():
        bucket.fs.sync_file(tier.fd)


# -- recorded, in the region's thread


def _record(region: Region, state: BucketState, copies: Sequence[_Copy]) -> None:
    """Replace the stored files of versions whose content was copied, then remove the content from its old place.

    A version that changed meanwhile is moved later, if it is still to be moved.
    """
    if not copies:
        return
    address = state.bucket.address
    with state.bucket.open() as bucket:
        staged: list[tuple[Version, versions.Staged]] = []
        for each in copies:
            was = _unchanged(bucket, each.version)
            if was is None:
                _drop(bucket, each)
                state.placing.begin_again()
            elif each.place is None:
                staged.append((was, versions.stage_copy(bucket, each.name, was)))
            else:
                staged.append((was, versions.stage_placed(bucket, replace(was, place=each.place))))
        if staged:
            region.engine.syncer.staged(bucket, [(bucket.tmp, new.name) for _, new in staged])
        _expect_other_ctimes(region, bucket, [was for was, _ in staged])
        for _, new in staged:
            versions.publish_moved(bucket, new)
        bucket.sync()
        for was, new in staged:
            region.engine.recent.forget(address, was.key, was.id)
            log.info(
                'moved bucket=%s key="%s" version=%s size_bytes=%d to=%s', address, keys.shown(was.key), was.id,
                was.size, new.version.place.tier if new.version.place else "STANDARD",
            )  # fmt: skip
        _index_in(region, state, bucket, [new.version for _, new in staged])
        for was, _ in staged:
            if was.place is not None and not _is_shown(bucket, was.key, was.place):
                with contextlib.suppress(OSError, Unavailable):  # the sweep removes what stays
                    bucket.tier(was.place.tier).remove(was.key, was.place)


def _index(region: Region, state: BucketState, moved: Sequence[Version]) -> None:
    if moved:
        with state.bucket.open() as bucket:
            _index_in(region, state, bucket, moved)


def _index_in(region: Region, state: BucketState, bucket: OpenBucket, moved: Sequence[Version]) -> None:
    """Record in the journal where versions lie now, and make the views of current ones anew."""
    journal = region.engine.journal
    with journal.transaction():
        journal.versions.set_traits(bucket.address, [(each.key, each.id, traits_of(each)) for each in moved])
    for version in moved:
        known = journal.versions.object(bucket.address, version.key)
        if known is None or known.view is None or known.id != version.id:
            continue
        is_right = _is_shown(bucket, version.key, version.place) if version.place else not known.view.is_link
        if not is_right:
            stale.show_anew(region, state, bucket, version.key)
            stale.show_current(region, state, bucket, version.key)
    bucket.sync()


def _is_shown(bucket: OpenBucket, key: bytes, place: Place) -> bool:
    """Whether the view of a key still leads to a content; also where that is unknown."""
    directory, name = keys.split(key)
    try:
        at = bucket.views.get(directory)
        target = bucket.link_target(at, name, bucket.fs.stat(at, name))
    except OSError as error:
        return error.errno not in GONE
    return target is not None and target.token == place.token


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
        journal.versions.see_all(bucket.address, seen)


def _unchanged(bucket: OpenBucket, version: Version) -> Version | None:
    """The record of a version as it is now, where its content still lies where it was copied from."""
    with contextlib.suppress(StoreDamaged):
        now = versions.read(bucket, version.key, version.id, marker=False)
        if now is not None and now.digest == version.digest and now.place == version.place:
            return now
    return None


def _drop(bucket: OpenBucket, copy: _Copy) -> None:
    with contextlib.suppress(OSError, Unavailable):  # the sweep removes what stays
        if copy.place is None:
            staging.unstage(bucket, copy.name)
        else:
            bucket.tier(copy.place.tier).remove(copy.version.key, copy.place)


# -- the sweep


@dataclass(slots=True)
class _Swept:
    """What came of a sweep. lost: by their records on the contents, versions that the store does not know any more.
    troubles: by tier, why it could not be swept."""

    lost: list[Version] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)
    removed: int = 0
    strange: int = 0


def _sweep(region: Region, state: BucketState, placing: Placing, names: Sequence[str]) -> None:
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
            placing.swept[name] = time.monotonic() + (_AGAIN_MAX_S if name in found.troubles else _SWEEP_S)
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
    if stored is None and not _is_gone(bucket, content):
        swept.lost.append(content)
    elif stored is None or (stored.place != content.place and not _leads_to(bucket, content)):
        bucket.fs.unlink(tier.fd, entry)
        swept.removed += 1
    elif stored.place == content.place and not _leads_to(bucket, content):
        placed.close_to_readers(bucket, content.key, content.id)


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
    if until_ns <= bucket.bucket.root.now():
        bucket.fs.unlink(tier.fd, entry)
        swept.removed += 1


def _leads_to(bucket: OpenBucket, content: Version) -> bool:
    return content.place is not None and _is_shown(bucket, content.key, content.place)


def _is_gone(bucket: OpenBucket, content: Version) -> bool:
    """Whether a version was removed for good, or a marker took the place of a null version."""
    is_removed = (content.key, content.id) in bucket.bucket.documents.removed
    return is_removed or (content.id == NULL and versions.has(bucket, content.key, NULL, marker=True))


def _bring_back(region: Region, state: BucketState, lost: Sequence[Version]) -> None:
    """Give versions that the store has lost their files there again."""
    journal, address = region.engine.journal, state.bucket.address
    with state.bucket.open() as bucket:
        for start in range(0, len(lost), _BATCH):
            some = [v for v in lost[start : start + _BATCH] if not versions.has(bucket, v.key, v.id)]
            publishing.publish(region.engine.syncer, bucket, [versions.stage_placed(bucket, v) for v in some])
            with journal.transaction():
                for version in some:
                    journal.versions.add(address, version)
            for version in some:
                state.bucket.ids.saw(version.id, version.created_ns)
                log.warning(
                    'brought back bucket=%s key="%s" version=%s: the store had lost it, and the tier has its content',
                    address, keys.shown(version.key), version.id,
                )  # fmt: skip
