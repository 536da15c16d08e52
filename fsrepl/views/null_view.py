"""The view of a null version, before another null version or marker takes that one's place.

Afterwards nothing is left to compare its file with. One whose times were too fresh when it was recorded would be taken
for its user's, and come back as a new version; so would one that is the stored version's own file, whose ctime changes
as it loses that name.
"""

from __future__ import annotations

from dataclasses import replace

from fsrepl.model import keys
from fsrepl.model.version import NULL
from fsrepl.model.view import View
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import NO_FILE
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Object
from fsrepl.storage.view_file import open_view_if_there


def has_its_content(journal: Journal, bucket: OpenBucket, key: bytes, view: View) -> bool:
    """Whether a file holds the version that it shows, by its hash; if so, how it looks now is on record."""
    version = versions.read(bucket, key, view.shown, marker=False) if view.shown else None
    with open_view_if_there(bucket, key, NO_FILE) as found:
        if version is None or found is None or found.digest() != version.digest:
            return False
        looks = bucket.view(found.found, view.shown)
    with journal.transaction():
        journal.versions.see(bucket.address, key, looks)
    return True


def before_replacing(journal: Journal, bucket: OpenBucket, key: bytes, known: Object | None) -> View | None:
    """How the view of a key is to be known once its null version is gone; that is on record when this returns.

    known: the current version of the key, and its view as it was recorded.
    """
    view = known.view if known else None
    if known is None or view is None or known.id != NULL or view.shown != NULL:
        return view
    if view.racy and has_its_content(journal, bucket, key, view):
        known = journal.versions.object(bucket.address, key)
        view = known.view if known and known.view else view
    directory, name = keys.split(key)
    try:
        found = bucket.fs.stat(bucket.views.get(directory), name)
        stored = versions.read(bucket, key, NULL, marker=False)
    except OSError:
        return view  # it is gone, or cannot be looked at, and is not ours to remove
    if stored is not None and view.is_like(found) and versions.is_file_of(bucket, stored, found):
        view = replace(view, ctime_ns=0)
        with journal.transaction():
            journal.versions.see(bucket.address, key, view)
    return view
