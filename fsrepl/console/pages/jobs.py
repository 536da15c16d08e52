"""Jobs, with their progress."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fsrepl.commands.reader import Document
from fsrepl.console.pages.rendering import Frame, render

RUNNING = ("Preparing", "Active", "Cancelling")


def page(frame: Frame, live: str) -> str:
    """The whole page around its live part."""
    return render("jobs.html", frame, live=Markup(live))


def live(frame: Frame, backfills: Sequence[Document]) -> str:
    return render("_jobs.html", frame, backfills=backfills, running=RUNNING)
