"""Content and metadata of one version -> a hidden, verified copy in the destination.

Nothing becomes visible here. What is staged is read back and must match the recorded BLAKE3; a
mismatch is either damage at the source, which is reported and never delivered, or a copy gone
wrong, which is made again. No reflinks between regions: a replica shares no storage (G10).
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from fsrepl import access, attrs, digests, edits, records, store
from fsrepl.errors import Failed, Unavailable
from fsrepl.fs import DOES_NOT_FIT, UNSUPPORTED
from fsrepl.limiter import Limiter
from fsrepl.model import NO_SHORTFALL, Delivery, Origin, Posix, Shortfall, Version
from fsrepl.site import OpenBucket

_CHUNK = 8 << 20
SMALL_BYTES = 1 << 20


_NOT_TAKEN = DOES_NOT_FIT | UNSUPPORTED | {errno.EACCES, errno.EPERM, errno.EBADF}
"""What a view answers that has no room for an attribute, or whose mode shuts its owner out."""


@dataclass(frozen=True, slots=True)
class StagedReplica:
    """A replica lying hidden in the destination's .fsrepl/tmp.

    view names a second file, for the view, where view and store are to be independent; empty where
    the view will be a hard link to the stored version.
    """

    stored: store.Staged
    view: bytes = b""


@dataclass(slots=True)
class Progress:
    """How far one transfer has come; read by status while it runs. stop: nobody wants it any more."""

    key: bytes
    version: str
    source: str
    destination: str
    bytes_total: int
    bytes_done: int = 0
    stop: bool = False
    paced: bool = False
    """It waits for the limit."""
    moved_at_s: float = field(default_factory=time.monotonic)
    """When it came further last, or began."""

    def came_to(self, bytes_done: int) -> None:
        self.bytes_done, self.moved_at_s = bytes_done, time.monotonic()

    def pause(self, limiter: Limiter) -> None:
        """Wait for the limit, or until nobody wants it any more."""
        self.paced = True
        limiter.pause(lambda: self.stop)
        self.paced, self.moved_at_s = False, time.monotonic()


def replica_of(version: Version, delivery: Delivery, source: str) -> Version:
    """What a version is at its destination: the same, but for class and owner where the rule says so."""
    return replace(
        version,
        origin=Origin.REPLICA,
        source=source,
        deliveries={},
        storage_class=delivery.storage_class or version.storage_class,
        shortfall=NO_SHORTFALL,
    )


def given_to(replica: Version, uid: int, gid: int) -> Version:
    """Owner override: the replica belongs to the owner of the destination bucket, and carries no ACL."""
    replica = edits.without(replica, edits.ACL)
    return replace(replica, posix=replace(replica.posix, uid=uid, gid=gid)) if replica.posix else replica


def stage(
    source: OpenBucket,
    destination: OpenBucket,
    version: Version,
    replica: Version,
    *,
    linked: bool,
    data: bytes | None = None,
    progress: Progress | None = None,
    limiter: Limiter | None = None,
) -> StagedReplica:
    """Write a replica, hidden and verified. data: the content, where it is at hand, hashed already.

    Raises Failed (the stored version is damaged or gone), Unavailable (the copy does not match), OSError.
    """
    if replica.marker:
        return StagedReplica(store.stage_marker(destination, replica))
    name = store.token()
    fs = destination.fs
    fd = fs.create(destination.tmp, name)
    try:
        if data is not None:
            fs.write(fd, data)
            if limiter:
                limiter.sent(len(data))
            _verify(source, destination, version, fd)
        else:
            with fs.aside() if version.size >= SMALL_BYTES else contextlib.nullcontext():
                _copy(source, version, destination, fd, progress, limiter)
                _verify(source, destination, version, fd)
        if linked:
            posix = apply_posix(destination, fd, replica.posix)
            replica, sidecar = records.put_shared(destination, fd, name, replica, new=posix)
            return StagedReplica(store.Staged(replica, name, sidecar))
        view, shortfall = stage_view(destination, replica, fd)
        replica = replace(replica, shortfall=shortfall)
        sidecar = records.put(destination, fd, name, attrs.encode(replica))
        return StagedReplica(store.Staged(replica, name, sidecar), view)
    except BaseException:
        store.unstage(destination, name)
        raise
    finally:
        fs.close(fd)


def stage_view(
    bucket: OpenBucket, version: Version, stored_fd: int, *, at: int = -1, name: bytes = b""
) -> tuple[bytes, Shortfall]:
    """A file that shall become a version's view: its content independent of the store's, or a reflink of it.

    Also in what it falls short of its version. The order keeps it from ever being readable by more people
    than the object is. It lies in .fsrepl/tmp, unless another directory and a name in it are given.
    """
    fs = bucket.fs
    at, name = (bucket.tmp, store.token()) if at < 0 else (at, name)
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
            fs.write_sparse(fd, fs.chunks(stored_fd))
            if store.digest(bucket, fd) != version.digest:
                raise Unavailable("the copy for the view does not match its version")
        posix = apply_posix(bucket, fd, version.posix)
        return name, edits.shortfall(version, posix, mark(bucket, fd, version))
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            fs.unlink(at, name)
        raise
    finally:
        fs.close(fd)


def mark(bucket: OpenBucket, fd: int, version: Version, *, own: bool = True) -> set[str]:
    """Put a version's attributes on its view, as far as that takes them; the names of those that it does not.

    Without own, the object's own are there already. Ours are a courtesy: they make room where the object's
    need it; one that is not true of this version goes, as a copy of another file has it; and the id, which is
    the last, is there only where all that is the object's is.
    """
    objects, ours = attrs.of_object(version), attrs.marks(version)
    wanted = objects if own else {name: value for name, value in objects.items() if name not in version.attrs}
    refused = _put(bucket, fd, wanted, courtesy=not own)
    if refused and _keep(bucket, fd, frozenset()):
        refused = _put(bucket, fd, {name: objects[name] for name in refused}, courtesy=not own)
    if not own:
        refused |= version.shortfall.lacks & version.attrs.keys()
    if refused:
        ours.pop(attrs.VERSION_ID)
        refused |= {attrs.VERSION_ID, *_put(bucket, fd, ours, courtesy=True)}
    else:
        refused = _put(bucket, fd, ours, courtesy=True)
    _keep(bucket, fd, ours.keys() - refused)
    return refused


def _put(bucket: OpenBucket, fd: int, raw: Mapping[str, bytes], *, courtesy: bool) -> set[str]:
    """Set attributes of a view; the names of those that it does not take. Other faults are raised, or no matter."""
    refused = set()
    for attribute, value in raw.items():
        try:
            bucket.fs.set_attribute(fd, attribute, value)
        except OSError as error:
            if not courtesy and error.errno not in _NOT_TAKEN:
                raise
            refused.add(attribute)
    return refused


def _keep(bucket: OpenBucket, fd: int, true: Collection[str]) -> bool:
    """Take what is ours off a view but for these names; whether there was anything of that kind."""
    changed = False
    with contextlib.suppress(OSError):
        if bucket.fs.stat_fd(fd).st_nlink > 1:
            true = {*true, *attrs.RECORDS}  # it may be the stored file as well
        for attribute in bucket.fs.attribute_names(fd):
            if attrs.is_ours(attribute) and attribute not in true:
                bucket.fs.remove_attribute(fd, attribute)
                changed = True
    return changed


def apply_posix(bucket: OpenBucket, fd: int, posix: Posix | None) -> Posix:
    """Give a file an object's owner, ACL, mode and time; what it has then, which may be less.

    Order: owner, ACL, mode. A file that was open to others is closed to them first, so that on the way
    nobody gets in whom neither the old rights nor the new ones let in. Where the owner cannot be set,
    nobody gains by it: no setuid, no setgid, and the group gets what others have.
    """
    fs = bucket.fs
    now = records.inode_posix(bucket, fd, fs.stat_fd(fd))
    if posix is None:
        return now
    mode, acl = posix.mode, posix.acl
    is_owner = (now.uid, now.gid) == (posix.uid, posix.gid)
    if now.mode & 0o7077 and not (is_owner and now.acl == acl):
        fs.chmod(fd, now.mode & mode & 0o700)
    if not is_owner and not fs.give(fd, posix.uid, posix.gid):
        mode, acl = access.without_owner(posix), None
    if acl is not None and acl != now.acl:
        try:
            fs.set_acl(fd, acl)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            mode, acl = access.without_acl(posix), None
    if acl is None and now.acl is not None:  # a directory's default ACL, where the file is new
        fs.remove_acl(fd)
    fs.chmod(fd, mode)
    fs.set_mtime(fd, posix.mtime_ns)
    found = fs.stat_fd(fd)
    return records.inode_posix(bucket, fd, found) if acl is not None else records.posix_of(found)


def _copy(
    source: OpenBucket,
    version: Version,
    destination: OpenBucket,
    to: int,
    progress: Progress | None,
    limiter: Limiter | None,
) -> None:
    try:
        fd = store.open_version(source, version.key, version.id)
    except FileNotFoundError as error:
        raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
    try:
        at = written = 0
        while True:
            at, until = source.fs.next_data(fd, at, version.size)
            most = limiter.chunk_bytes(_CHUNK) if limiter and progress else _CHUNK
            count = destination.fs.copy(fd, to, at, min(most, until - at)) if at < until else 0
            if not count:
                break
            at = written = at + count
            if limiter:
                limiter.sent(count)
            if progress:  # in a lane
                progress.came_to(at)
                if limiter:
                    progress.pause(limiter)
                if progress.stop:
                    raise Unavailable("its copy was stopped")
        if progress:
            progress.came_to(at)
        if written < at:  # it ends in a hole
            destination.fs.truncate(to, at)
    finally:
        source.fs.close(fd)


def _verify(source: OpenBucket, destination: OpenBucket, version: Version, fd: int) -> None:
    if version.size < SMALL_BYTES and digests.of(destination.fs.read_at(fd, version.size + 1, 0)) == version.digest:
        return
    if store.digest(destination, fd) == version.digest:
        return
    try:
        original = store.open_version(source, version.key, version.id)
    except FileNotFoundError as error:
        raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
    try:
        digest = store.digest(source, original)
    finally:
        source.fs.close(original)
    if digest != version.digest:
        raise Failed(
            "SrcObjectNotEligible",
            "the stored version no longer matches its BLAKE3; `fsrepl verify --repair` looks for a good copy",
        )
    raise Unavailable("the copy does not match the source; it is made again")
