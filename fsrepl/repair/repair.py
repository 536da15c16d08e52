"""The repair of one version: its record, its content, its view in a replica tree.

A good copy (repair/good_copy.py) replaces the bad content by rename. A view of a source that shows the version is not
changed; in a replica's tree it is restored only if it was not written into. A missing version that is the newest of
its key is shown, as after a delivery. Every step may be repeated, and interrupted at any line. Source: design.md,
section 5.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import FsreplError, RecordUnreadable, StoreDamaged, Unavailable, reason
from fsrepl.model import attributes, keys
from fsrepl.model.version import Status, Version
from fsrepl.model.view import View, view_of
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.deliveries import enqueue, redeliver
from fsrepl.region.region import Region
from fsrepl.repair import compare, evidence, good_copy, rebuild
from fsrepl.repair.target import Target
from fsrepl.s3 import edit_rules, rules
from fsrepl.storage import placed, publishing, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import BAD_BLOCK, GONE
from fsrepl.storage.intents import Intent, intend
from fsrepl.storage.records import amend
from fsrepl.storage.records import read as read_record
from fsrepl.storage.view_file import open_view
from fsrepl.views import edits, relinking, show, stage, stale, unrecorded

log = logging.getLogger("fsrepl")


def repair(region: Region, target: Target) -> bool:
    """Repair a version as far as that is possible now; whether its content is whole.

    region: the bucket's. The caller's thread copies; the region's own thread makes all changes. Raises
    FsreplError where the bucket is away, or another one is whose record of the version is needed, OSError.
    """
    engine = region.engine
    region.ask(lambda: region.ready(target.address))
    bucket = engine.site.bucket(target.address)
    with rebuild.Elsewhere(engine.site, bucket) as elsewhere:
        version, rebuilt = region.ask(lambda: _record(region, target))
        if version is not None and version.place is not None:
            placed_version = version
            region.ask(lambda: _capture_first(region, target, placed_version))
        records, _ = elsewhere.records(target.directory, target.name, target.stored, version.digest if version else b"")
        has_record = version is not None
        if version is None:
            with bucket.open() as opened:
                version = rebuild.from_elsewhere(opened, target.stored, records)
        if version is None:
            return False
        sender = records.get(version.source)
        if sender is not None and sender.digest != version.digest:
            version = replace(version, digest=sender.digest, size=sender.size)
        with bucket.open() as opened:
            good, staged = good_copy.is_whole(opened, target, version), b""
            if good and not has_record:  # the file gets its record back by being replaced
                staged = good_copy.stage_good_copy(
                    engine.limiter, opened, elsewhere, target, version, records, is_whole=True
                )
            elif not good:
                staged = good_copy.stage_whole(engine, opened, elsewhere, target, version, records)
            if staged:
                version = replace(version, size=opened.fs.stat(opened.tmp, staged).st_size)
        if good or staged:
            whole = version
            try:
                region.ask(lambda: _put_in_place(region, target, whole, staged, records, rebuilt=rebuilt))
            except OSError as error:
                if error.errno not in BAD_BLOCK:
                    raise
                raise Unavailable(f"its file can neither be read nor replaced ({reason(error)}): run fsck") from error
        else:
            log.error(
                'not repaired bucket=%s key="%s" version=%s: there is no good copy',
                target.address, keys.shown(version.key), version.id,
            )  # fmt: skip
        return bool(good or staged)


def _capture_first(region: Region, target: Target, version: Version) -> None:
    """Have the content of a tier captured that was written into through a view, before the version's own takes its
    place. Raises Unavailable where that is to be done first. In the region's thread."""
    known = region.engine.journal.versions.object(target.address, version.key)
    if known is None or known.view is None or not known.view.is_link or version.place is None:
        return
    with region.ready(target.address).bucket.open() as bucket:
        if not placed.is_shown(bucket, version.key, version.place):
            return
        if not placed.is_as_recorded(bucket, version.key, version.id):
            region.look_at(target.address, [version.key])
            raise Unavailable("its view was written into: that becomes a version first, and then it is fetched again")


# -- the record


