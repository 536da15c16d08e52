"""The doctor: present and coming problems."""

from __future__ import annotations

from starlette.responses import Response

from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import doctor as pages

_WAIT_S = 0.15


def doctor(visit: Visit) -> Response:
    """The last findings; where they are old, or the visitor asks for it, a new look begins meanwhile."""
    known = visit.gateway.diagnoses.ask(again=bool(visit.get("again")), wait_s=_WAIT_S)
    frame = visit.frame()
    return visit.html(pages.page(frame, pages.live(frame, known)))


def live(visit: Visit) -> str:
    """The part of the page that changes once other findings are there."""
    return pages.live(visit.live_frame(), visit.gateway.diagnoses.known())
