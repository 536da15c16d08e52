"""Sources of the commands that only read: the daemon's answer, and the journal."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct, convert

from fsrepl.commands import index
from fsrepl.daemon import control, requests, samples
from fsrepl.daemon.lock import is_locked
from fsrepl.daemon.requests import Request
from fsrepl.daemon.samples import Sample
from fsrepl.errors import FsreplError, NotRunning
from fsrepl.model.address import Address
from fsrepl.repair import reconcile
from fsrepl.settings import Settings
from fsrepl.storage.journal import database
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site

Document = dict[str, Any]
_ANSWER_S = 10.0


def daemon_status(settings: Settings) -> Document:
    """The daemon's status; {"running": False} where none runs."""
    return _said(settings, requests.GetStatus())


def daemon_of_key(settings: Settings, address: Address) -> Document:
    """The part of the daemon's status that concerns one key, in the same shape."""
    return _said(settings, requests.ExplainObject(address))


def _said(settings: Settings, request: Request) -> Document:
    try:
        return control.ask(settings.state, request, _ANSWER_S)
    except NotRunning:
        return {"running": False}
    except FsreplError as error:
        return {"running": True, "trouble": str(error)}


class Record(Struct, frozen=True):
    """The daemon's samples of the last hour and the last day, the oldest first."""

    hour: Sequence[Sample] = ()
    day: Sequence[Sample] = ()


def record(settings: Settings, now_s: float) -> Record:
    """The samples of the running daemon; where none runs, or one of another version, those that were saved."""
    try:
        answer = control.ask(settings.state, requests.GetSamples(), _ANSWER_S)
        return Record(convert(answer["Hour"], list[Sample]), convert(answer["Day"], list[Sample]))
    except (FsreplError, ValueError, KeyError):
        kept = samples.load(str(settings.state))
        return Record([each for each in kept if each.time_s > now_s - samples.HOUR_S], kept)


def with_all_names(settings: Settings, said: Document) -> Document:
    """The daemon's status with all names of each list, instead of the first only. Raises FsreplError."""
    buckets = {
        address: alive
        | {
            name: _whole(settings, Address.parse_bucket(address), name)
            for name, number in alive.get("counts", {}).items()
            if number > len(alive[name])
        }
        for address, alive in said.get("buckets", {}).items()
    }
    return said | {"buckets": buckets}


def _whole(settings: Settings, bucket: Address, name: str) -> Document:
    found: Document = {}
    after: str | None = ""
    while after is not None:
        request = requests.GetStatusPage(bucket, name, base64.b64decode(after))
        page = control.ask(settings.state, request, _ANSWER_S)
        found |= page["items"]
        after = page["after"]
    return found


@contextlib.contextmanager
def reader(site: Site) -> Iterator[Journal]:
    """The journal for reading. Buckets that it lacks are read from the trees, into a copy in memory.

    A journal that is missing or cannot be read lacks all buckets; a journal that a command has created has only the
    buckets of that command. Buckets that a running daemon has not read yet are being read by the daemon.
    Raises Unavailable, also in use, where the journal is damaged or its disk fails.
    """
    found = index.on_disk(site)
    unread = [b for b in site.buckets.values() if found is None or not found.tree(b.address)]
    if found is None or (unread and not is_locked(site.state)):
        known, found = found, database.in_memory(((b.address, b.uuid) for b in site.buckets.values()), found)
        if known is not None:
            known.close()
        for bucket in unread:
            with contextlib.suppress(FsreplError, OSError), bucket.open() as opened:
                if opened.versions >= 0:
                    reconcile.reconcile(opened, found, afresh=True)
    try:
        with database.faults_as_unavailable(found.path):
            yield found
    finally:
        found.close()