def _record(region: Region, target: Target) -> tuple[Version | None, bool]:
    """The version by its record, and whether that had to be rebuilt; None where there is no stored file.

    Runs in the region's thread.
    """
    journal = region.engine.journal
    with region.ready(target.address).bucket.open() as bucket:
        try:
            at = bucket.store.get(target.directory)
            record = read_record(bucket, at, target.name, target.path)
            if not record.lost and attributes.is_whole(record.raw, target.path, marker=target.marker):
                return record.version(target.path, target.stored), False
            damaged = False
        except OSError as error:
            if error.errno in GONE:
                return None, False
            raise
        except RecordUnreadable:
            return None, False
        except StoreDamaged:
            damaged = True
        with rebuild.Rebuilder(region.engine.site, bucket, journal) as rebuilder:
            version = rebuilder.version(at, target.directory, target.name, target.stored, damaged=damaged)
            if rebuilder.waiting:
                away = ", ".join(sorted({*rebuilder.elsewhere.away, *rebuilder.in_tiers.away}))
                raise Unavailable(f"its record is lost, and {away}, which may have another one, is away")
        if version is not None:
            bucket.sync()
            _index(region, bucket, version)
            enqueue(region, bucket.address, [version])  # what failed for want of the record is PENDING again
        return version, version is not None


def _index(region: Region, bucket: OpenBucket, version: Version) -> None:
    """Update the journal's row of a version, and keep its view as recorded."""
    engine, journal = region.engine, region.engine.journal
    with journal.transaction():
        known = journal.versions.object(bucket.address, version.key)
        journal.versions.add(bucket.address, version)
        if known is not None and known.view is not None:
            journal.views.see(bucket.address, version.key, known.view)
    engine.recent.forget(bucket.address, version.key, version.id)


# -- in the region's thread


class _ViewContent(Struct, frozen=True):
    """A version's view, if it looks as recorded when it showed the version; else None.

    rotten: the view has other content without having been written into.
    """

    view: View | None = None
    rotten: bool = False


def _put_in_place(
    region: Region, target: Target, version: Version, staged: bytes, records: Mapping[str, Version], *, rebuilt: bool
) -> None:
    """Publish the good copy, if one was needed; then update record, deliveries and view from it."""
    engine, state = region.engine, region.ready(target.address)
    # one that was noted may have been repaired before a kill, and whole when it was looked at for the first time
    was_repaired = bool(staged) or rebuilt or (version.key, version.id) in state.views.overwritten
    with state.bucket.open() as bucket:
        if (version.key, version.id) in state.bucket.documents.removed:
            staging.unstage(bucket, staged) if staged else None
            return
        now = _edited_meanwhile(bucket, version)
        if staged:
            now = replace(now, place=None)  # the copy is in the store; what lies in a tier is swept
        if staged and _comes_back_newest(region, bucket, now, staged):
            _publish_newest(region, state, bucket, now, staged)
            now, staged = _edited_meanwhile(bucket, now), b""
        content = _view_content(region, state, bucket, now)
        restores_view = content.rotten and not sharing.receives_writes(state.bucket)
        intents = [Intent(now.key, now.id, content.view)] if restores_view else []
        with intend(engine.syncer, bucket, intents) as intended:
            if staged:
                try:
                    _publish(region, state, bucket, now, staged)
                except OSError:
                    staging.unstage(bucket, staged)
                    intended.abandon()
                    if content.view is not None:
                        _show_again(region, bucket, now, content.view, restore=False)
                    raise
            if content.view is not None:
                _show_again(region, bucket, now, content.view, restore=restores_view)
        now = _as_sent(region, state, bucket, now, records)
        _settle(region, bucket, target, now, records, was_repaired=was_repaired)
        known = engine.journal.versions.object(target.address, now.key)
        as_recorded = unrecorded.look(bucket, now.key, known.view if known else None) is unrecorded.Look.RECORDED
        if rebuilt or not as_recorded:
            # its content may be its user's, written without an event; or it was gone when a scan did not know of it
            region.look_at(target.address, [now.key])
        if not sharing.receives_writes(state.bucket):
            _show_if_late(region, state, bucket, now)
        relinking.relink(region, state, bucket, now)
        bucket.sync()
    engine.notify()


