"""Commands on single objects: restore, remove, tag, retry.

They run in the region's thread, between its batches. A command that changes a view works like the delivery of a
replica: stored, with an intent, and then shown, never over content that is not recorded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from fsrepl.capture import apply
from fsrepl.commands.documents.objects import tags_document
from fsrepl.commands.file_names import FileNames
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import OnObject, RemoveObject, RemoveTags, RestoreObject, SetTags
from fsrepl.daemon.worker import Worker
from fsrepl.errors import ContentDamaged, Refused, Unavailable, reason
from fsrepl.model import keys
from fsrepl.model.version import NO_SHORTFALL, NULL, Origin, Status, Version, Versioning
from fsrepl.model.view import View
from fsrepl.region import deliveries, halting
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.change_queue import CLOSED
from fsrepl.region.mailbox import RetryNow
from fsrepl.repair import reconcile
from fsrepl.replicate import settle
from fsrepl.s3 import rules
from fsrepl.storage import copying, listing, publishing, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Intent, intend
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Delivery, Object
from fsrepl.views import edits, null_view, relinking, show, stale

TAGS_MAX, TAG_KEY_MAX, TAG_VALUE_MAX = 10, 128, 256
TAG_RESERVED = "aws:"
"""How names of tags begin that only AWS itself sets, in any case of letters. Source: S3's user guide, object tags."""


def restore(engine: Engine, request: RestoreObject) -> dict[str, object]:
    """Make an old version current again, as a new version with its content and metadata.

    A change of the file that made no event becomes a version first. Raises ContentDamaged; Unavailable where the
    version is current already and the file does not show it yet.
    """
    address, key, version_id = request.address.bucket, request.address.key, request.version_id
    region = engine.region_of(address)
    before = engine.journal.versions.object(address, key)
    state = region.flush(address, [key])
    with state.bucket.open() as bucket:
        if state.bucket.versioning is Versioning.OFF:
            raise Refused("InvalidRequest", f"{address} was never versioned, so there is nothing to restore from")
        version = find(region, bucket, key, version_id, content=True)
        known = engine.journal.versions.object(address, key)
        if known and known.id == version.id:
            if why := _unshown(state, key, known):
                raise Unavailable(
                    f"version {version.id} of {address}/{keys.shown(key)} is current already, but its file "
                    f"does not show it: {why}"
                )
            captured = before is None or before.id != known.id
            return keys.key_document(key) | {"VersionId": version.id, "Changed": False, "Captured": captured}
        fd = versions.open_content(bucket, version)
        name = staging.token()
        try:
            if copying.copy_aside(bucket, fd, name) != version.digest:
                staging.unstage(bucket, name)
                raise ContentDamaged(
                    f"version {version.id} of {keys.shown(key)} no longer matches its BLAKE3, and is not restored: no "
                    "good copy was found",
                    version.id,
                )
        finally:
            bucket.fs.close(fd)
        new = as_new_version(state, version, engine.site.now(), known, _names(region, bucket, version))
        staged = versions.stage_copy(bucket, name, new)
        commit_version(region, bucket, new, staged)
    return keys.key_document(key) | {"VersionId": new.id, "RestoredFrom": version.id, "Changed": True}


def _names(region: Worker, bucket: OpenBucket, version: Version) -> FileNames:
    """The names of the file that a version was of, as they are now: a change of that file is recorded first."""
    names = FileNames(region.engine.journal, bucket, [version])
    if (other := names.of(version)) is None:
        return names
    region.flush(bucket.address, [other.key])
    return FileNames(region.engine.journal, bucket, [version])


def as_new_version(
    state: BucketState, version: Version, now_ns: int, known: Object | None, names: FileNames
) -> Version:
    """A version that is to be current again, as a user's new one, with its deliveries; not staged yet.

    known: the key's current version. names: those of its file.
    """
    is_null = state.bucket.versioning is Versioning.SUSPENDED
    version_id, created_ns = state.bucket.ids.next(now_ns, known.null_ns if known else -1, is_null=is_null)
    new = replace(
        names.with_metadata(version),
        id=version_id,
        created_ns=created_ns,
        origin=Origin.USER,
        source="",
        storage_class="",
        deliveries={},
        edited={},
        shortfall=NO_SHORTFALL,
        link=None,
        place=None,
    )
    new = names.joined(version, new)
    return replace(new, deliveries=rules.choose(state.bucket.replication, new))


