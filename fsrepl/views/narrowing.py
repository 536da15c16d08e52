"""Directories of a tree bucket that admit more people than their sources' do now, narrowed before content is shown.

A directory has the rights of its version. After its source's directory was narrowed, a file in it may arrive earlier
than the directory's new version. So the file's directories are compared with their sources as they are now. Rights are
only taken away here; the new version brings the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fsrepl.model.version import Rights, Version
from fsrepl.model.view import View
from fsrepl.region.runtime import Runtime
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import LASTING
from fsrepl.views import directories, folders

Order = tuple[int, str]
OrderAt = Callable[[bytes], Order | None]
"""Tells the order of the version that is current at a source for the key of a directory; None where none is."""


def order_in(engine: Runtime, address: str) -> OrderAt:
    """The order of a key's current version in a bucket here."""

    def order(key: bytes) -> Order | None:
        found = engine.journal.versions.object(address, key)
        return None if found is None or found.marker else found.order

    return order


class Narrower:
    """Narrows directories of one bucket during one batch. orders: by source, where that is no bucket here."""

    def __init__(self, engine: Runtime, bucket: OpenBucket, orders: Mapping[str, OrderAt] | None = None) -> None:
        self._engine, self._journal, self._bucket = engine, engine.journal, bucket
        self._orders = orders or {}
        self._shown: dict[bytes, Version] = {}

    def show(self, version: Version) -> None:
        """Note a directory's version that is shown in this batch, and is not in the journal yet."""
        self._shown[version.key] = version

    def __call__(self, path: bytes, live: Mapping[str, Rights]) -> None:
        """Narrow a directory. live: by source, the rights to the directory there now. Raises OSError, StoreDamaged."""
        bucket, key = self._bucket, path + b"/"
        try:
            has = directories.rights_of(bucket, bucket.views.get(path))
        except OSError as error:
            if error.errno not in LASTING:
                raise
            return  # missing, or an obstacle
        for address, rights in live.items():
            version = self._version(key, address) if rights != has else None
            if version is not None and folders.narrow(bucket, path, version, rights):
                self._see(key, version)

    def _version(self, key: bytes, source: str) -> Version | None:
        """The version that a directory shows; None where it is newer than the one at a source."""
        if (version := self._shown.get(key)) is not None:
            return version
        known = self._journal.versions.object(self._bucket.address, key)
        if known is None or known.marker or known.view is None or not known.view.shown:
            return None
        order = self._orders.get(source, order_in(self._engine, source))(key)
        if order is None or order < known.order:
            return None
        return versions.read(self._bucket, key, known.view.shown, marker=False)

    def _see(self, key: bytes, version: Version) -> None:
        view: View = self._bucket.view(self._bucket.view_status(key), version.id)
        self._journal.views.see(self._bucket.address, key, view)
