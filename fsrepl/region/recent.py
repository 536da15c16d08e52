"""Recently used versions and contents, kept in memory so that a delivery reads no file twice."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from msgspec import Struct

from fsrepl.model.version import Version

_RECENT_VERSIONS = 8192
_RECENT_BYTES = 16 << 20
_RECENT_DATA_S = 2.0


class Written(Struct, frozen=True):
    """A record as it was written. data: its content, where that is small. is_plain: the record is in attributes of a
    file that only the daemon can write to."""

    version: Version
    data: bytes | None = None
    is_plain: bool = False


class Contents:
    """Small contents that were read a moment ago, by their digest. Its user sees to threads."""

    def __init__(self, bytes_max: int = _RECENT_BYTES) -> None:
        self._bytes_max = bytes_max
        self._data: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._bytes = 0

    def put(self, digest: bytes, data: bytes, now_s: float) -> None:
        """Keep a content for a moment: the oldest make room for it."""
        self._bytes += len(data) - len(self._data.pop(digest, (0.0, b""))[1])
        self._data[digest] = now_s + _RECENT_DATA_S, data
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._data.popitem(last=False)[1][1])

    def get(self, digest: bytes) -> bytes | None:
        """A content that was put a moment ago. Later its file is read: it may have been damaged since."""
        until_s, data = self._data.get(digest, (0.0, None))
        return data if time.monotonic() < until_s else None

    def clear(self) -> None:
        self._data.clear()
        self._bytes = 0


class Recent:
    """The records written last, and small contents: a captured file is sent without another read."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._versions: OrderedDict[tuple[str, bytes, str], Version] = OrderedDict()
        self._plain: set[tuple[str, bytes, str]] = set()
        self._contents = Contents()
        self.data = self._contents.get
        """Content stored a moment ago, by its digest; see Contents."""

    def put(self, address: str, version: Version) -> None:
        """Remember one record that was written."""
        self.put_all(address, [Written(version)])

    def put_all(self, address: str, written: Iterable[Written]) -> None:
        """Remember records of a bucket that were written."""
        with self._guard:
            now_s = time.monotonic()
            for each in written:
                version, data = each.version, each.data
                at = (address, version.key, version.id)
                self._versions[at] = version
                self._versions.move_to_end(at)
                (self._plain.add if each.is_plain else self._plain.discard)(at)
                if data is not None:
                    self._contents.put(version.digest, data, now_s)
            while len(self._versions) > _RECENT_VERSIONS:
                old, _ = self._versions.popitem(last=False)
                self._plain.discard(old)

    def version(self, address: str, key: bytes, version_id: str) -> Version | None:
        return self._versions.get((address, key, version_id))

    def is_plain(self, address: str, version: Version) -> bool:
        return (address, version.key, version.id) in self._plain

    def forget_data(self) -> None:
        """Drop all content after a destination was blocked: it would be sent too long after it was stored."""
        with self._guard:
            self._contents.clear()

    def forget(self, address: str, key: bytes = b"", version_id: str = "") -> None:
        """Forget one version, or a whole bucket."""
        with self._guard:
            self._forget([(address, key, version_id)] if key else [at for at in self._versions if at[0] == address])

    def forget_all(self, address: str, gone: Iterable[tuple[bytes, str]]) -> None:
        """Forget versions of a bucket, by key and id."""
        with self._guard:
            self._forget((address, key, version_id) for key, version_id in gone)

    def _forget(self, gone: Iterable[tuple[str, bytes, str]]) -> None:
        for at in gone:
            if self._versions.pop(at, None) is not None:
                self._plain.discard(at)
