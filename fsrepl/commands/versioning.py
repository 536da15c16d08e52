"""Versioning enabled and suspended; files from before become null versions."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterable, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.capture import copy, look
from fsrepl.commands import requirements
from fsrepl.daemon.engine import Engine
from fsrepl.errors import Refused, reason
from fsrepl.model import clock, keys
from fsrepl.model.version import NULL, Kind, Origin, Version, Versioning
from fsrepl.model.view import view_of
from fsrepl.region.change_queue import ARRIVED, Change
from fsrepl.s3 import replication
from fsrepl.settings import Settings
from fsrepl.storage import hashing, publishing, sharing, versions
from fsrepl.storage.bucket import META, OpenBucket
from fsrepl.storage.documents import write_document
from fsrepl.storage.fs import NO_SPACE, Fs
from fsrepl.storage.site import Site
from fsrepl.storage.walk import directories, leave_out

_BATCH = 512
_NAMED_MAX = 100
_RECORD_BYTES = 8192
"""The space of a stored version beside its content: its inode, and a block for its attributes."""


def set_versioning(engine: Engine, address: str, status: str) -> dict[str, object]:
    """Set versioning to Enabled or Suspended. Raises Refused(MalformedXML) for another state."""
    if status not in (Versioning.ENABLED, Versioning.SUSPENDED):
        raise Refused("MalformedXML", f"versioning is Enabled or Suspended, not {status!r}")
    wanted = Versioning(status)
    bucket = engine.site.bucket(address)
    with bucket.open():
        if wanted is Versioning.SUSPENDED and bucket.replication is not None:
            raise Refused(
                "InvalidBucketState",
                f"a replication configuration is present on {address}, so its versioning cannot be suspended; "
                f"`fsrepl replication rm {address}` removes the configuration",
            )
        now = bucket.versioning
    if now is Versioning.OFF:
        with bucket.open() as opened:
            requirements.require(engine.fs, opened.tmp, f"bucket {address}")
            room = measure(engine.fs, opened.fd, engine.settings, bucket.region, trees=bucket.trees)
        room.check(address)
        adopted = enable_versioning(engine, address, wanted)
        return {"Bucket": address, "Status": str(wanted), **room.document(), **adopted.document()}
    if now is not wanted:
        engine.region_of(address).flush(address)  # files from before this call belong to the old state
        with bucket.open() as opened:
            write_document(engine.fs, opened.meta, b"versioning.json", replication.versioning_document(wanted))
            bucket.refresh(opened)
        engine.region_of(address).follow(address)
    return {"Bucket": address, "Status": str(wanted)} | cut_off(engine.site, address, wanted)


def cut_off(site: Site, address: str, wanted: Versioning) -> dict[str, object]:
    """The sources whose deliveries to a bucket fail once its versioning is suspended, as a part of the answer. S3 lets
    a destination be suspended (s3-semantics, rule 11)."""
    sources = site.sources_of(address) if wanted is Versioning.SUSPENDED else []
    return {"ReplicatedFrom": sources} if sources else {}


class Room(Struct, frozen=True):
    """The bytes that versions of all files below a directory need, and the bytes that are free.

    objects: files, and in a tree bucket symlinks, of which there are so many links. directories: those that become
    objects too. kept: the bytes that keep_free leaves to the user. A filesystem that does not report its space counts
    as sufficient.
    """

    objects: int
    size: int
    needed: int
    free: int
    kept: int
    directories: int = 0
    links: int = 0

    def check(self, address: str) -> None:
        """Raises Refused where the space does not suffice."""
        if self.needed and self.free - self.needed < self.kept:
            raise Refused(
                "InvalidRequest",
                f"{address} takes about {_mib(self.needed)} for its versions; {_mib(self.free)} are free, and "
                f"keep_free leaves {_mib(self.kept)} of that to the user; make room, or set "
                'sharing = "link" for the region if no program writes into files there',
            )

    def document(self) -> dict[str, object]:
        return {
            "Objects": self.objects, "Directories": self.directories, "Symlinks": self.links, "Bytes": self.size,
            "Needed": self.needed, "Free": self.free,
        }  # fmt: skip


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"


class Adopted(Struct):
    """The outcome for files from before versioning: how many are null versions, and which are not.

    left: files and directories (these with a slash at the end) that cannot be read, with the reason. waiting: files
    that are open for writing; the daemon captures them once they are complete.
    """

    number: int = 0
    directories: int = 0
    links: int = 0
    """The directories and symlinks among them, in a tree bucket."""
    left: dict[bytes, str] = field(default_factory=dict)
    waiting: list[bytes] = field(default_factory=list)
    names: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    """In a tree bucket, the first key of each file with several names, by inode number and BLAKE3."""

    def document(self) -> dict[str, object]:
        """The JSON, with the first names only, so that an answer stays small."""
        left = sorted(self.left.items())
        return {
            "Adopted": self.number,
            "Directories": self.directories,
            "Symlinks": self.links,
            "Left": len(left),
            "LeftOut": [{"Key": keys.shown(key), "Why": why} for key, why in left[:_NAMED_MAX]],
            "Waiting": [keys.shown(key) for key in sorted(self.waiting)[:_NAMED_MAX]],
        }


def measure(fs: Fs, top: int, settings: Settings, region: str, *, trees: bool = False) -> Room:
    """Measure the space that versions of the files below an open directory need. Leaves no file behind."""
    objects = small = large = folders = links = 0
    for directory in directories(fs, top, but=META, failed=leave_out):
        folders += trees and bool(directory.path)
        for name in directory.files(trees=trees):
            with contextlib.suppress(OSError):
                status = fs.stat(directory.fd, name)
                size = status.st_size
                objects += 1
                links += fs.is_link(status)
                if size < hashing.SMALL_BYTES:
                    small += size
                else:
                    large += size
    mode = settings.regions[region].sharing
    copied = 0 if mode == "link" else small if mode == "auto" and large and _shares(fs, top) else small + large
    free, total = fs.space(top)
    kept = settings.capture.keep_free.needed(total) if mode != "link" else 0
    needed = (objects + folders) * _RECORD_BYTES + copied
    return Room(objects, small + large, needed, free if total else max(free, needed), kept, folders, links)


def _shares(fs: Fs, at: int) -> bool:
    """Whether a stored version of a large file takes no space; False where that cannot be tried."""
    try:
        return sharing.shares_blocks(fs, at)
    except OSError:
        return False


def versioning_of(site: Site, address: str) -> Versioning:
    """The state that a bucket's own document tells. Raises FsreplError where it is away."""
    with site.bucket(address).open():
        return site.bucket(address).versioning


