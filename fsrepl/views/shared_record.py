"""The record of a stored version on a file that people can write to, since it is or was a view.

A program that copies a file's attributes back later, as `cp -a` and `rsync -X` do, also restores the record among
them, which names the right version and is whole, but old. So the record is compared with this process's last write,
and with the journal, whenever the file was changed by others, and once more when its view has left it. After a power
cut the journal may be the older one, until all records have been read again: see repair/reread.py.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.recent import Recent
from fsrepl.region.runtime import Runtime
from fsrepl.storage import records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views import overwritten

log = logging.getLogger("fsrepl")


def recorded(journal: Journal, recent: Recent, address: str, version: Version) -> Version:
    """A version as recorded last. version: as its record says now."""
    return next(_recorded(journal, recent, address, [version]))


def _recorded(journal: Journal, recent: Recent, address: str, found: Sequence[Version]) -> Iterator[Version]:
    indexed = set() if journal.is_to_reread(address) else journal.versions.present(address, found)
    deliveries = journal.deliveries.of_keys(address, [version.key for version in found])
    for version in found:
        known = version
        if (written := recent.version(address, version.key, version.id)) is not None:
            known = latest(version, written)
        if (version.key, *version.order) in indexed:
            rows = deliveries.get(version.key, ())
            known = with_indexed(known, {each.destination: each for each in rows if each.id == version.id})
        yield known


def repaired(journal: Journal, recent: Recent, bucket: OpenBucket, version: Version) -> Version:
    """A version as recorded last, which its record then says too. Raises OSError, StoreDamaged."""
    known = recorded(journal, recent, bucket.address, version)
    _repair(recent, bucket, version, known)
    return known


def _repair(recent: Recent, bucket: OpenBucket, version: Version, known: Version) -> None:
    if known != version:
        records.amend(bucket, known)
        recent.put(bucket.address, known)


def latest(on_record: Version, written: Version) -> Version:
    """A version's record, or the last write of it if that contains edits of metadata unknown to the record."""
    stamps = {group: int(stamp.partition(" ")[0]) for group, stamp in on_record.edited.items()}
    if all(int(stamp.partition(" ")[0]) <= stamps.get(group, 0) for group, stamp in written.edited.items()):
        return on_record
    return replace(written, shortfall=on_record.shortfall)


def with_indexed(version: Version, delivery: Mapping[str, Delivery]) -> Version:
    """A version with its deliveries in the journal, by destination."""
    deliveries = {name: _indexed(version.deliveries.get(name), each, version) for name, each in delivery.items()}
    return version if deliveries == dict(version.deliveries) else replace(version, deliveries=deliveries)


def _indexed(old: DeliveryRecord | None, delivery: Delivery, version: Version) -> DeliveryRecord:
    """A delivery from the journal; the record adds what the journal lacks, if it is about the same delivery."""
    status = Status(delivery.status)
    since_ns = delivery.since_ns if delivery.since_ns != version.created_ns else 0  # see delivery_rows
    if old is None or (old.rule, old.job) != (delivery.rule, delivery.job):
        old = DeliveryRecord(delivery.rule, status, job=delivery.job, tracking=delivery.tracking)
    if (old.status, old.reason, old.since_ns) == (status, delivery.reason, since_ns):
        return old
    pending = status is Status.PENDING
    return replace(
        old, status=status, reason=delivery.reason, since_ns=since_ns, edit=old.edit and pending,
        before=old.before if pending else None,
    )  # fmt: skip


def repair_left(
    engine: Runtime, state: BucketState, bucket: OpenBucket, key: bytes, version_id: str,
    record: Version | None = None,
) -> None:  # fmt: skip
    """Repair the record of a version whose view is gone. A lost record is noted now: nothing leads to it later.

    record: what its record says, where that is known.
    """
    repair_all_left(engine, state, bucket, [(key, version_id, record)])


def repair_all_left(
    engine: Runtime, state: BucketState, bucket: OpenBucket, left: Iterable[tuple[bytes, str, Version | None]]
) -> None:
    """Repair the records of many versions: key, version id and record of each."""
    found: list[Version] = []
    lost: list[overwritten.At] = []
    for key, version_id, record in left:
        with _reported(lost, bucket, (key, version_id)):
            version = record or versions.read(bucket, key, version_id, marker=False)
            if version is not None:
                found.append(versions.ensure_whole(version))
    for version, known in zip(found, _recorded(engine.journal, engine.recent, bucket.address, found), strict=True):
        if known is not version:
            with _reported(lost, bucket, (version.key, version.id)):
                _repair(engine.recent, bucket, version, known)
    overwritten.note(engine.syncer, state, bucket, lost)


@contextlib.contextmanager
def _reported(lost: list[overwritten.At], bucket: OpenBucket, at: overwritten.At) -> Iterator[None]:
    """A context in which a fault concerns one version alone. lost: gets it where its record is lost."""
    try:
        yield
    except StoreDamaged:
        lost.append(at)
    except OSError as error:
        log.warning('not repaired bucket=%s key="%s": %s', bucket.address, keys.shown(at[0]), reason(error))
