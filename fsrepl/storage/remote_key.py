"""One key in a bucket of an S3 service: by the journal, and where that is in doubt by the bucket's own list.

A version is found by the identity in its metadata, whatever id the service gave it. A marker has no metadata: one that
belongs to no known version is taken for ours where it lies between the versions that ours lies between.

S3 shows what was put last. A version that comes late is therefore followed by a copy of the newest one over it. The
former object of that version is then removed, so that no version is there twice.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable

from msgspec.structs import replace

from fsrepl.errors import Failed
from fsrepl.model import keys
from fsrepl.model.version import Version
from fsrepl.remote.bucket import Head, Listed, RemoteBucket
from fsrepl.remote.failures import Absent
from fsrepl.remote.form import SIDECAR, Form, Identity, name_of
from fsrepl.storage.journal.remote import COPYING, RemoteVersion

log = logging.getLogger("fsrepl")

Order = tuple[int, str]


class RemoteKey:
    """See the module. Used by one thread; `rows`, `gone` and `is_listed` are for the journal afterwards."""

    def __init__(self, bucket: RemoteBucket, key: bytes, rows: Iterable[RemoteVersion]) -> None:
        self.bucket, self.key, self.name = bucket, key, name_of(key, bucket.prefix)
        self.rows: dict[Order, RemoteVersion] = {row.order: row for row in rows}
        self.gone: list[RemoteVersion] = []
        self.is_listed = False
        self._listed: dict[str, Listed] = {}
        """By the service's id, of each kind the newest first."""

    def get(self, version: Version) -> RemoteVersion | None:
        """The row of a version that is there; None for an intent too."""
        row = self.rows.get(version.order)
        return row if row is not None and row.remote else None

    def note(self, version: Version, remote: str) -> None:
        """Record that a version is there under an id of the service."""
        self.rows[version.order] = RemoteVersion(
            version.created_ns, version.id, version.key, version.marker, version.size, remote
        )

    def forget(self, version: Version) -> None:
        """Record that a version is not there."""
        if (row := self.rows.pop(version.order, None)) is not None:
            self.gone.append(row)

    # -- looking

    def look(self, *, repairs: bool = True) -> None:
        """Make the rows agree with the bucket's list. repairs: of two objects of one version one is removed."""
        self._listed = {each.id: each for each in self.bucket.versions_of(self.name)}
        for row in list(self.rows.values()):
            if row.remote and row.remote not in self._listed:
                self.rows.pop(row.order)
                self.gone.append(row)
        claimed = {row.remote for row in self.rows.values()}
        for each in self._listed.values():
            if each.marker or each.id in claimed:
                continue
            head = self.bucket.head(self.name, each.id)
            identity = head.identity if head is not None else None
            if identity is not None:
                self._adopt(identity, each, repairs=repairs)
        for row in [row for row in self.rows.values() if row.remote and row.upload and repairs]:
            self.rows[row.order] = replace(row, upload="")  # it is there once now
        self.is_listed = True

    def _adopt(self, identity: Identity, found: Listed, *, repairs: bool) -> None:
        """Record a version that the journal did not know, by its metadata. Of two objects of one version, the one put
        last stays."""
        order = (identity.created_ns, identity.id)
        known, ids = self.rows.get(order), list(self._listed)
        row = RemoteVersion(*order, self.key, False, found.size, found.id)
        if known is None or not known.remote:
            self.rows[order] = row
            return
        former = found.id
        if ids.index(found.id) < ids.index(known.remote):
            self.rows[order], former = row, known.remote
        if repairs:
            self._remove(former)

    def adopt_marker(self, version: Version) -> bool:
        """Take a marker in the list that is no other version's for this one; whether there was one."""
        claimed = {row.remote for row in self.rows.values()}
        known = [(row.order, self._listed[row.remote].modified_s) for row in self.rows.values() if row.remote]
        after_s = max((at_s for order, at_s in known if order < version.order), default=0.0)
        before_s = min((at_s for order, at_s in known if order > version.order), default=float("inf"))
        loose = [each for each in self._listed.values() if each.marker and each.id not in claimed]
        loose = [each for each in loose if after_s <= each.modified_s <= before_s]
        if not loose:
            return False
        self.note(version, min(loose, key=lambda each: each.modified_s).id)
        return True

    @property
    def latest(self) -> str:
        """The id of the object that the list shows as the latest; empty without one."""
        return next((each.id for each in self._listed.values() if each.latest), "")

    # -- changing

    def bring_newest_on_top(self, latest: str) -> None:
        """Copy the newest version over an older one of ours that the bucket shows. latest: the id of what it shows.

        What somebody else put there stays.
        """
        there = [row for row in self.rows.values() if row.remote]
        if not there:
            return
        newest = max(there, key=lambda row: row.order)
        if newest.remote == latest or latest not in {row.remote for row in there}:
            return
        if newest.marker:
            remote = self.bucket.put_marker(self.name)
        else:
            head = self.bucket.head(self.name, newest.remote)
            if head is None:
                self.rows.pop(newest.order)
                self.gone.append(newest)
                self.bring_newest_on_top(latest)
                return
            tags = self.bucket.tags(self.name, newest.remote)
            remote = self.bucket.copy(
                self.name, newest.remote, head.metadata, size=head.size, tags=tags, storage_class=head.storage_class
            )
        self._replace(newest, remote)

    def update(self, version: Version, head: Head, form: Form, tags: dict[str, str]) -> str:
        """Give a version other metadata, which S3 can only do by a copy; the id of the copy."""
        row = self.rows[version.order]
        remote = self.bucket.copy(
            self.name, row.remote, form.metadata, size=head.size, tags=tags, storage_class=head.storage_class
        )
        self._replace(row, remote)
        sidecar = head.metadata.get(SIDECAR, "")
        if sidecar and sidecar != form.sidecar_name:
            self._remove_sidecar(sidecar)
        return remote

    def _replace(self, row: RemoteVersion, remote: str) -> None:
        """Record the new object of a version, and remove the former one; in doubt until that is done."""
        self.rows[row.order] = replace(row, remote=remote, upload=COPYING)
        if remote != row.remote and not any(each.remote == row.remote for each in self.rows.values()):
            self._remove(row.remote)
        self.rows[row.order] = replace(row, remote=remote, upload="")

    def _remove(self, remote: str) -> None:
        """Remove an object whose version is there once more. Where that is refused both stay: they are the same."""
        try:
            self.bucket.remove(self.name, remote)
        except Absent:
            pass
        except Failed as error:
            log.warning('kept twice bucket=%s key="%s": %s', self.bucket.address, keys.shown(self.key), error)

    def _remove_sidecar(self, sidecar: str) -> None:
        name = self.bucket.prefix + sidecar
        with contextlib.suppress(Absent, Failed):  # what remains is not looked at
            for each in self.bucket.versions_of(name):
                self.bucket.remove(name, each.id)
