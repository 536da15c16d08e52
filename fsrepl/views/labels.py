"""What views tell of their versions: our attributes on them, put there as a courtesy, after the fact.

A view is marked once its version has arrived everywhere, so that most are touched once; while something
keeps a version pending, its view says so after a moment. Nothing depends on these marks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from fsrepl.errors import reason
from fsrepl.model import keys
from fsrepl.model.version import Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.storage import versions
from fsrepl.views import view_attributes

log = logging.getLogger("fsrepl")


def label_views(region: Region, state: BucketState, now_s: float, *, everything: bool = False) -> None:
    """Mark the views that are due, and record how they look afterwards. Raises FsreplError where the bucket is away."""
    due = state.labels.take(now_s, everything=everything)
    if not due:
        return
    try:
        _label_views(region, state, due)
    finally:
        state.labels.done()
    if not state.labels:
        region.engine.notify()


def _label_views(region: Region, state: BucketState, due: Sequence[tuple[Version, bool]]) -> None:
    engine, address = region.engine, state.bucket.address
    objects = engine.journal.versions.look_up(address, [version.key for version, _ in due])
    seen = []
    with state.bucket.open() as bucket:
        for version, status_only in due:
            known = objects.get(version.key)
            shown = known.view.shown if known and known.view else ""
            if known is None or known.view is None or not shown:
                continue
            status_only &= shown == version.id
            current = engine.recent.version(address, version.key, shown)
            if current is None:  # what the view shows may be another version than the one that has news
                current = version if shown == version.id else versions.read(bucket, version.key, shown, marker=False)
            if current is None:
                continue
            # An edit of tags may have come with the status: then all of it is put there again.
            try:
                view = view_attributes.label_view(
                    bucket, current, known.view, status_only=status_only and not current.edited
                )
            except OSError as error:
                log.debug('not marked bucket=%s key="%s": %s', address, keys.shown(version.key), reason(error))
                state.labels.again(version, time.monotonic())
                continue
            if view is not None:
                seen.append((version.key, view))
    with engine.journal.transaction():
        engine.journal.versions.see_all(address, seen)
