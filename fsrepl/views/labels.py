"""Labels: attributes on views that tell people the version id and status, written after the fact.

A view is labelled once its version has arrived everywhere, so that most are touched once; while a
version stays pending, its view says so after a moment. Nothing depends on labels.
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
    """Label the views that are due, and record their new status. Raises FsreplError where the bucket is away."""
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
            if current is None:  # the view may show another version than the one with news
                current = version if shown == version.id else versions.read(bucket, version.key, shown, marker=False)
            if current is None:
                continue
            # The tags may have been edited as well: then all labels are written again.
            try:
                view = view_attributes.label_view(
                    bucket, current, known.view, status_only=status_only and not current.edited
                )
            except OSError as error:
                log.debug('not labelled bucket=%s key="%s": %s', address, keys.shown(version.key), reason(error))
                state.labels.again(version, time.monotonic())
                continue
            if view is not None:
                seen.append((version.key, known.view, view))
    with engine.journal.transaction():
        engine.journal.views.see_labelled(address, seen)