def _comes_back_newest(region: Region, bucket: OpenBucket, version: Version, name: bytes) -> bool:
    """Whether a version is not in the journal, and will be the newest of its key. name: its copy, in tmp.

    The present content of the view is captured first: later it would be taken for a user's change of this version.
    """

    def is_newest() -> bool:
        known = region.engine.journal.versions.object(bucket.address, version.key)
        return known is None or known.order < version.order

    if not is_newest():
        return False
    try:
        region.flush(bucket.address, [version.key])
    except (FsreplError, OSError):
        staging.unstage(bucket, name)
        raise
    return is_newest()


def _publish_newest(region: Region, state: BucketState, bucket: OpenBucket, version: Version, name: bytes) -> None:
    """Publish a version that its view is merely behind, and show it under an intent, as a delivery does."""
    known = region.engine.journal.versions.object(bucket.address, version.key)
    intent = Intent(version.key, version.id, known.view if known else None)
    try:
        intents = intend(region.engine.syncer, bucket, [intent])
        _publish(region, state, bucket, version, name)
    except OSError:
        staging.unstage(bucket, name)  # the intent stays, since the version may be in the store; the next start checks
        raise
    stale.show_changed(region, state, bucket, version.key, intents)


def _edited_meanwhile(bucket: OpenBucket, version: Version) -> Version:
    """The version with the present metadata and deliveries of its record."""
    with contextlib.suppress(StoreDamaged, OSError):
        now = versions.read(bucket, version.key, version.id, marker=version.marker)
        if now is not None and not versions.has_lost_record(now):
            return replace(now, digest=version.digest, size=version.size)
    return version


def _view_content(region: Region, state: BucketState, bucket: OpenBucket, version: Version) -> _ViewContent:
    journal = region.engine.journal
    known = journal.versions.object(bucket.address, version.key)
    if (
        version.marker
        or known is None
        or known.id != version.id
        or known.view is None
        or known.view.shown != version.id
    ):
        return _ViewContent()
    view = known.view
    try:
        with open_view(bucket, version.key) as opened:
            found = opened.found
            linked = versions.is_file_of(bucket, version, found)
            recorded = view.is_like(found) and not view.racy
            if not opened.is_regular or not (recorded or (linked and _bypassed_view(region, state, version, found))):
                return _ViewContent()
            rotten = opened.digest() != version.digest
            written = bucket.fs.is_written(opened.fd)
    except OSError:
        return _ViewContent()
    if written and not recorded:
        return _ViewContent()
    if linked:
        # the file it shares with the store is about to lose that name: its ctime will change, which is no edit
        view = replace(view_of(found, version.id), ctime_ns=0)
        with journal.transaction():
            journal.views.see(bucket.address, version.key, view)
    return _ViewContent(view, rotten)


def _bypassed_view(region: Region, state: BucketState, version: Version, found: os.stat_result) -> bool:
    """Whether a view that is also the stored version changed, and not through a name in the tree.

    A write through the view makes an event. Where all events so far have been processed, and the file has
    no third name, the change bypassed the view. Without a watcher that cannot be known.
    """
    watcher, address, key = region.engine.watcher, state.bucket.address, version.key
    if watcher is None or found.st_nlink > 2 or not watcher.is_watching(address, keys.split(key)[0]):
        return False
    region.flush(address)
    changes, captures = region.changes, state.captures
    if (
        key in captures.deferred
        or key in captures.copying
        or changes.is_queued(address, key)
        or changes.is_lost(address)
    ):
        return False
    known = region.engine.journal.versions.object(address, key)
    return known is not None and known.id == version.id and known.view is not None and known.view.ino == found.st_ino