def _unshown(state: BucketState, key: bytes, known: Object) -> str:
    """Why a key's file does not show the current version; empty where it does."""
    if key in state.captures.copying:
        return "the file was changed since, and is being captured"
    if (waits := state.captures.deferred.get(key)) is not None:
        return f"the file was changed since, and is not captured yet: {waits.why}"
    if (stale_view := state.views.stale.get(key)) is not None:
        return "" if stale_view.conflict else stale_view.why  # status names an obstacle, and no command removes it
    if known.view is None or known.view.shown != known.id:
        return state.captures.unreadable.get(key, "the file was removed or replaced just now")
    return ""


def remove(engine: Engine, request: RemoveObject) -> dict[str, object]:
    """Add a delete marker; or, with a version id, remove that version or marker for good."""
    address, key, version_id = request.address.bucket, request.address.key, request.version_id
    region = engine.region_of(address)
    state = region.flush(address, [key])
    with state.bucket.open() as bucket:
        if version_id is None and not (keys.is_key(key) and (state.bucket.trees or not keys.is_directory(key))):
            raise Refused("InvalidRequest", f"{keys.shown(key)!r} cannot be a key")
        if state.bucket.versioning is Versioning.OFF:
            return _remove_file(bucket, key, version_id)
        if version_id is None:
            known = engine.journal.versions.object(address, key)
            marker = apply.new_marker(region, bucket, key, known)
            commit_version(region, bucket, marker, versions.stage_marker(bucket, marker))
            document = keys.key_document(key) | {"DeleteMarker": True, "VersionId": marker.id}
            meant = like_known(engine.journal, address, key) if known is None else ""
            return document | ({"Notes": [f"there was no {address}/{keys.shown(key)}{meant}"]} if meant else {})
        version = find(region, bucket, key, version_id)
        remove_version(region, bucket, version)
    return keys.key_document(key) | {"DeleteMarker": version.marker, "VersionId": version.id, "Removed": True}


def _remove_file(bucket: OpenBucket, key: bytes, version_id: str | None) -> dict[str, object]:
    """Remove a file of a never-versioned bucket for good; a missing key is no error (s3-semantics, 4)."""
    if version_id not in (None, NULL):
        raise Refused("NoSuchVersion", f"{bucket.address}, never versioned, has no version {version_id}")
    directory, name = keys.split(key)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        at = bucket.views.get(directory)
        if bucket.fs.is_regular(bucket.fs.stat(at, name)):
            bucket.fs.unlink(at, name)
    return keys.key_document(key) | {"DeleteMarker": False}


def find(region: Worker, bucket: OpenBucket, key: bytes, version_id: str | None, *, content: bool = False) -> Version:
    """A version by id, or the newest (with content: the newest that is not a marker). Raises Refused."""
    rows = region.engine.journal.versions.versions_of(bucket.address, key) if keys.is_key(key) else []
    if not rows:
        meant = like_known(region.engine.journal, bucket.address, key)
        raise Refused("NoSuchKey", f"{bucket.address} has no {keys.shown(key)}{meant}")
    for found, _, marker in rows:
        if version_id is None and content and marker:
            continue
        if version_id in (None, found):
            if marker and content:
                raise Refused("MethodNotAllowed", f"version {found} of {keys.shown(key)} is a delete marker")
            version = versions.read(bucket, key, found, marker=marker)
            if version is not None:
                return version
    if version_id is None:
        meant = like_known(region.engine.journal, bucket.address, key)
        raise Refused("NoSuchKey", f"{bucket.address}/{keys.shown(key)} has delete markers and no version left{meant}")
    raise Refused("NoSuchVersion", f"{bucket.address}/{keys.shown(key)} has no version {version_id}")


def like_known(journal: Journal, address: str, key: bytes) -> str:
    """See listing.like_known, for the keys that the journal has."""
    return listing.like_known(key, lambda other: journal.versions.object(address, other) is not None)


def commit_version(region: Worker, bucket: OpenBucket, version: Version, staged: versions.Staged) -> None:
    """Commit a version made by command: durable, published, recorded, queued for delivery, and shown."""
    engine, state = region.engine, region.states[bucket.address]
    known = engine.journal.versions.object(bucket.address, version.key)
    was = known.view if known else None
    if version.id == NULL:
        was = null_view.before_replacing(engine.journal, bucket, version.key, known)
    intent = Intent(version.key, version.id, was)
    try:
        intended = intend(engine.syncer, bucket, [intent], [(bucket.tmp, staged.name)])
    except OSError:
        versions.discard(bucket, staged)
        raise
    with intended:
        publishing.publish_durable(bucket, [staged])
        with engine.journal.transaction():
            engine.journal.versions.add(bucket.address, version)
        engine.recent.put(bucket.address, version)
        halting.enqueue_new(region, state, [(version, known)])
        with region.at_work(state):
            halting.settle(region, state)
        stale.show_changed(region, state, bucket, version.key, intended)
    if not version.marker:
        state.labels.add(version, time.monotonic())
    engine.notify()


