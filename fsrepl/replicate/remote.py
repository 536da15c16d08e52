"""Deliveries to a bucket of an S3 service, in a thread of their own: decided, sent, and looked up where in doubt.

The service itself makes an object complete or not at all, and shows it at once: nothing is staged, published or synced
here. Object and record do not appear in one step. So an intent in the journal precedes each request that makes a
version. Where an intent is left over, or the journal may lack one, the key's list says whether the version is there
(storage/remote_key.py).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.errors import UNEXPECTED, Failed, FsreplError, StoreDamaged, Unavailable, reason
from fsrepl.model import digests, keys, metadata
from fsrepl.model.version import DeliveryRecord, Status, Version
from fsrepl.region.limits import Progress
from fsrepl.region.runtime import Runtime
from fsrepl.remote.bucket import Head, RemoteBucket
from fsrepl.remote.failures import UNVERSIONED, Absent, NoSuchBucket, ServiceAway, ServiceBusy, ServiceRefused
from fsrepl.remote.form import Form, form_of
from fsrepl.replicate import decide, upload
from fsrepl.replicate.sending import Sending
from fsrepl.replicate.settle import is_pending
from fsrepl.s3 import rules
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.remote import COPYING, RemoteVersion
from fsrepl.storage.journal.rows import Delivery, Outcome
from fsrepl.storage.remote_key import RemoteKey

log = logging.getLogger("fsrepl")


class Task(Struct, frozen=True):
    """One delivery to carry. rows: what the journal has of its key. in_doubt: the key is listed first.

    is_believed: the service refuses what does not match its checksum, so that nothing is read back.
    """

    delivery: Delivery
    rows: Sequence[RemoteVersion]
    in_doubt: bool
    is_believed: bool


class Done(Struct):
    """The result of a task: an outcome, or why it is tried again. is_whole: that reason holds for the whole service.

    is_busy: the service wants fewer requests at once.
    """

    task: Task
    outcome: Outcome | None = None
    later: str = ""
    is_whole: bool = False
    is_busy: bool = False
    rows: list[RemoteVersion] = field(default_factory=list)
    gone: list[RemoteVersion] = field(default_factory=list)
    is_listed: bool = False
    keeps_intent: bool = True
    """The version may be there although nothing says so."""
    is_damaged: bool = False
    """The source's record of the version cannot be read."""
    is_without_id: bool = False
    """The object got no version id."""
    is_bucket_changed: bool = False
    """The bucket is gone, or keeps no versions any more: the next put may replace an object of its user."""


def carry(engine: Runtime, bucket: RemoteBucket, tasks: Sequence[Task], progress: Progress | None = None) -> list[Done]:
    """Carry some deliveries of one source as far as possible now, one after the other.

    The source is opened once for all of them. What concerns the whole service or bucket ends them: those after it wait
    as well. Raises sqlite3.Error.
    """
    done: list[Done] = []
    with _Source(engine, tasks[0].delivery.source) as source:
        for task in tasks:
            last = done[-1] if done else None
            if last is not None and last.is_whole:
                done.append(
                    Done(task, None, last.later, True, last.is_busy, list(task.rows), keeps_intent=task.in_doubt)
                )
            elif last is not None and last.is_bucket_changed:
                done.append(left_alone(task))
            else:
                done.append(_carry(engine, bucket, task, source, progress))
    return done


def left_alone(task: Task) -> Done:
    """The result of a task that was not begun, since another one found that the bucket has changed."""
    return Done(task, rows=list(task.rows), keeps_intent=task.in_doubt, is_bucket_changed=True)


class _Source:
    """The source of some deliveries, opened when the first of them needs it. Used by one thread."""

    def __init__(self, engine: Runtime, address: str) -> None:
        self._engine, self._address = engine, address
        self._held = contextlib.ExitStack()
        self._opened: tuple[OpenBucket, Sending] | None = None

    def open(self) -> tuple[OpenBucket, Sending] | None:
        """The source; None where it left the site. Raises FsreplError where it is away."""
        bucket = self._engine.site.buckets.get(self._address)
        if bucket is None:
            return None
        if self._opened is None:
            opened = self._held.enter_context(bucket.open())
            self._opened = opened, Sending(self._engine, opened)
        return self._opened

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()


