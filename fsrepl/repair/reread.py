"""Records that are read again after a power cut, some at a time, beside other work.

The journal may have outlived attributes that were not synced: a delivery that it has as COMPLETED may be PENDING in the
record, and a record may be gone. Until all records are read again the bucket counts as one that is being scanned. Where
the daemon ends before that, the next start begins anew.
"""

from __future__ import annotations

import itertools

from fsrepl.model import keys
from fsrepl.repair import rebuild, reconcile
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import GONE
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Stored

_AT_ONCE = 50


def step(bucket: OpenBucket, journal: Journal, after: Stored | None, rebuilder: rebuild.Rebuilder) -> Stored | None:
    """Read the records of some versions again, those after one in the journal's order; the last of them. None: all are
    read. Raises OSError."""
    some = journal.versions.versions_after(bucket.address, after, _AT_ONCE)
    for directory, found in itertools.groupby(some, lambda each: each.directory):
        names = [keys.stored_name(each.name, each.id, marker=each.marker) for each in found]
        try:
            fd = bucket.stored_directory(directory)
        except OSError as error:
            if error.errno not in GONE:
                raise
            continue  # the names in the store are compared besides
        reconcile.read_again(bucket, journal, keys.stored_directory(directory), fd, names, rebuilder)
    if len(some) < _AT_ONCE:
        return None
    return some[-1]
