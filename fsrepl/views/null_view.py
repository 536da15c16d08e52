"""The view of a null version, before another null version or marker replaces that version.

Afterwards no version is left to compare the view's file with. Without a record, two kinds of file would be taken for a
user's write and become new versions: a file whose times were too fresh when it was recorded, and a file that is the
stored file too, whose ctime changes as it loses that name.
"""

from __future__ import annotations

from msgspec.structs import replace

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
    """Whether a view has the content of the version that it shows, by its hash; if so, its status is recorded."""
    version = versions.read(bucket, key, view.shown, marker=False) if view.shown else None
    with open_view_if_there(bucket, key, NO_FILE) as found:
        if version is None or found is None or found.kind is not version.kind:
            return False
        if found.digest() != version.digest:
            return False
        looks = bucket.view(found.found, view.shown)
    with journal.transaction():
        journal.views.see(bucket.address, key, looks)
    return True


def before_replacing(journal: Journal, bucket: OpenBucket, key: bytes, known: Object | None) -> View | None:
    """Record a key's view in the form that stays comparable once its null version is gone; that view.

    known: the key's current version, and its view as recorded.
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
        return view  # gone, or not to be inspected, and then not removed either
    if stored is not None and view.is_like(found) and versions.is_file_of(bucket, stored, found):
        view = replace(view, ctime_ns=0)
        with journal.transaction():
            journal.views.see(bucket.address, key, view)
    return view
