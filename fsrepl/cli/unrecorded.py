"""Changed files that a read-only command meets: the key is given to the daemon for capture.

The command says on stderr that what it prints is from before the change.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fsrepl.cli.common import ask_daemon, warn
from fsrepl.daemon import requests
from fsrepl.errors import FsreplError, NotRunning
from fsrepl.model import keys
from fsrepl.model.address import Address
from fsrepl.model.version import Versioning

if TYPE_CHECKING:
    from fsrepl.storage.bucket import OpenBucket
    from fsrepl.storage.journal.database import Journal
    from fsrepl.storage.site import Site


_ANSWER_S = 1.0


@contextlib.contextmanager
def open_journal(site: Site) -> Iterator[Journal | None]:
    """The journal, where it can be read: it has the recorded attributes of views."""
    from fsrepl.storage.journal.database import Journal

    path = os.path.join(site.state, "journal.db")
    found: Journal | None = None
    if os.path.exists(path):
        with contextlib.suppress(sqlite3.Error):
            found = Journal(path, read_only=True)
    try:
        yield found
    finally:
        if found is not None:
            found.close()


def hand_to_capture(site: Site, bucket: OpenBucket, key: bytes) -> None:
    """Request the capture of a key whose file differs from its record, and say so. Does not wait for the capture."""
    from fsrepl.views import unrecorded

    if bucket.bucket.versioning is Versioning.OFF or not keys.is_key(key):
        return
    with open_journal(site) as journal, contextlib.suppress(sqlite3.Error):
        known = journal.versions.object(bucket.address, key) if journal is not None else None
        look = unrecorded.look(bucket, key, known.view if known is not None else None)
        if look is unrecorded.Look.RECORDED:
            return
        what_next = "it is being captured"
        try:
            ask_daemon(requests.Look(Address.parse_bucket(bucket.address), (key,)), answer_within_s=_ANSWER_S)
        except NotRunning:
            what_next = "it is captured once the daemon runs"
        except FsreplError:
            what_next = "the daemon did not answer, and captures the change at its next scan"
        if look is unrecorded.Look.CHANGED:
            where = f"{bucket.address}/{keys.shown(key)}"
            warn(f"{where}: the file has changed since it was last captured, and {what_next}")
