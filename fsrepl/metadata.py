"""Edits of metadata: recorded on a version where they were made, applied to its replicas.

Tags, ACLs, mode, owner, times and attributes are edited in place; that makes no version. Each
group of them carries the time and place of its last edit, and only a newer one is applied, so that
an edit never echoes. Source: s3-semantics, 2.2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from fsrepl import attrs, keys, store, transfer
from fsrepl.journal import View, view_of
from fsrepl.model import Delivery, Status, Version
from fsrepl.site import OpenBucket

if TYPE_CHECKING:
    from fsrepl.region import Place, Region


def record_edit(region: Region, place: Place, bucket: OpenBucket, was: Version, edited: Version) -> Version:
    """Write new metadata of a version into the store, stamped, and owe it to whoever has the version."""
    engine = region.engine
    _, stamp_ns = place.bucket.ids.next(engine.site.now())
    groups = changed_groups(was, edited)
    stamps = {**was.edited, **{group: f"{stamp_ns} {bucket.address}" for group in groups}}
    edited = replace(edited, edited=stamps, deliveries=_owed_again(place, was, groups, stamp_ns))
    if edited.deliveries:
        # The journal first: killed before the record is whole, this process's successor sends it again all the same.
        with engine.journal.transaction():
            engine.journal.put_deliveries(bucket.address, edited)
    write_metadata(bucket, was, edited)
    engine.recent.put(bucket.address, edited)
    if edited.deliveries:
        region.owe(bucket.address, edited)
    engine.notify()
    return edited


def changed_groups(was: Version, now: Version) -> set[str]:
    """Which groups of metadata differ: posix, acl, attrs, tags."""
    a, b = was.posix, now.posix
    groups = set()
    if a != b and (a is None or b is None or replace(a, acl=None) != replace(b, acl=None)):
        groups.add("posix")
    if (a.acl if a else None) != (b.acl if b else None):
        groups.add("acl")
    if was.attrs != now.attrs:
        groups.add("attrs")
    if was.tags != now.tags:
        groups.add("tags")
    return groups


def _owed_again(place: Place, was: Version, groups: Collection[str], stamp_ns: int) -> dict[str, Delivery]:
    """Deliveries with the completed ones pending again, where their rule still runs and takes such an edit."""
    replication = place.bucket.replication
    running = {rule.id for rule in replication.rules if rule.enabled} if replication else set()
    out = dict(was.deliveries)
    for name, delivery in was.deliveries.items():
        if delivery.status is not Status.COMPLETED or delivery.rule not in running:
            continue
        if delivery.owner and not set(groups) - {"acl"}:
            continue  # owner override: the replica's ACL is its owner's affair
        out[name] = replace(delivery, status=Status.PENDING, reason="", since_ns=stamp_ns)
    return out


def write_metadata(bucket: OpenBucket, was: Version, now: Version) -> None:
    """Replace a stored version's metadata and deliveries; its content stays as it is."""
    before, after = attrs.encode(was), attrs.encode(now)
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    store.update(bucket, now, changed, frozenset(before.keys() - after.keys()))


def same(a: Version, b: Version) -> bool:
    return a.posix == b.posix and a.tags == b.tags and a.attrs == b.attrs


def newer(there: Version, sent: Version) -> Version:
    """What a replica becomes: each group of metadata as it was sent, unless it was edited later here."""

    def takes(group: str) -> bool:
        return _stamp(sent, group) >= _stamp(there, group)

    posix = there.posix
    if sent.posix is not None and posix is not None:
        if takes("posix"):
            posix = replace(sent.posix, acl=posix.acl)
        if takes("acl"):
            posix = replace(posix, acl=sent.posix.acl)
    return replace(
        there,
        posix=posix,
        attrs=sent.attrs if takes("attrs") else there.attrs,
        tags=sent.tags if takes("tags") else there.tags,
        edited={**there.edited, **{group: stamp for group, stamp in sent.edited.items() if takes(group)}},
    )


def _stamp(version: Version, group: str) -> tuple[int, str]:
    created, _, place = version.edited.get(group, "0 ").partition(" ")
    return int(created), place


def apply(region: Region, bucket: OpenBucket, there: Version, sent: Version) -> None:
    """Bring a replica that is there already, and its view, into line with the metadata that was sent."""
    now = newer(there, sent)
    if same(there, now) and there.edited == now.edited:
        return
    fs = bucket.fs
    view = _view(region, bucket, now)
    stored_fd = store.open_version(bucket, now.key, now.id, marker=now.marker)
    try:
        if view is not None and fs.stat_fd(stored_fd).st_ino == view.ino:
            inode = transfer.apply_posix(bucket, stored_fd, now.posix, now)
            before, after = attrs.encode(there, inode=there.posix), attrs.encode(now, inode=inode)
            changed = {n: v for n, v in after.items() if before.get(n) != v}
            store.update(bucket, now, changed, frozenset(before.keys() - after.keys()))
        else:
            write_metadata(bucket, there, now)
    finally:
        fs.close(stored_fd)
    region.engine.recent.forget(bucket.address, now.key, now.id)
    update_view(region, bucket, there, now)


def _view(region: Region, bucket: OpenBucket, version: Version) -> View | None:
    """The view, where it shows this version."""
    known = region.engine.journal.object(bucket.address, version.key)
    return known.view if known and known.view and known.view.shown == version.id else None


def update_view(region: Region, bucket: OpenBucket, was: Version, now: Version) -> None:
    """Give the view of an edited version its new metadata, if it shows that version; and record how it looks."""
    fs, journal = bucket.fs, region.engine.journal
    view = _view(region, bucket, now)
    if view is None:
        return
    directory, name = keys.split(now.key)
    try:
        fd = fs.open_read(bucket.views.get(directory), name)
    except OSError:
        return  # removed or replaced in this moment: its event tells
    try:
        found = fs.stat_fd(fd)
        if found.st_ino != view.ino or found.st_size != view.size:
            return
        if was.posix != now.posix and store.inode_posix(bucket, fd, found) != now.posix:
            transfer.apply_posix(bucket, fd, now.posix, now)
        before, after = attrs.of_view(was), attrs.of_view(now)
        for attribute in before.keys() - after.keys():
            with contextlib.suppress(OSError):
                fs.remove_attribute(fd, attribute)
        transfer.mark(bucket, fd, {n: v for n, v in after.items() if before.get(n) != v})
        with journal.transaction():
            journal.see(bucket.address, now.key, view_of(fs.stat_fd(fd), now.id))
    finally:
        fs.close(fd)
