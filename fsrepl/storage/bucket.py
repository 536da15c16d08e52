"""One bucket: checked, and opened for a batch."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from fsrepl.errors import Away, BucketMissing, Disowned, FsreplError, Unavailable, reason
from fsrepl.model import clock, digests, keys
from fsrepl.model.address import Address
from fsrepl.model.lifecycle import Lifecycle
from fsrepl.model.rule import Replication
from fsrepl.model.version import Posix, Versioning
from fsrepl.model.view import View, view_of
from fsrepl.storage import bucket_documents, documents, hashing, privacy, tiers, times
from fsrepl.storage.bucket_documents import Documents, Identity
from fsrepl.storage.fs import GONE
from fsrepl.storage.halt import Halt
from fsrepl.storage.open_directories import Directories
from fsrepl.storage.root import Root
from fsrepl.storage.tiers import LinkTarget, OpenTier

META = keys.RESERVED
FOLDERS = (b"tmp", b"displaced", b"intents", b"versions")
BARRIER = b"barrier"
"""A folder below tmp for the daemon's sentinels, which show how far it has read its events."""


class OpenBucket:
    """A bucket opened for a batch. Descriptors are closed afterwards, so that an idle region can be unmounted.

    A batch needs few of the folders in .fsrepl, and a look whether anything is to be done needs none: each of tmp,
    displaced and intents is opened where it is first used.
    """

    def __init__(self, bucket: Bucket, fd: int) -> None:
        self.bucket, self.fs, self.fd = bucket, bucket.fs, fd
        self.address = bucket.address
        self._device: int | None = None
        self._coarse_ns: int | None = None
        self._folders: dict[bytes, int] = {}
        self.versions = -1
        """The version store; negative in a never-versioned bucket, which has none."""
        self.sync_error: OSError | None = None
        """Why syncfs failed here: see Syncer.staged."""
        try:
            self.meta = self._open_folder(b"")
            self.meta_status = self.fs.stat_fd(self.meta)
            with contextlib.suppress(FileNotFoundError):
                self.versions = self._open_folder(b"versions")
        except BaseException:
            self._close_folders()
            raise
        self.views = Directories(self.fs, fd, self.meta_status)
        self.store = Directories(self.fs, self.versions)
        self._tiers: dict[str, OpenTier] = {}
        self._gives_acl: bool | None = None
        self.made: Posix | None = None
        """The mode and owner that files made in .fsrepl/tmp have at first, once one was looked at: see apply_posix."""

    @property
    def tmp(self) -> int:
        """The folder of staged files. Raises Unavailable where it cannot be opened, as do the next two."""
        return self._folders[b"tmp"] if b"tmp" in self._folders else self._folder(b"tmp")

    @property
    def gives_acl(self) -> bool:
        """Whether a file that is made in .fsrepl/tmp has an ACL from the beginning. Only the daemon changes that."""
        if self._gives_acl is None:
            self._gives_acl = self.fs.default_acl(self.tmp) is not None
        return self._gives_acl

    @property
    def displaced(self) -> int:
        """The folder of files that an exchange took out of a view."""
        return self._folders[b"displaced"] if b"displaced" in self._folders else self._folder(b"displaced")

    @property
    def intents(self) -> int:
        """The folder of intents."""
        return self._folders[b"intents"] if b"intents" in self._folders else self._folder(b"intents")

    @property
    def device(self) -> int:
        """The number of the filesystem's device."""
        if self._device is None:  # no cached_property: Python 3.11 holds a lock of all buckets while a disk hangs
            self._device = self.fs.stat_fd(self.fd).st_dev
        return self._device

    def is_object(self, key: bytes, found: os.stat_result) -> bool:
        """Whether an entry of this status is a key's object: a regular file; a symlink that the daemon made to content
        in a tier; in a tree bucket also any other symlink, or a directory where the key is one."""
        if keys.is_directory(key):
            return self.bucket.trees and self.fs.is_directory(found)
        if self.fs.is_regular(found):
            return True
        return self.fs.is_link(found) and (self.bucket.trees or self._leads_to_tier(key, found))

    def _leads_to_tier(self, key: bytes, found: os.stat_result) -> bool:
        directory, name = keys.place(key)
        with contextlib.suppress(OSError):
            return self.link_target(self.views.get(directory), name, found) is not None
        return False

    def link_target(self, at: int, name: bytes, found: os.stat_result) -> LinkTarget | None:
        """The target of a symlink of this status, if the daemon made it as the view of content in a tier; else None.

        Only a symlink of the daemon's own user is believed, and its text alone is read: it is never followed.
        """
        if not self.fs.is_link(found) or found.st_uid != self.fs.uid:
            return None
        try:
            fd = self.fs.open_inode(at, name)
        except FileNotFoundError:
            return None
        try:
            if not self.fs.is_link(self.fs.stat_fd(fd)):
                return None
            return tiers.link_target(self.bucket.name, self.fs.read_link(fd))
        finally:
            self.fs.close(fd)

    def view_status(self, key: bytes) -> os.stat_result:
        """The status of the entry in the place of a key's view. Raises OSError where there is none."""
        directory, name = keys.place(key)
        return self.fs.stat(self.views.get(directory), name)

    def open_view(self, key: bytes) -> int:
        """The file in the place of a file's view, opened to be read. Raises OSError, ELOOP for a symlink."""
        directory, name = keys.place(key)
        return self.fs.open_read(self.views.get(directory), name)

    @property
    def coarse_ns(self) -> int:
        """The longest interval between two changes that may leave equal times on a file here."""
        if self._coarse_ns is None:
            known = self.bucket.coarse
            if known is None or known[0] != self.device:
                known = self.bucket.coarse = (self.device, times.coarse_ns(self.fs, self.tmp))
            self._coarse_ns = known[1]
        return self._coarse_ns

    def view(self, found: os.stat_result, shown: str, *, racy: bool = False) -> View:
        """The state of a view just made or left; racy where later writes by its user may go unnoticed."""
        racy = racy or times.may_hide_a_write(found, time.time_ns(), self.coarse_ns)
        return view_of(found, shown, racy=racy)

    def stored_directory(self, path: bytes) -> int:
        """The store's directory for a directory of views: its versions and its own record. Raises OSError."""
        return self.store.get(keys.stored_directory(path))

    def stored_file(self, key: bytes, version_id: str, *, marker: bool = False) -> tuple[int, bytes]:
        """The open directory and the name of a version's or marker's file. Raises OSError."""
        directory, last = keys.split(key)
        return self.stored_directory(directory), keys.stored_name(last, version_id, marker=marker)

    def tier(self, storage_class: str) -> OpenTier:
        """The bucket's part of a tier. Raises Unavailable where the tier is away, or no longer in the settings."""
        found = self._tiers.get(storage_class)
        if found is None:
            tier = self.bucket.root.tier(storage_class)
            if tier is None:
                raise Away(
                    f"bucket {self.address}: content lies in the tier of {storage_class}, which the settings do not "
                    f"name any more; put [regions.{self.bucket.region}.classes.{storage_class}] back"
                )
            found = self._tiers[storage_class] = tier.open_bucket(self.bucket.name)
        return found

    def store_changed(self, key: bytes) -> None:
        """Note that a key's version files changed names: the next sync makes them durable."""
        self.store.changed.add(keys.stored_directory(keys.split(key)[0]))

    def _open_folder(self, name: bytes) -> int:
        """A folder in .fsrepl, or, where the name is empty, .fsrepl itself."""
        fd = self._folders[name] = self.fs.open_dir(self.fd, META + b"/" + name if name else META)
        return fd

    def _folder(self, name: bytes) -> int:
        """A folder that holds no lasting data, created where it is missing; for a reader it is negative then."""
        try:
            return self._open_folder(name)
        except FileNotFoundError as error:
            if self.fs.read_only or self.fs.uid != os.geteuid():
                return -1
            try:
                with contextlib.suppress(FileExistsError):  # another thread was first
                    self.fs.make_dir(self.meta, name)
                return self._open_folder(name)
            except OSError as failed:
                raise Unavailable(f"bucket {self.address}: {reason(failed)}") from error
        except OSError as error:
            raise self.bucket.unusable(error) from error

    def sync(self) -> None:
        """Make everything written in this bucket so far durable."""
        if self.bucket.trees:
            self.bucket.touched |= self.views.changed
        if len(self.views.changed) + len(self.store.changed) > 4:
            self.fs.sync_all(self.fd)
            self.views.changed.clear()
            self.store.changed.clear()
        else:
            self.store.sync()
            self.views.sync()

    def _close_folders(self) -> None:
        for fd in self._folders.values():
            self.fs.close(fd)
        self.fs.close(self.fd)

    def close(self) -> None:
        self.views.close()
        self.store.close()
        for tier in self._tiers.values():
            tier.close()
        self._close_folders()

    def __enter__(self) -> OpenBucket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Bucket:
    """One bucket of the site: its path, its expected identity, and its documents as last read."""

    def __init__(self, root: Root, address: str, expected: str, named: Callable[[str], list[str]]) -> None:
        """named: returns the addresses of all buckets with a name, since a rule may give only its destination's
        name."""
        self.root, self.fs, self.address, self.uuid, self._named = root, root.fs, address, expected, named
        whole = Address.parse_bucket(address)
        self.region, self.name = whole.region, whole.name
        self.documents = Documents()
        self.seen: dict[bytes, tuple[int, ...]] = {}
        self._removed = documents.Removed()
        self.trouble = ""
        """The reason why the bucket was unusable when last opened; empty otherwise."""
        self.exposed = ""
        """A message for users that `.fsrepl` was open to others, and until when; empty otherwise."""
        self.away = False
        """Whether the region or the bucket's folder was missing when last opened."""
        self.halt: Halt | None = None
        """Set where the deletions are held, since they were so many. Read when a region brings the bucket up."""
        self.ids = clock.VersionIds()
        self.reflinks: bool | None = None
        self.links: bool | None = None
        self.coarse: tuple[int, int] | None = None
        """A device, and the granularity of its filesystem's times."""
        self.has_displaced = True
        """Whether something may lie in .fsrepl/displaced."""
        self.touched: set[bytes] = set()
        """Of a tree bucket: directories in which the daemon changed views, until that is noted, see
        views/resting.py."""

    @property
    def path(self) -> Path:
        """The bucket's folder."""
        return self.root.path / self.name

    @property
    def _adopt_hint(self) -> str:
        return f"`fsrepl bucket adopt {self.address}` brings it back, with the versions that its replicas have"

    @property
    def sharing(self) -> str:
        return self.root.sharing

    @property
    def versioning(self) -> Versioning:
        return self.documents.versioning

    @property
    def replication(self) -> Replication | None:
        return self.documents.replication

    @property
    def lifecycle(self) -> Lifecycle | None:
        return self.documents.lifecycle

    def owns(self, uuid: str) -> bool:
        """Whether content in a tier is this bucket's, by the uuid on it."""
        return uuid == self.uuid or uuid in self.documents.identity.replaces

    @property
    def trees(self) -> bool:
        """Whether this is a tree bucket."""
        return self.documents.identity.trees

    def open(self) -> OpenBucket:
        """Verify the bucket's identity, read its changed documents, and open it.

        Raises Unavailable (region or bucket offline, foreign, owned by another user, documents unreadable) or
        BucketMissing. Nothing is written then.
        """
        try:
            found = self._open()
        except FsreplError as error:
            self.trouble, self.away = str(error), isinstance(error, (Away, BucketMissing))
            raise
        self.trouble, self.away = "", False
        return found

    def _open(self) -> OpenBucket:
        with self.root.open() as region_fd:
            try:
                fd = self.fs.open_dir(region_fd, self.name.encode(), cross=True)
            except OSError as error:
                if error.errno in GONE:
                    raise BucketMissing(
                        f"bucket {self.address}: its folder is not there; if it was not only moved, {self._adopt_hint}"
                    ) from error
                raise Unavailable(f"bucket {self.address}: cannot open its folder: {reason(error)}") from error
        try:
            opened = OpenBucket(self, fd)
        except OSError as error:
            raise self.unusable(error) from error
        try:
            if self.root.keeps_private and privacy.is_open(opened.meta_status):
                self._close_again(opened)
            self._check(opened)
            self.refresh(opened)
        except OSError as error:
            opened.close()
            raise Unavailable(f"bucket {self.address}: {reason(error)}") from error
        except BaseException:
            opened.close()
            raise
        return opened

    def unusable(self, error: OSError) -> FsreplError:
        """The error to raise where a folder of .fsrepl cannot be opened."""
        if isinstance(error, PermissionError):
            return Disowned(f"bucket {self.address}: its .fsrepl cannot be opened: {reason(error)}")
        what = f"its .fsrepl folder is gone; {self._adopt_hint}" if error.errno in GONE else reason(error)
        return Unavailable(f"bucket {self.address}: {what}")

    def _close_again(self, opened: OpenBucket) -> None:
        with contextlib.suppress(PermissionError):  # another user's folder, which is not trusted either
            if self._is_its(opened) and privacy.close(self.fs, opened.meta):
                opened.meta_status = self.fs.stat_fd(opened.meta)
                self.exposed = (
                    f"others could look into .fsrepl, which holds private and deleted files, until "
                    f"{clock.stamp(self.root.now())}; it is closed again"
                )

    def _is_its(self, opened: OpenBucket) -> bool:
        """Whether `.fsrepl` belongs to this bucket: the folder's owner may give that name to anything."""
        with contextlib.suppress(OSError, ValueError):
            found = self.fs.stat(opened.meta, b"bucket.json")
            if stat.S_ISREG(found.st_mode) and found.st_uid in (self.fs.uid, 0):
                identity = documents.read_document(self.fs, opened.meta, b"bucket.json")
                return identity is not None and identity.get("uuid") == self.uuid
        return False

    def _check(self, opened: OpenBucket) -> None:
        if opened.versions < 0:
            with contextlib.suppress(FileNotFoundError):
                self.fs.stat(opened.meta, b"versioning.json")
                raise Unavailable(
                    f"bucket {self.address}: its version store, .fsrepl/versions, is gone; {self._adopt_hint}"
                )
        for found in (opened.meta_status, self.fs.stat_fd(opened.versions) if opened.versions >= 0 else None):
            if found is not None and (why := documents.disowned(self.fs, found)):
                raise Disowned(f"bucket {self.address}: its .fsrepl {why}; its content is not trusted")

    def refresh(self, opened: OpenBucket) -> None:
        """Read the documents changed since the last call."""
        seen = bucket_documents.looks(self.fs, opened.meta, self.address)
        if seen == self.seen:
            return
        self.seen = {}  # until all documents have been read
        try:
            identity = bucket_documents.read_identity(self.fs, opened.meta, self.address)
            if identity is None:
                raise Unavailable(
                    f"bucket {self.address}: .fsrepl/bucket.json, which says what bucket this is, is gone; if that was "
                    f"`fsrepl bucket rm {self.address}`, run that again to continue it; otherwise {self._adopt_hint}"
                )
            if identity.uuid != self.uuid:
                raise Unavailable(
                    f"bucket {self.address}: .fsrepl/bucket.json is of another bucket "
                    f"({identity.uuid}) than the site knows ({self.uuid}); "
                    "`fsrepl region add` attaches a region again"
                )
            self.documents = self.read_documents(opened, identity)
        except FsreplError as error:
            raise Unavailable(str(error)) if not isinstance(error, Unavailable) else error from error
        self.seen = seen

    def read_documents(self, opened: OpenBucket, identity: Identity | None = None) -> Documents:
        """The bucket's current documents. identity: as read already. Raises DocumentInvalid."""
        identity = identity or bucket_documents.read_identity(self.fs, opened.meta, self.address) or Identity()
        self._removed = documents.read_removed(self.fs, opened.meta, self._removed)
        return bucket_documents.read(self.fs, opened.meta, self.address, identity, self._removed.ids, self._named)


def content_digest(bucket: OpenBucket, fd: int, progress: Callable[[int], None] | None = None) -> bytes:
    """The BLAKE3 of an open file, 32 bytes. progress: called with the number of bytes hashed."""
    if bucket.fs.stat_fd(fd).st_size >= hashing.PARALLEL_BYTES:
        return hashing.content(bucket.fs, fd, progress=progress).digest
    return digests.of_chunks(digests.counted(bucket.fs.chunks(fd), progress))
