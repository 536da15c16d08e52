"""Current versions whose content lies in a tier: their views are symlinks that the daemon made, and never follows.

The symlink leads to the content in the tier, which then has the object's owner, ACL and mode, but may not be written:
programs read it as a file, and a file that replaces the symlink becomes a version. A content that no view shows is
private.

Root can write into it all the same, and so can the owner after a chmod. The content then differs from its version in
size or time, which is noticed when the key is inspected or scanned, and when its symlink is exchanged
(capture/look.py).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from msgspec.structs import replace

from fsrepl.errors import FsreplError, StoreDamaged, Unavailable
from fsrepl.model import keys
from fsrepl.model.version import Place, Version
from fsrepl.storage import times, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE
from fsrepl.storage.posix import apply_posix
from fsrepl.storage.tiers import SUFFIXES, LinkTarget

_MAY_NOT_WRITE = 0o555
_OWNER_READS = 0o400


def path_of(bucket: OpenBucket, version: Version) -> bytes:
    """The target of a symlink to a version's content. Raises Unavailable where the settings lack its tier."""
    assert version.place is not None
    tier = bucket.bucket.root.tier(version.place.tier)
    if tier is None:
        raise Unavailable(f"the settings of region {bucket.bucket.region} have no tier of {version.place.tier}")
    return tier.link_to(bucket.bucket.name, version.key, version.place)


def leads_to(target: LinkTarget | None, version: Version) -> bool:
    """Whether a symlink leads to the content of a version."""
    return target is not None and version.place is not None and target.token == version.place.token


def version_of(bucket: OpenBucket, key: bytes, target: LinkTarget) -> Version | None:
    """The version to whose content a symlink leads; None where there is none.

    key: the place of the symlink, whose versions are the likeliest. Raises Unavailable where a tier is away that may
    know; OSError, StoreDamaged.
    """
    for own in _versions_of(bucket, key) if key else ():
        if leads_to(target, own):
            return own
    for name in bucket.bucket.root.settings.classes:
        tier = bucket.tier(name)
        found = next((each for suffix in SUFFIXES.values() if (each := tier.read(target.name + suffix))), None)
        if found is not None and bucket.bucket.owns(found[0]):
            version = versions.read(bucket, found[1].key, found[1].id, marker=False)
            if version is None or version.digest != found[1].digest:
                return None
            # the owner of a content may write on it: only the record in the store says whose content it is
            return version if leads_to(target, version) or version.key == key else None
    return None


def _versions_of(bucket: OpenBucket, key: bytes) -> Iterator[Version]:
    """The versions of a key, without markers, in no order."""
    directory, last = keys.split(key)
    try:
        names = bucket.fs.names(bucket.stored_directory(directory))
    except FileNotFoundError:
        return
    component = keys.stored_component(last)
    for stored in map(keys.parse, names):
        if stored is not None and not (stored.marker or stored.sidecar) and stored.name == component:
            version = versions.read(bucket, key, stored.id, marker=False)
            if version is not None:
                yield version


def is_shown(bucket: OpenBucket, key: bytes, place: Place) -> bool:
    """Whether the view of a key still leads to a content; also where that is unknown."""
    return leads_there(bucket, key, place.token)


def leads_there(bucket: OpenBucket, key: bytes, token: str) -> bool:
    """Whether a view leads to the content with a token."""
    directory, name = keys.split(key)
    try:
        at = bucket.views.get(directory)
        target = bucket.link_target(at, name, bucket.fs.stat(at, name))
    except OSError as error:
        return error.errno not in GONE
    return target is not None and target.token == token


def shown_content(bucket: OpenBucket, version: Version) -> os.stat_result | None:
    """The status of the file to which the symlink of a version's content leads; None where it leads nowhere: archived
    content that is not restored, lost content, a tier that is away."""
    if version.place is None:
        return None
    try:
        fd = bucket.tier(version.place.tier).open_shown(version.key, version.place)
    except (OSError, Unavailable):
        return None
    try:
        found = bucket.fs.stat_fd(fd)
        return found if bucket.fs.is_regular(found) else None
    finally:
        bucket.fs.close(fd)