def _publish(region: Region, state: BucketState, bucket: OpenBucket, version: Version, name: bytes) -> None:
    """Replace the stored version by the copy, by rename."""
    publishing.publish(region.engine.syncer, bucket, [versions.stage_copy(bucket, name, version)])
    state.bucket.ids.saw(version.id, version.created_ns)
    _index(region, bucket, version)
    state.lifecycle.placing.begin_again()
    log.info(
        'repaired bucket=%s key="%s" version=%s size_bytes=%d',
        bucket.address, keys.shown(version.key), version.id, version.size,
    )  # fmt: skip


def _show_again(region: Region, bucket: OpenBucket, version: Version, view: View, *, restore: bool) -> None:
    """Restore the content of a view that was not written into, or only record how it looks now."""
    journal = region.engine.journal
    directory, name = keys.split(version.key)
    shown: View | None = None
    if restore:
        outcome = show.show(bucket, version, view, stage.stage_current(bucket, version))
        if isinstance(outcome, show.Shown):
            shown = outcome.view
    else:
        with contextlib.suppress(OSError):
            found = bucket.fs.stat(bucket.views.get(directory), name)
            shown = bucket.view(found, version.id, racy=view.racy) if view.is_like(found) else None
    if shown is not None:
        with journal.transaction():
            journal.views.see(bucket.address, version.key, shown)


def _as_sent(
    region: Region, state: BucketState, bucket: OpenBucket, version: Version, records: Mapping[str, Version]
) -> Version:
    """A replica's record, updated to what its source sent, and its view with it, unless that was edited."""
    sender = records.get(version.source)
    recorded = sender.deliveries.get(bucket.address) if sender is not None else None
    if sender is None or recorded is None or recorded.status is not Status.COMPLETED:
        return version
    source = region.engine.site.buckets[version.source]
    role = region.engine.role(source.replication.role) if source.replication else None
    right = compare.as_sent(sender, version, recorded, role, version.source, bucket.address)
    if right == version:
        return version

    def record() -> Version:
        amend(bucket, right)
        _index(region, bucket, right)
        return right

    if edits.is_unseen(region, state, bucket, version):
        record()
    else:
        edits.put(region, bucket, version, record)
    return right


def _settle(
    region: Region,
    bucket: OpenBucket,
    target: Target,
    version: Version,
    records: Mapping[str, Version],
    *,
    was_repaired: bool,
) -> None:
    """Redeliver a repaired version: deliveries missing from its record, those that failed for the damage or because the
    version is lost there, and edits that its original lacks."""
    deliveries = dict(version.deliveries)
    sent = [address for address, other in records.items() if other.source == bucket.address]
    if any(address not in deliveries for address in sent):
        gathered = evidence.Evidence(
            bucket.address, version.key, target.stored, elsewhere=records, seen_in=frozenset(records),
            replication=bucket.bucket.replication,
        )  # fmt: skip
        rebuilt = evidence.rebuild(gathered).deliveries
        deliveries |= {address: rebuilt[address] for address in sent if address not in deliveries}
    for destination, recorded in version.deliveries.items():
        is_mended = was_repaired and recorded.status is Status.FAILED and recorded.reason in rules.BY_DAMAGE
        if is_mended or (recorded.reason == edit_rules.LOST_THERE and destination != version.source):
            deliveries[destination] = replace(rules.renewed(recorded), since_ns=0, edit=False)
    if (original := records.get(version.source)) is not None:
        source = region.engine.site.buckets[version.source]
        unsent = edit_rules.unsent_edit(
            version, original, home=bucket.address, replication=bucket.bucket.replication, there=source.replication
        )
        deliveries |= {version.source: unsent} if unsent is not None else {}
    if deliveries != version.deliveries:
        redeliver(region, bucket, version, deliveries)


def _show_if_late(region: Region, state: BucketState, bucket: OpenBucket, version: Version) -> None:
    """Show the key's current version in a replica tree, if its view is stale and no obstacle is there."""
    known = region.engine.journal.versions.object(bucket.address, version.key)
    if known is None or known.id != version.id:
        return
    shown = known.view.shown if known.view is not None else known.id if known.marker else ""
    if shown != known.id:
        stale.mark_stale(region, state, version.key, "it was repaired", durable=False)
        stale.show_current(region, state, bucket, version.key)