def _carry(engine: Runtime, bucket: RemoteBucket, task: Task, source: _Source, progress: Progress | None) -> Done:
    """Carry one delivery. Raises sqlite3.Error."""
    delivery, done = task.delivery, Done(task)
    key = RemoteKey(bucket, delivery.key, task.rows)
    carrying = _Carrying(engine, bucket, task, key, progress)
    try:
        found = source.open()
        if found is None:  # it left the site, and its deliveries with it
            done.outcome = Outcome(delivery, Status.PENDING, "", None)
        else:
            done.outcome = carrying.carry(*found)
    except ServiceRefused as error:
        log.warning('refused to=%s key="%s": %s', delivery.destination, keys.shown(delivery.key), error)
        done.outcome = Outcome(delivery, Status.FAILED, error.recorded, None)
        done.is_without_id = done.is_bucket_changed = error.reason == UNVERSIONED
    except Failed as error:
        log.warning('cannot send bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
        done.outcome = Outcome(delivery, Status.FAILED, error.reason, None)
    except NoSuchBucket:
        done.outcome = _settled(delivery, decide.Facts(destination_missing=True), None)
        done.is_bucket_changed = True
    except StoreDamaged as error:
        log.error('damaged bucket=%s key="%s": %s', delivery.source, keys.shown(delivery.key), error)
        done.later, done.is_damaged = str(error), True
    except ServiceAway as error:
        done.later, done.is_whole, done.is_busy = str(error), True, isinstance(error, ServiceBusy)
    except (FsreplError, OSError) as error:
        done.later = reason(error)
    except sqlite3.Error:
        raise
    except Exception:
        log.exception('set aside bucket=%s key="%s": an unexpected error', delivery.source, keys.shown(delivery.key))
        done.later = UNEXPECTED
    done.rows, done.gone, done.is_listed = list(key.rows.values()), key.gone, key.is_listed
    done.keeps_intent = carrying.may_be_there
    return done


def _settled(delivery: Delivery, facts: decide.Facts, version: Version | None) -> Outcome:
    action = decide.decide(facts)
    assert isinstance(action, decide.Settle)
    return Outcome(delivery, action.status, action.why if action.status is Status.FAILED else "", version)


class _Carrying:
    """One delivery under way."""

    def __init__(
        self, engine: Runtime, bucket: RemoteBucket, task: Task, key: RemoteKey, progress: Progress | None
    ) -> None:
        self._engine, self._bucket, self._task, self._key, self._progress = engine, bucket, task, key, progress
        self.may_be_there = task.in_doubt
        """A request that makes the version was sent, and its answer is not known."""

    def carry(self, source: OpenBucket, sending: Sending) -> Outcome:
        delivery = self._task.delivery
        version = sending.version(delivery)
        if version is not None and not is_pending(version, delivery):
            return Outcome(delivery, Status.PENDING, "", None)
        match decide.decide(sending.facts(delivery, version, self._there)):
            case decide.Wait(why):
                raise Unavailable(why)
            case decide.Settle(status, why):
                return Outcome(delivery, status, why if status is Status.FAILED else "", version)
            case decide.Send(_, with_tags):
                assert version is not None
                groups = metadata.GROUPS - (set() if with_tags else {metadata.TAGS})
                recorded = version.deliveries[delivery.destination]
                self._send(source, version, _replica(version, recorded, delivery.source, groups), recorded, groups)
                return Outcome(delivery, Status.COMPLETED, "", version)

    def _there(self, version: Version) -> dict[str, Any]:
        """The facts of the destination that decide about a version: an edit needs the version there."""
        if self._task.in_doubt:
            self._key.look()
        edit = version.deliveries[self._task.delivery.destination].edit
        return {"replica_there": not edit or self._find(version) is not None}

    def _find(self, version: Version) -> Head | None:
        """A version that the bucket has, by the journal and by the bucket itself; None where it has none."""
        row = self._key.get(version)
        head = self._bucket.head(self._key.name, row.remote) if row is not None else None
        if row is not None and head is None and not self._key.is_listed:
            self._key.look()  # somebody has removed it, or copied it
            return self._find(version)
        if row is not None and head is None:
            self._key.forget(version)
        return head

    def _send(
        self, source: OpenBucket, version: Version, replica: Version, recorded: DeliveryRecord, groups: frozenset[str]
    ) -> None:
        """Have the bucket hold a version. Where the version put last is not the newest, the newest is put over it
        again."""
        latest = self._key.latest
        if replica.marker:
            latest = self._send_marker(replica) or latest
        else:
            head = self._find(replica)
            if head is not None and not self._is_sound(replica):
                head = None
            if head is None:
                latest = self._put(source, version, replica)
            else:
                latest = self._bring_into_line(replica, head, recorded, groups) or latest
        self.may_be_there = False
        if latest:
            self._key.bring_newest_on_top(latest)

    def _is_sound(self, replica: Version) -> bool:
        """Whether an object that was found after a crash is the version that was sent. It is read back where the
        service is not trusted, and removed where it differs.
        """
        if self._task.is_believed or not self._task.in_doubt:
            return True
        remote = self._key.rows[replica.order].remote
        if self._digest(self._key.name, remote) == replica.digest:
            return True
        self._bucket.remove(self._key.name, remote)
        self._key.forget(replica)
        return False

    def _send_marker(self, replica: Version) -> str:
        """The id of a marker that was put now; empty where it was there."""
        if self._key.get(replica) is not None and not self._key.is_listed:
            self._key.look()  # a backfill asks again, and a marker has no head
        if self._key.get(replica) is not None or (self._key.is_listed and self._key.adopt_marker(replica)):
            return ""
        self.may_be_there = True
        remote = self._bucket.put_marker(self._key.name)
        self._key.note(replica, remote)
        return remote

    def _put(self, source: OpenBucket, version: Version, replica: Version) -> str:
        engine, task, key = self._engine, self._task, self._key
        row = key.rows.get(replica.order)
        sent = upload.Upload(
            source, version, self._bucket, key.name, form_of(replica), dict(replica.tags), replica.storage_class,
            engine.limiter, task.is_believed, self._progress, row.upload if row else "", self._note_upload(replica),
        )  # fmt: skip
        data = engine.recent.data(version.digest) if version.digest and self._progress is None else None
        self.may_be_there = True
        try:
            remote = upload.send(sent, data=data, large_bytes=engine.settings.replication.large_file_bytes)
        except Failed:
            self._abort(replica)
            raise
        if not task.is_believed and self._digest(key.name, remote) != version.digest:
            self._bucket.remove(key.name, remote)
            self.may_be_there = False
            raise Unavailable(f"what arrived in {self._bucket.address} does not match the source; it is sent again")
        key.note(replica, remote)
        return remote

    def _note_upload(self, replica: Version) -> Callable[[str], None]:
        """Records the id of an upload in parts with the version's intent, durably enough for a restart."""

        def note(upload_id: str) -> None:
            row = RemoteVersion(replica.created_ns, replica.id, replica.key, False, replica.size, "", upload_id)
            self._put_row(row)

        return note

    def _put_row(self, row: RemoteVersion) -> None:
        with self._engine.journal.transaction():
            self._engine.journal.remote.put(self._bucket.address, [row])
        self._key.rows[row.order] = row

    def _abort(self, replica: Version) -> None:
        """Abort the upload of a version that failed: S3 charges for its parts."""
        row = self._key.rows.get(replica.order)
        if row is not None and row.upload:
            self._key.rows[row.order] = replace(row, upload="")
            try:
                self._bucket.abort_upload(self._key.name, row.upload)
            except FsreplError as error:
                log.warning("not aborted to=%s: %s", self._bucket.address, error)

    def _digest(self, name: str, remote: str) -> bytes:
        chunks = self._bucket.content(name, remote)
        progress = self._progress.verified_to if self._progress is not None else None
        return digests.of_chunks(digests.counted(chunks, progress))

    def _bring_into_line(self, replica: Version, head: Head, recorded: DeliveryRecord, groups: frozenset[str]) -> str:
        """Give a version that the bucket has the metadata that is sent; the id of its new object, if it has one.

        A replica that a backfill sends on keeps the metadata that it has there.
        """
        form = form_of(replica)
        if recorded.job and head.metadata.get("fsrepl-origin") != form.metadata["fsrepl-origin"]:
            return ""
        row = self._key.rows[replica.order]
        tags = dict(replica.tags)
        there = self._bucket.tags(self._key.name, row.remote)
        if metadata.TAGS not in groups:
            tags = there
        if dict(head.metadata) != dict(form.metadata):
            if form.sidecar:
                upload.put_sidecar(self._bucket, form, is_believed=self._task.is_believed)
            self._put_row(replace(row, upload=COPYING))
            return self._key.update(replica, head, form, tags)
        if form.sidecar and not self._has_sidecar(form):
            upload.put_sidecar(self._bucket, form, is_believed=self._task.is_believed)
        if tags != there:
            self._bucket.set_tags(self._key.name, row.remote, tags)
        return ""

    def _has_sidecar(self, form: Form) -> bool:
        try:
            return b"".join(self._bucket.content(self._bucket.prefix + form.sidecar_name)) == form.sidecar
        except Absent:
            return False


def _replica(version: Version, recorded: DeliveryRecord, source: str, groups: frozenset[str]) -> Version:
    """The version as it is sent: the metadata that may travel, and no owner where the bucket's owner is to have it."""
    replica = rules.replica_of(version, recorded, source)
    for group in metadata.GROUPS - groups:
        replica = metadata.without(replica, group)
    if recorded.owner and replica.posix:
        replica = rules.given_to(replica, -1, -1)
    return replica


def without_intent(done: Done) -> list[RemoteVersion]:
    """The rows of a task's key for the journal: without the intent of a version that is not there."""
    delivery = done.task.delivery
    order = delivery.created_ns, delivery.id
    return [row for row in done.rows if row.remote or row.order != order or done.keeps_intent]


def intent_of(delivery: Delivery) -> RemoteVersion:
    return RemoteVersion(delivery.created_ns, delivery.id, delivery.key, delivery.marker, delivery.size)


def with_intent(rows: Sequence[RemoteVersion], delivery: Delivery) -> tuple[list[RemoteVersion], bool]:
    """The rows of a key with an intent for a delivery, and whether one was left over, or a copy, from before."""
    intent = intent_of(delivery)
    known = next((row for row in rows if row.order == intent.order), None)
    is_left = any(row.remote and row.is_in_doubt for row in rows)
    if known is None:
        return [*rows, intent], is_left
    return list(rows), is_left or known.is_in_doubt
