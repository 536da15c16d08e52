"""Tiers: directories, mostly on other disks, for the content of versions in one storage class of a region.

    TIER/.fsrepl-tier.json           identity: uuid, region, class; without it the tier is offline
    TIER/BUCKET/TOKEN;cat.jpg        the content of one version, with a copy of its record
    TIER/BUCKET/TOKEN;cat.jpg.zst    archived content (GLACIER, DEEP_ARCHIVE), .arc where it is not compressed; the name
                                     without that is then a copy that was restored for some days, or is missing
    TIER/BUCKET/.tmp/                staging, swept at start, except the unfinished copies of large contents

A version whose content lies in a tier keeps its file in the bucket's store: empty, with the record, which names tier
and token (model/version.py, Place). So versions are listed, and their records changed, while a tier is away; only their
content is not there then. A token is random and never used twice, so that no two contents have the same name.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.errors import Disowned, Refused, TierAway, Unavailable, reason
from fsrepl.model import attributes, clock, digests, keys, record_form
from fsrepl.model.version import Form, Place, Posix, Version
from fsrepl.settings import ARCHIVES, ClassSettings
from fsrepl.storage import compression, documents, probe
from fsrepl.storage.fs import GONE, FileType, Fs

TIER_IDENTITY = b".fsrepl-tier.json"
TMP = b".tmp"
SUFFIXES: Mapping[Form, bytes] = MappingProxyType({Form.PLAIN: b"", Form.ARCHIVED: b".arc", Form.ZSTD: b".zst"})
_MOVE = re.compile(rb"move\.[0-9a-f]{32}")
_MOVE_MAX_S = 7 * 86_400.0
"""The copy of a large content that was not written for so long is no longer wanted."""
_NOWHERE = b".archived"
"""A folder that is never made."""
RESTORED = b".restored"
"""The end of the name of a staged copy of archived content."""
_RESTORED_MAX_S = 86400.0
INVALID_STATE = "InvalidObjectState"
_RESTORE = "`fsrepl restore ADDRESS --days N` makes it readable for some days"
BUCKET = attributes.OURS + "bucket"
"""An attribute of a content: the uuid of its bucket. A bucket that was removed may have had the same name."""
_LINK = re.compile(rb"(?s)/(?P<bucket>[^/]+)/(?P<name>(?P<token>[0-9a-f]{32});[^/]+)")
_SEARCHABLE = 0o711
"""The mode of a bucket's folder in a tier. Users can open a content to which a symlink leads, if its mode permits, and
cannot list the others, whose tokens cannot be guessed."""
_NO_INODE = Posix(0o600, 0, 0, 0)


def new_token() -> str:
    """Random bytes of the kernel, as secrets.token_hex takes them; but that module loads OpenSSL, for 2.6 ms."""
    return os.urandom(16).hex()


def move_name(key: bytes, version_id: str, digest: bytes, tier: str) -> bytes:
    """The name of the unfinished copy of a large version, by which the next try finds it. tier: where it is to lie,
    empty for the bucket's store."""
    return b"move." + digests.short(b"\0".join((key, version_id.encode(), digest, tier.encode()))).encode()


def new_tier_identity(region: str, region_uuid: str, storage_class: str, now_ns: int) -> dict[str, str]:
    return {
        "uuid": str(uuid.uuid4()),
        "region": region,
        "region_uuid": region_uuid,
        "class": storage_class,
        "created": clock.stamp(now_ns),
    }