def enable_versioning(engine: Engine, address: str, wanted: Versioning) -> Adopted:
    """Turn versioning on for the first time: existing files become null versions. The state is set last."""
    bucket = engine.site.bucket(address)
    with bucket.open() as opened, contextlib.suppress(FileExistsError):
        engine.fs.make_dir(opened.meta, b"versions")
    with bucket.open() as opened:
        engine.journal.bucket_id(address, bucket.uuid)
        adopted = Adopted()
        left_behind = _left_behind(opened)

        def unread(path: bytes, error: OSError) -> None:
            adopted.left[path + b"/"] = look.MOUNTED if error.errno == errno.EXDEV else reason(error)

        for directory in directories(engine.fs, opened.fd, but=META, failed=unread):
            files = [keys.join(directory.path, name) for name in directory.files(trees=bucket.trees)]
            if bucket.trees and directory.path:
                files.insert(0, directory.path + b"/")
            for start in range(0, len(files), _BATCH):
                found = files[start : start + _BATCH]
                imported = _import(engine, opened, found, adopted)
                adopted.number += len(imported)
                left_behind -= imported
        _remove(engine, opened, left_behind)
        write_document(engine.fs, opened.meta, b"versioning.json", replication.versioning_document(wanted))
        bucket.refresh(opened)
    engine.region_of(address).follow(address)
    return adopted


def _left_behind(bucket: OpenBucket) -> set[bytes]:
    """The keys that an interrupted import has stored. Their files may be gone by now, and never were objects.

    Empty for a store that holds anything else than versions of such an import: that store is not touched.
    """
    found = list(versions.read_all(bucket))
    return {v.key for v in found} if all(v.id == NULL and v.origin is Origin.ADOPTED for v in found) else set()


def _remove(engine: Engine, bucket: OpenBucket, found: Iterable[bytes]) -> None:
    for key in found:
        version = versions.read(bucket, key, NULL, marker=False)
        if version is not None:
            versions.remove(bucket, version)
            with engine.journal.transaction():
                engine.journal.versions.remove(bucket.address, key, NULL, None)


def _import(engine: Engine, bucket: OpenBucket, found: Sequence[bytes], adopted: Adopted) -> set[bytes]:
    """Store files from before versioning, each as its key's null version; the keys that were stored.

    Files that are not stored are noted in adopted.
    """
    writer_wait = engine.region_of(bucket.address).writer_wait
    batch = []
    for key in found:
        change = Change(bucket.address, key, ARRIVED, 0, time.monotonic())
        try:
            seen: look.Seen = look.look(bucket, change, None, writer_wait, time.time_ns(), in_background=True)
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            adopted.left[key] = reason(error)
            continue
        if isinstance(seen, copy.Taken):
            created_ns = clock.within(min(seen.found.st_mtime_ns, engine.site.now()))
            version = Version(
                key, NULL, created_ns, False, seen.size, seen.digest, Origin.ADOPTED,
                posix=seen.posix, attrs=seen.attrs, tags=seen.tags,
            )  # fmt: skip
            if bucket.bucket.trees and seen.kind is not Kind.DIRECTORY and seen.found.st_nlink > 1:
                first = adopted.names.setdefault((seen.found.st_ino, seen.digest), key)
                version = replace(version, link=(first, NULL) if first != key else None)
            batch.append((copy.stage(bucket, seen, version), seen))
        elif isinstance(seen, look.Skipped):
            adopted.left[key] = seen.why
        elif isinstance(seen, look.Later):
            adopted.waiting.append(key)
    if not batch:
        return set()
    publishing.publish(engine.syncer, bucket, [staged for staged, _ in batch])
    with engine.journal.transaction():
        for staged, seen in batch:
            engine.journal.versions.add(bucket.address, staged.version)
            engine.journal.views.see(bucket.address, staged.version.key, view_of(seen.found, NULL, racy=seen.racy))
    adopted.directories += sum(seen.kind is Kind.DIRECTORY for _, seen in batch)
    adopted.links += sum(seen.kind is Kind.LINK for _, seen in batch)
    return {staged.version.key for staged, _ in batch}
