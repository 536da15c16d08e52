"""The records of one version in two buckets, of which one was made from the other, and their differences."""

from __future__ import annotations

import contextlib

from fsrepl.errors import FsreplError, StoreDamaged
from fsrepl.model import keys
from fsrepl.model.rule import Role
from fsrepl.model.version import NULL, Origin, Status, Version
from fsrepl.repair import compare
from fsrepl.repair.compare import Difference, Problem
from fsrepl.repair.sides import Side
from fsrepl.s3 import edit_rules
from fsrepl.storage import versions
from fsrepl.storage.site import Site


class Records:
    """A comparer of records. A role is read once."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._roles: dict[str, Role | None] = {}

    def compare_afresh(self, source: Side, there: Side, version: Version) -> Difference | None:
        """The result of compare, with both records read now."""
        found = []
        for side in (source, there):
            # the open directory may have been removed and made again meanwhile
            side.bucket.store.forget(keys.stored_directory(keys.split(version.key)[0]))
            try:
                found.append(versions.read_whole(side.bucket, version.key, version.id, marker=version.marker))
            except (OSError, StoreDamaged):
                return None
        return self.compare(source, there, *found)

    def compare(self, source: Side, there: Side, original: Version | None, other: Version | None) -> Difference | None:
        """The difference of two records of one version, of which one was made from the other, or sent on to it."""
        if other and other.source == source.address:
            return self._judge(source, there, original, other)
        if original and original.source == there.address:
            return self._judge(there, source, other, original)
        if original and there.address in original.deliveries:
            return self._judge(source, there, original, other)
        if other and source.address in other.deliveries:
            return self._judge(there, source, other, original)
        return None

    def _judge(self, sender: Side, receiver: Side, sent: Version | None, got: Version | None) -> Difference | None:
        """The difference between a version as sent and as received."""
        recorded = sent.deliveries.get(receiver.address) if sent else None
        completed = recorded is not None and recorded.status is Status.COMPLETED
        if got is None:
            if sent is None or recorded is None or receiver.is_removed(sent.key, sent.id):
                return None
            if recorded.reason == edit_rules.LOST_THERE:
                why = f"{receiver.address} has lost it, so that its later edit failed; --repair sends it again, whole"
                return sender.wrong(sent, Problem.MISSING, why)
            if not completed:
                return None
            return receiver.wrong(sent, Problem.MISSING, f"{sender.address} delivered it, and it is not there")
        if sent is None:
            # a null version may have been replaced; an older one belongs to an earlier bucket of this name
            if got.id == NULL or got.created_ns < sender.since_ns or sender.is_removed(got.key, got.id):
                return None
            return sender.wrong(got, Problem.MISSING, f"{receiver.address} has it from here, and it is gone")
        if got.id == NULL and (got.source != sender.address or got.created_ns != sent.created_ns):
            return None  # two null versions of one key
        if recorded is None:
            why = f"its record does not say that it was delivered to {receiver.address}"
            return sender.wrong(sent, Problem.LOST, why)
        if not completed:
            return None
        if got.digest != sent.digest:
            return receiver.wrong(got, Problem.DIGEST, f"its recorded BLAKE3 is not that of {sender.address}")
        if got.source != sender.address or compare.is_alike(sent, got):
            return None  # a backfill sent it on, and it was there already: metadata travels from the original alone
        role = self.role_of(sender)
        expected = compare.as_sent(sent, got, recorded, role, sender.address, receiver.address)
        if why := compare.metadata_difference(got, expected):
            return receiver.wrong(got, Problem.METADATA, why)
        unsent = edit_rules.unsent_edit(
            got, sent, home=receiver.address, replication=receiver.bucket.bucket.replication,
            there=sender.bucket.bucket.replication,
        )  # fmt: skip
        if unsent is None:
            return None
        why = f"it was edited here while no rule sent that back to {sender.address}; --repair sends it"
        return receiver.wrong(got, Problem.METADATA, why)

    def role_of(self, side: Side) -> Role | None:
        replication = side.bucket.bucket.replication
        if replication is None:
            return None
        if replication.role not in self._roles:
            self._roles[replication.role] = None
            with contextlib.suppress(OSError, ValueError, FsreplError):
                self._roles[replication.role] = self._site.role(replication.role)
        return self._roles[replication.role]


def deleted_there_alone(source: Side, there: Side, key: bytes) -> Difference | None:
    """A marker made at a destination, on top of the version that the source delivered or received."""
    sent, got = source.newest(key), there.newest(key)
    if sent is None or sent.marker or got is None or not got.marker or got.origin is not Origin.USER:
        return None
    recorded, back = sent.deliveries.get(there.address), got.deliveries.get(source.address)
    delivered = sent.source == there.address or (recorded is not None and recorded.status is Status.COMPLETED)
    if not delivered or (back is not None and back.status is not Status.FAILED):
        return None
    what = f"{there.address}/{keys.shown(key)} --version-id {got.id}"
    why = f"only the replica has this delete marker; `fsrepl rm {what}` removes it"
    return there.wrong(got, Problem.DELETED, why)