class Tier(Struct, frozen=True):
    """One tier of a region: its settings and its expected identity, empty where it is not attached."""

    fs: Fs
    region: str
    settings: ClassSettings
    expected: str
    silent: bool = False
    """Whether it did not answer a command's query: it is then not accessed."""

    @property
    def storage_class(self) -> str:
        return self.settings.name

    @property
    def address(self) -> str:
        return tier_address(self.region, self.storage_class)

    @property
    def form(self) -> Form:
        """How content is put there now."""
        if self.storage_class not in ARCHIVES:
            return Form.PLAIN
        return Form.ZSTD if self.settings.compress == "zstd" else Form.ARCHIVED

    @property
    def not_attached(self) -> str:
        return f"{self} is not attached; `fsrepl tier add {self.address}={self.settings.path}` attaches it"

    def path_of(self, bucket: str, key: bytes, place: Place) -> bytes:
        """The path of a content, for people."""
        return b"/".join([os.fsencode(self.settings.path), os.fsencode(bucket), content_name(key, place)])

    def link_to(self, bucket: str, key: bytes, place: Place) -> bytes:
        """The target of a symlink to a content, or to where its restored copies are."""
        return b"/".join([os.fsencode(self.settings.path), os.fsencode(bucket), keys.tier_name(place.token, key)])

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """The tier's directory, with its identity verified. Raises TierAway where it is missing, foreign or not
        attached, Disowned where others may write to it."""
        fd = self._open()
        try:
            yield fd
        finally:
            self.fs.close(fd)

    def open_bucket(self, bucket: str) -> OpenTier:
        """The part of a tier that belongs to a bucket. Raises TierAway, Unavailable, Disowned."""
        with self.open() as at:
            name = os.fsencode(bucket)
            try:
                try:
                    fd = self.fs.open_dir(at, name)
                except FileNotFoundError:
                    if self.fs.read_only:
                        raise
                    self.fs.make_dir(at, name)
                    self.fs.sync_file(at)
                    fd = self.fs.open_dir(at, name)
                if self.fs.stat_fd(fd).st_mode & 0o777 != _SEARCHABLE and not self.fs.read_only:
                    self.fs.chmod(fd, _SEARCHABLE)
            except OSError as error:
                raise Unavailable(f"{self}: the folder of bucket {bucket} cannot be opened: {reason(error)}") from error
        try:
            if why := documents.disowned(self.fs, self.fs.stat_fd(fd)):
                raise Disowned(f"{self}: its folder {bucket} {why}; its content is not trusted")
            return OpenTier(self, fd)
        except BaseException:
            self.fs.close(fd)
            raise

    def remove_bucket(self, bucket: str) -> None:
        """Remove the content of a bucket, and its folder. Raises TierAway, Unavailable, Disowned, OSError."""
        name = os.fsencode(bucket)
        with self.open() as at:
            try:
                self.fs.stat(at, name)
            except FileNotFoundError:
                return
            opened = self.open_bucket(bucket)
            try:
                opened.sweep()
                for each, kind in list(self.fs.entries(opened.fd)):
                    if kind in (FileType.REGULAR, FileType.LINK):
                        self.fs.unlink(opened.fd, each)
                self.fs.remove_dir(opened.fd, TMP)
            finally:
                opened.close()
            self.fs.remove_dir(at, name)

    def _open(self) -> int:
        path = self.settings.path
        if not self.expected:
            raise TierAway(self.not_attached)
        if self.silent:
            raise Unavailable(f"{self}: {path}: {probe.no_answer()}")
        try:
            fd = self.fs.open_root(path)
        except OSError as error:
            raise TierAway(f"{self} is offline: {path}: {reason(error)}") from error
        try:
            self._check(fd)
        except BaseException:
            self.fs.close(fd)
            raise
        return fd

    def _check(self, fd: int) -> None:
        path = self.settings.path
        try:
            identity = documents.read_document(self.fs, fd, TIER_IDENTITY)
        except (OSError, ValueError) as error:
            raise Unavailable(f"{self}: its identity at {path} cannot be read: {error}") from error
        if identity is None:
            raise TierAway(f"{self} is offline: {path} has no {TIER_IDENTITY.decode()} (not mounted?)")
        if identity.get("uuid") != self.expected:
            held = f"{identity.get('region', '?')}/{identity.get('class', '?')}, {identity.get('uuid', '?')}"
            raise TierAway(f"{self} is offline: {path} holds another tier ({held})")
        if why := documents.disowned(self.fs, self.fs.stat_fd(fd)):
            raise Disowned(f"{self}: {path} {why}; its content is not trusted")

    def __str__(self) -> str:
        return f"tier {self.address}"


class LinkTarget(Struct, frozen=True):
    """The target of a symlink into a tier: the token of a content, and its file name there."""

    token: str
    name: bytes


def content_name(key: bytes, place: Place) -> bytes:
    """The file name of a version's content in its tier."""
    return keys.tier_name(place.token, key) + SUFFIXES[place.form]


def decoded(fs: Fs, fd: int, place: Place | None) -> Iterator[bytes]:
    """The content in an open file, in pieces. Raises StoreDamaged where it cannot be decompressed."""
    return compression.decompressed(fd) if place is not None and place.form is Form.ZSTD else fs.chunks(fd)


def link_target(bucket: str, target: bytes) -> LinkTarget | None:
    """The target of a symlink if it is one into a tier, wherever that was mounted when it was made; else None.

    Nothing but the text is looked at: whether a version has that token is another question.
    """
    match = _LINK.search(target) if target.startswith(b"/") else None
    if match is None or match["bucket"] != os.fsencode(bucket) or match.end() != len(target):
        return None
    return LinkTarget(match["token"].decode(), match["name"])


def tier_address(region: str, storage_class: str) -> str:
    return f"{region}/{storage_class}"


