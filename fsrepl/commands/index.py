"""The journal as an index, for the commands that list objects: where it is there, and where it can be believed."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator

from fsrepl.daemon.lock import is_locked
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.listed import Listed
from fsrepl.storage.site import Site
from fsrepl.storage.tree_identity import tree_of


@contextlib.contextmanager
def listed(site: Site, bucket: OpenBucket) -> Iterator[Listed | None]:
    """The journal's rows of an open bucket's versions, for a list; None where the journal may be behind the trees.

    It is believed while the site's daemon keeps it, and for the very tree that it was built from: without a daemon, a
    crash may have come between the two.
    """
    found = on_disk(site) if bucket.versions >= 0 and is_locked(site.state) else None
    if found is None:
        yield None
        return
    try:
        yield found.listed(bucket.address) if found.tree(bucket.address) == tree_of(bucket) else None
    finally:
        found.close()


def on_disk(site: Site) -> Journal | None:
    """The journal for reading; None where it is missing or cannot be read."""
    path = os.path.join(site.state, "journal.db")
    if os.path.exists(path):
        with contextlib.suppress(sqlite3.Error):
            return Journal(path, read_only=True)
    return None
