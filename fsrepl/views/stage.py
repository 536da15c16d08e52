"""Staging of files that become views."""

from __future__ import annotations

import contextlib
import errno

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged, Unavailable
from fsrepl.model import attributes, digests, metadata
from fsrepl.model.version import NO_SHORTFALL, Kind, Shortfall, Version
from fsrepl.storage import copying, placed, posix, records, sharing, staging, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import UNSUPPORTED
from fsrepl.storage.hashing import SMALL_BYTES
from fsrepl.storage.posix import apply_posix, apply_to_link
from fsrepl.views import view_attributes


def stage_current(bucket: OpenBucket, version: Version) -> bytes:
    """Stage a view of a stored version; empty where it will be a hard link, or a directory."""
    if version.marker or version.kind is Kind.DIRECTORY:
        return b""
    if version.place is not None and version.kind is Kind.FILE:
        return stage_placed(bucket, version)
    fd = versions.open_content(bucket, version)
    try:
        if content_digest(bucket, fd) != version.digest:
            raise StoreDamaged(f"the stored version {version.id} no longer matches its BLAKE3; it is not shown")
        if sharing.is_linked(bucket, version.posix) and _becomes_view(bucket, version, fd):
            return b""
        staged, shortfall = stage_view(bucket, version, fd)
    finally:
        bucket.fs.close(fd)
    if shortfall != version.shortfall:
        records.amend(bucket, replace(version, shortfall=shortfall))
    return staged


def stage_placed(bucket: OpenBucket, version: Version, *, at: int = -1, name: bytes = b"") -> bytes:
    """Stage a symlink to a version's content in its tier, which is opened to those who may read the object; its name.

    It lies in .fsrepl/tmp, unless another directory and a name in it are given. Of archived content the symlink leads
    to where a restored copy is, or will be.
    """
    placed.open_to_readers(bucket, version)
    at, name = (bucket.tmp, staging.token()) if at < 0 else (at, name)
    bucket.fs.symlink(placed.path_of(bucket, version), at, name)
    return name


def _becomes_view(bucket: OpenBucket, version: Version, fd: int) -> bool:
    """Prepare a stored file to be a view too; False where it cannot have the object's metadata."""
    found = bucket.fs.stat_fd(fd)
    is_alike = posix.inode_posix(bucket, fd, found) == version.posix
    if not is_alike and (found.st_nlink > 1 or not records.is_shared(bucket, fd)):
        return False
    # else it was a view before, or was to be one: see records.make_private
    is_alike = is_alike or apply_posix(bucket, fd, version.posix) == version.posix
    if is_alike and records.protect(bucket, version):
        return True
    records.make_private(bucket, version)
    return False


def stage_view(
    bucket: OpenBucket, version: Version, stored_fd: int, *, at: int = -1, name: bytes = b""
) -> tuple[bytes, Shortfall]:
    """Stage a version's view: its content independent of the store's, or a reflink of it.

    Also the shortfall of its metadata. By the order of the steps it is never readable by more people
    than the object is. It lies in .fsrepl/tmp, unless another directory and a name in it are given. The name is empty
    for a directory, which is made when it is shown, and for a symlink that cannot be shown: in a bucket that is no tree
    bucket, or with a target that is too long for this filesystem.
    """
    fs = bucket.fs
    at, name = (bucket.tmp, staging.token()) if at < 0 else (at, name)
    if version.kind is Kind.DIRECTORY:
        return b"", NO_SHORTFALL
    if version.kind is Kind.LINK:
        return _stage_link(bucket, version, stored_fd, at, name) if bucket.bucket.trees else (b"", NO_SHORTFALL)
    fd = fs.create(at, name)
    try:
        cloned = False
        if version.size >= SMALL_BYTES and bucket.bucket.sharing == "auto":
            try:
                fs.clone(fd, stored_fd)
                cloned = True
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        if not cloned:
            if version.size >= SMALL_BYTES:
                share = bucket.bucket.sharing == "auto"
                copying.copy_part(bucket, stored_fd, fd, 0, 0, version.size, share=share)
                fs.truncate(fd, version.size)  # the content may end in a hole
            else:
                fs.write_sparse(fd, fs.chunks(stored_fd))
            if content_digest(bucket, fd) != version.digest:
                raise Unavailable("the copy for the view does not match its version")
        posix = apply_posix(bucket, fd, version.posix)
        return name, metadata.shortfall(version, posix, view_attributes.write(bucket, fd, version, new=True))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(at, name)
        raise
    finally:
        fs.close(fd)


def _stage_link(bucket: OpenBucket, version: Version, stored_fd: int, at: int, name: bytes) -> tuple[bytes, Shortfall]:
    """Stage a symlink with a version's target. It is changed through its descriptor, never by its name."""
    fs = bucket.fs
    target = b"".join(fs.chunks(stored_fd))
    if digests.of(target) != version.digest:
        raise Unavailable("the target for the symlink does not match its version")
    try:
        fs.symlink(target, at, name)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # xfs takes 1,023 bytes, ext4 and btrfs 4,095
            raise
        return b"", NO_SHORTFALL
    try:
        fd = fs.open_inode(at, name)
        try:
            posix = apply_to_link(bucket, fd, version.posix)
        finally:
            fs.close(fd)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(at, name)
        raise
    return name, metadata.shortfall(version, posix, attributes.of_object(version).keys())
