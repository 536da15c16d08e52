"""Views whose content rotted: it is not that of the version they show, although no program wrote into them.

A view that is one file with its stored version rots with it, while a good copy replaces the stored version alone. So
such a view is found before the repair, while its status is as recorded, and shown anew after the repair.
"""

from __future__ import annotations

from fsrepl.model.version import Kind, Version
from fsrepl.model.view import View
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.storage import sharing, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.view_file import open_view
from fsrepl.views import stale


def rotten_view(
    region: Region, state: BucketState, bucket: OpenBucket, version: Version, view: View | None
) -> View | None:
    """The view of a key's current version, where it rotted in a replica tree; else None. view: as recorded.

    A view that was written into is queued instead: its content becomes a version of its own. Where view and stored
    version are one file, nothing else would have it looked at before the next scan.
    """
    if version.kind is not Kind.FILE or version.marker or view is None or view.shown != version.id or view.is_link:
        return None
    try:
        with open_view(bucket, version.key) as opened:
            if not opened.is_regular:
                return None
            if not view.is_like(opened.found):
                if versions.is_file_of(bucket, version, opened.found):
                    stale.recapture(region, state, version.key)
                return None
            if view.racy or sharing.receives_writes(state.bucket) or opened.digest() == version.digest:
                return None
            return None if opened.is_written() else view
    except OSError:
        return None
