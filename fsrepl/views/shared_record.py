"""The record of a stored version on a file that people can write to as well, since it is a view, or was one.

Whoever reads the attributes of such a file, and writes them back later, puts back the record that was among them, as
`cp -a` and `rsync -X` do. It is of the right version and whole, and only old. So it is held against what this process
wrote last, and against the index, whenever somebody has changed the file, and once more when its view has left it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from fsrepl.errors import StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.region.bucket_state import BucketState, Damaged
from fsrepl.region.recent import Recent
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Delivery

log = logging.getLogger("fsrepl")


def recorded(journal: Journal, recent: Recent, address: str, version: Version) -> Version:
    """A version as it was recorded last. version: as its record says now."""
    known = version
    if (written := recent.version(address, version.key, version.id)) is not None:
        known = latest(version, written)
    if journal.versions.has_version(address, version):
        rows = journal.deliveries.select(address, key=version.key)
        known = with_indexed(known, {delivery.destination: delivery for delivery in rows if delivery.id == version.id})
    return known


def mended(journal: Journal, recent: Recent, bucket: OpenBucket, version: Version) -> Version:
    """The same, and its record says that from then on. Raises OSError, StoreDamaged."""
    known = recorded(journal, recent, bucket.address, version)
    if known != version:
        records.amend(bucket, known)
        recent.put(bucket.address, known)
    return known


def latest(said: Version, written: Version) -> Version:
    """What a record says, or what was written into it, if edits of metadata are in that which it knows nothing of."""
    stamps = {group: int(stamp.partition(" ")[0]) for group, stamp in said.edited.items()}
    if all(int(stamp.partition(" ")[0]) <= stamps.get(group, 0) for group, stamp in written.edited.items()):
        return said
    return replace(written, shortfall=said.shortfall)


def with_indexed(version: Version, delivery: Mapping[str, Delivery]) -> Version:
    """A version with the deliveries that the index has of it, by destination."""
    deliveries = {name: _indexed(version.deliveries.get(name), each, version) for name, each in delivery.items()}
    return version if deliveries == dict(version.deliveries) else replace(version, deliveries=deliveries)


def _indexed(said: DeliveryRecord | None, delivery: Delivery, version: Version) -> DeliveryRecord:
    """A delivery as the index has it; with what the index does not know as the record says, if that is of the same."""
    status = Status(delivery.status)
    since_ns = delivery.since_ns if delivery.since_ns != version.created_ns else 0  # see delivery_rows
    if said is None or (said.rule, said.job) != (delivery.rule, delivery.job):
        said = DeliveryRecord(delivery.rule, status, job=delivery.job, tracking=delivery.tracking)
    if (said.status, said.reason, said.since_ns) == (status, delivery.reason, since_ns):
        return said
    pending = status is Status.PENDING
    return replace(
        said, status=status, reason=delivery.reason, since_ns=since_ns, edit=said.edit and pending,
        before=said.before if pending else None,
    )  # fmt: skip


def mend_left(
    journal: Journal, recent: Recent, state: BucketState, bucket: OpenBucket, key: bytes, version_id: str
) -> None:
    """The same for a version whose view is gone. One that lost its record is repaired: nothing else leads to it now."""
    try:
        version = versions.read(bucket, key, version_id, marker=False)
        if version is not None:
            mended(journal, recent, bucket, versions.ensure_whole(version))
    except StoreDamaged:
        state.damaged.append(Damaged(bucket.address, key, version_id))
    except OSError as error:
        log.warning('not mended bucket=%s key="%s": %s', bucket.address, keys.shown(key), reason(error))