def looks_like(found: os.stat_result, version: Version) -> bool:
    """Whether a content in a tier has the size and the time of a version's, as every one that was not written into."""
    if found.st_size != version.size:
        return False
    if version.posix is None:
        return True
    # a filesystem that keeps whole seconds, or even ones, cannot have the time as it was set
    coarse_ns = 2 * times.SECOND_NS if found.st_mtime_ns % times.SECOND_NS == 0 else 1
    return abs(found.st_mtime_ns - version.posix.mtime_ns) < coarse_ns


def is_as_recorded(bucket: OpenBucket, key: bytes, version_id: str) -> bool:
    """Whether the content that a view shows, which is a symlink to it, was not written into, as far as that can be seen
    now. Raises OSError."""
    try:
        version = versions.read(bucket, key, version_id, marker=False)
    except StoreDamaged:
        return True  # other steps report it
    content = shown_content(bucket, version) if version is not None else None
    return version is None or content is None or looks_like(content, version)


def open_target(bucket: OpenBucket, target: LinkTarget) -> int | None:
    """The file to which a symlink leads, in whichever tier it is, opened to read; None where it leads nowhere. The
    symlink is not followed."""
    for name in bucket.bucket.root.settings.classes:
        with contextlib.suppress(OSError, Unavailable):
            fd = bucket.fs.open_read(bucket.tier(name).fd, target.name)
            if bucket.fs.is_regular(bucket.fs.stat_fd(fd)):
                return fd
            bucket.fs.close(fd)
    return None


def holds_unrecorded(bucket: OpenBucket, key: bytes, target: LinkTarget) -> bool:
    """Whether the content to which a view's symlink leads is that of no version of its key, or has a writer: then the
    symlink stays until it is captured. Raises OSError, StoreDamaged."""
    fd = open_target(bucket, target)
    if fd is None:
        return False
    try:
        # in this order: what a writer that is gone by then has written shows in the status
        is_written = bucket.fs.is_written(fd)
        content = bucket.fs.stat_fd(fd)
    finally:
        bucket.fs.close(fd)
    return is_written is True or not any(looks_like(content, each) for each in _versions_of(bucket, key))


def version_in(bucket: OpenBucket, tier_name: str, name: bytes) -> Version | None:
    """The version whose content, or a restored copy of it, has a name in a tier, or had it until just now; None where
    there is none. Raises Unavailable, OSError, StoreDamaged.
    """
    tier = bucket.tier(tier_name)
    for suffix in SUFFIXES.values():
        found = tier.read(name + suffix)
        if found is not None and bucket.bucket.owns(found[0]):
            return versions.read(bucket, found[1].key, found[1].id, marker=False)
    return None


def open_to_readers(bucket: OpenBucket, version: Version) -> None:
    """Let those read the content of a version in its tier who may read the object; archived content once it is
    restored.

    Raises Unavailable, OSError.
    """
    assert version.place is not None
    if version.place.is_archived and version.place.until_ns <= bucket.bucket.root.now():
        return
    fd = versions.open_content(bucket, version)
    try:
        posix = version.posix
        if posix is not None:
            posix = replace(posix, mode=posix.mode & _MAY_NOT_WRITE | _OWNER_READS)
        apply_posix(bucket, fd, posix)
        bucket.fs.chmod(fd, bucket.fs.stat_fd(fd).st_mode & _MAY_NOT_WRITE)  # an ACL has a mask of its own
    finally:
        bucket.fs.close(fd)


def close_to_readers(bucket: OpenBucket, key: bytes, version_id: str) -> None:
    """Make the content of a version private that no view shows any more. One in a tier that is away stays so until the
    sweep."""
    with contextlib.suppress(OSError, FsreplError):
        version = versions.read(bucket, key, version_id, marker=False) if version_id else None
        if version is not None and version.place is not None:
            fd = versions.open_content(bucket, version)
            try:
                make_private(bucket, fd, bucket.fs.stat_fd(fd))
            finally:
                bucket.fs.close(fd)


def make_private(bucket: OpenBucket, fd: int, found: os.stat_result) -> None:
    if found.st_mode & 0o7777 != 0o600 or found.st_uid != bucket.fs.uid:
        bucket.fs.chmod(fd, 0)
        if found.st_uid != bucket.fs.uid:
            bucket.fs.give(fd, bucket.fs.uid, found.st_gid)
        bucket.fs.remove_acl(fd)
        bucket.fs.chmod(fd, 0o600)