class OpenTier:
    """The part of a tier that belongs to one bucket, open for a batch."""

    def __init__(self, tier: Tier, fd: int) -> None:
        self.tier, self.fs, self.fd = tier, tier.fs, fd
        self._tmp = -1

    @property
    def tmp(self) -> int:
        """The staging folder, made if missing."""
        if self._tmp < 0:
            try:
                self._tmp = self.fs.open_dir(self.fd, TMP)
            except FileNotFoundError:
                self.fs.make_dir(self.fd, TMP)
                self._tmp = self.fs.open_dir(self.fd, TMP)
        return self._tmp

    def open_content(self, key: bytes, place: Place, now_ns: int) -> int:
        """The content of a version, opened to read, archived content as a restored copy.

        Raises FileNotFoundError where it is lost, Refused(InvalidObjectState) where it has to be restored first.
        """
        if place.is_archived and place.until_ns <= now_ns:
            raise Refused(INVALID_STATE, f"{keys.shown(key)} is archived in {self.tier}; {_RESTORE}")
        return self.fs.open_read(self.fd, keys.tier_name(place.token, key))

    def open_shown(self, key: bytes, place: Place) -> int:
        """The file to which the symlink of a version's content leads, with any content. Raises FileNotFoundError;
        ELOOP where it leads nowhere: archived content that is not restored."""
        return self.fs.open_read(self.fd, keys.tier_name(place.token, key))

    def open_stored(self, key: bytes, place: Place) -> int:
        """The file of a version's content, opened as it lies there; see decoded. Raises FileNotFoundError."""
        return self.fs.open_read(self.fd, content_name(key, place))

    def read(self, entry: bytes) -> tuple[str, Version] | None:
        """The uuid of a content's bucket, and the version as the copy of its record on the content says.

        None where the content is gone, or has lost that copy. Raises OSError, StoreDamaged.
        """
        try:
            fd = self.fs.open_read(self.fd, entry)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise
        try:
            found = self.fs.attributes(fd)
        finally:
            self.fs.close(fd)
        fields = record_form.read(found)
        needed = {attributes.KEY, attributes.VERSION_ID, attributes.BLAKE3, attributes.LAST_MODIFIED, attributes.PLACE}
        if not needed <= fields.keys():
            return None
        key, version_id = fields[attributes.KEY], fields[attributes.VERSION_ID].decode("ascii", "replace")
        stored = keys.StoredName(keys.split(key)[1], version_id, False, False)
        version = attributes.decode(key, stored, fields, _NO_INODE, 0)
        token = entry.partition(b";")[0].decode("ascii", "replace")
        place = replace(version.place, tier=self.tier.storage_class, token=token) if version.place else None
        if place is None or content_name(key, place) != entry:
            return None
        version = replace(version, place=place)
        return found.get(BUCKET, b"").decode("ascii", "replace"), version

    def block(self, key: bytes, place: Place, *, replaces: bool = False) -> None:
        """Let the symlink of archived content lead nowhere, for those who write as well: what a program creates through
        it would lie here, and be no version. A second symlink, into a folder that there is none of, is ENOENT to
        everybody, and a restored copy is renamed over it. replaces: a restored copy whose days are over, too."""
        name = keys.tier_name(place.token, key)
        nowhere = _NOWHERE + b"/" + place.token.encode()
        try:
            self.fs.symlink(nowhere, self.fd, name)
        except FileExistsError:
            if replaces:
                staged = new_token().encode()
                self.fs.symlink(nowhere, self.tmp, staged)
                self.fs.rename(self.tmp, staged, self.fd, name)

    def remove(self, key: bytes, place: Place) -> None:
        """Remove the content of a version, and a restored copy of it."""
        for name in {keys.tier_name(place.token, key), content_name(key, place)}:
            with contextlib.suppress(FileNotFoundError):
                self.fs.unlink(self.fd, name)

    def entries(self) -> Iterator[bytes]:
        """The names of all contents."""
        for name, kind in self.fs.entries(self.fd):
            if name != TMP and kind is FileType.REGULAR:
                yield name

    def sweep(self) -> None:
        """Remove an earlier process's staged files; copies that a command restores just now only after a day, and
        unfinished copies of large contents after a week."""
        for name in self.fs.names(self.tmp):
            with contextlib.suppress(OSError):
                age_s = time.time() - self.fs.stat(self.tmp, name).st_ctime
                is_kept = (name.endswith(RESTORED) and age_s <= _RESTORED_MAX_S) or (
                    _MOVE.fullmatch(name) is not None and age_s <= _MOVE_MAX_S
                )
                if not is_kept:
                    self.fs.unlink(self.tmp, name)

    def close(self) -> None:
        if self._tmp >= 0:
            self.fs.close(self._tmp)
            self._tmp = -1
        self.fs.close(self.fd)
