"""The overview, and its live part."""

from __future__ import annotations

import time

from starlette.responses import Response

from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import overview as pages


def overview(visit: Visit) -> Response:
    frame = visit.frame()
    return visit.html(pages.page(frame, _live(visit, wait_s=0.05)))


def live(visit: Visit) -> str:
    """The part of the overview that changes."""
    return _live(visit, wait_s=0)


def _live(visit: Visit, *, wait_s: float) -> str:
    look = visit.watch.newest(wait_s=wait_s)
    if look is None:
        return pages.counting(visit.live_frame())
    return pages.live(visit.live_frame(), look.status, look.regions, look.record, time.time())