def _is_shared(bucket: OpenBucket, version: Version, view: View) -> bool:
    """Whether a recorded view is also the file of a stored version."""
    directory, name = keys.split(version.key)
    try:
        found = bucket.fs.stat(bucket.views.get(directory), name)
    except OSError:
        return False
    return found.st_ino == view.ino and versions.is_file_of(bucket, version, found)


def _join_its_file(region: Worker, state: BucketState, bucket: OpenBucket, key: bytes) -> None:
    """Make the view of a version that is current again a name of the file of its other names, where that is there."""
    journal, address = region.engine.journal, bucket.address
    known = journal.versions.object(address, key)
    if known is None or known.marker or known.view is None or known.view.shown != known.id:
        return
    version = versions.read(bucket, key, known.id, marker=False)
    other = FileNames(journal, bucket, [version]).of(version) if version is not None else None
    first = journal.versions.object(address, other.key) if other is not None else None
    if other is None or first is None or first.view is None:
        return
    if first.view.ino != known.view.ino:
        relinking.join(region, state, bucket, (other.key, first), [(key, known)])
    # what was edited since the file had this name last is recorded for it too
    region.changes.add(address, [key], region.engine.epoch, CLOSED)


def remove_version(region: Worker, bucket: OpenBucket, version: Version) -> None:
    """Remove a version for good, and show the version that is current then. Never replicated (s3-semantics, 2)."""
    engine, address, key = region.engine, bucket.address, version.key
    looked = versions.look_at(bucket, key, version.id, marker=version.marker, asks_lock=True)
    if looked is not None and looked.is_locked:
        raise Refused(
            "AccessDenied",
            f"version {version.id} of {address}/{keys.shown(key)} is locked: nobody may remove its file "
            "(lsattr shows it); `chattr -ia` on that file unlocks it",
        )
    known = engine.journal.versions.object(address, key)
    left = [row for row in engine.journal.versions.versions_of(address, key) if row[0] != version.id]
    was = known.view if known else None
    if was is not None and _is_shared(bucket, version, was):
        was = replace(was, ctime_ns=0)
        with engine.journal.transaction():
            engine.journal.views.see(address, key, was)
    state = region.states[address]
    with intend(engine.syncer, bucket, [Intent(key, left[0][0] if left else "", was)]) as intended:
        try:
            versions.remember_removed(bucket, version)
            versions.remove(bucket, version)
            bucket.sync()
            if left:
                reconcile.forget_version(bucket, engine.journal, key, version.id)
                stale.show_changed(region, state, bucket, key, intended)
                _join_its_file(region, state, bucket, key)
            else:
                outcome = show.show(bucket, show.nothing(key), was) if was else show.Shown(None)
                reconcile.forget_version(bucket, engine.journal, key, version.id)
                if not isinstance(outcome, show.Shown):
                    stale.recapture(region, state, key)
        except OSError as error:
            with region.at_work(state):  # it comes up again with what store and intent say: that is the rest of it
                if versions.read(bucket, key, version.id, marker=version.marker) is None:
                    reconcile.forget_version(bucket, engine.journal, key, version.id)
                raise
            why = f"version {version.id} of {address}/{keys.shown(key)} is not removed completely: {reason(error)}"
            raise Unavailable(f"{why}; the daemon completes the removal as soon as possible") from error
    engine.recent.forget(address, key, version.id)
    pending = engine.journal.deliveries.select(address, status=Status.PENDING, key=key)
    settle.settle_gone(
        region, state, [delivery for delivery in pending if delivery.id == version.id], key_there=bool(left)
    )
    engine.notify()


# -- tags


def set_tags(engine: Engine, request: SetTags) -> dict[str, object]:
    """Set some tags of a version; other tags stay."""
    return _tag(engine, request, lambda tags: {**tags, **request.tags})


def remove_tags(engine: Engine, request: RemoveTags) -> dict[str, object]:
    """Remove some tags of a version; other tags stay."""
    return _tag(engine, request, lambda tags: {name: tags[name] for name in tags if name not in request.names})


def _tag(engine: Engine, request: OnObject, change: Callable[[Mapping[str, str]], dict[str, str]]) -> dict[str, object]:
    """Change the tags of a version in place, without a new version (s3-semantics, 4)."""
    address, key, version_id = request.address.bucket, request.address.key, request.version_id
    region = engine.region_of(address)
    state = region.flush(address, [key])
    with state.bucket.open() as bucket:
        if state.bucket.versioning is Versioning.OFF:
            raise Refused("InvalidRequest", f"{address} is not versioned; `fsrepl versioning enable {address}` first")
        version = versions.ensure_whole(find(region, bucket, key, version_id))
        if version.marker:
            raise Refused("MethodNotAllowed", f"{keys.shown(key)} is deleted: a delete marker has no tags")
        tags = change(version.tags)
        _check_tags(version.tags, tags)
        if tags != version.tags:
            try:
                edits.edit(region, state, bucket, version, replace(version, tags=tags))
            except OSError as error:
                why = f"the tags of {address}/{keys.shown(key)} were not written, or not everywhere: {reason(error)}"
                raise Unavailable(f"{why}; run the command again") from error
    return keys.key_document(key) | {"VersionId": version.id, "TagSet": tags_document(tags)}


def _check_tags(before: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Raises Refused as S3 does, for what the command gives a value: attributes of a file bring other tags and more of
    them than S3 takes, and these can be removed one by one."""
    changed = {name: value for name, value in tags.items() if value != before.get(name)}
    if len(tags) > TAGS_MAX and not changed.keys() <= before.keys():
        raise Refused(
            "BadRequest",
            f"an object takes at most {TAGS_MAX} tags, and this would make {len(tags)}; `fsrepl tag rm` removes some",
        )
    if reserved := sorted(name for name in changed if name.lower().startswith(TAG_RESERVED)):
        raise Refused(
            "InvalidTag",
            f"tag {reserved[0]!r}: names that begin with {TAG_RESERVED} are reserved in S3; choose another name",
        )
    for name, value in changed.items():
        if not name or len(name) > TAG_KEY_MAX or len(value) > TAG_VALUE_MAX:
            raise Refused(
                "InvalidTag",
                f"tag {name!r}: a name has 1 to {TAG_KEY_MAX} characters and a value at most {TAG_VALUE_MAX}",
            )


# -- trying again


def failed(region: Worker, address: str, prefix: bytes) -> list[Delivery]:
    """The FAILED deliveries of a bucket that can be retried. prefix: a key, or a prefix that ends in /.

    Raises Refused(NoSuchKey) for a missing key: a retry of a misspelt name must not look done.
    """
    region.flush(address)
    journal = region.engine.journal
    if prefix and not prefix.endswith(b"/") and journal.versions.object(address, prefix) is None:
        meant = like_known(journal, address, prefix)
        raise Refused("NoSuchKey", f"{address} has no {keys.shown(prefix)}{meant}")
    return [
        d for d in journal.deliveries.select(address, status=Status.FAILED, prefix=prefix) if _in_scope(d.key, prefix)
    ]


def pending(region: Worker, address: str, prefix: bytes) -> bool:
    """Whether the journal has deliveries of a bucket that could be retried."""
    delivery = region.engine.journal.deliveries.select(address, prefix=prefix)
    return any(each.status != Status.COMPLETED and _in_scope(each.key, prefix) for each in delivery)


def retry_waiting(region: Worker, address: str, prefix: bytes) -> int:
    """Try a bucket's waiting deliveries at once; how many."""
    pending = region.engine.journal.deliveries.select(address, status=Status.PENDING, prefix=prefix)
    waiting = sum(_in_scope(recorded.key, prefix) for recorded in pending)
    for other in region.receivers.values():
        other.post(RetryNow(address))
    return waiting


def retry(region: Worker, address: str, failed: Sequence[Delivery]) -> int:
    """Make FAILED deliveries pending again; how many still existed."""
    with region.ready(address).bucket.open() as bucket:
        return sum(redeliver_one(region, bucket, delivery) for delivery in failed)


def _in_scope(key: bytes, prefix: bytes) -> bool:
    return not prefix or key == prefix or (prefix.endswith(b"/") and key.startswith(prefix))


def redeliver_one(region: Worker, bucket: OpenBucket, delivery: Delivery) -> bool:
    version = versions.read(bucket, delivery.key, delivery.id, marker=delivery.marker)
    recorded = version.deliveries.get(delivery.destination) if version else None
    if version is None or recorded is None:
        return False
    deliveries.redeliver(region, bucket, version, {**version.deliveries, delivery.destination: rules.renewed(recorded)})
    return True
