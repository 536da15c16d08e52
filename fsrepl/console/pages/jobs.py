"""Jobs, with their progress."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fsrepl.commands.reader import Document
from fsrepl.console.pages.rendering import Frame, render, shown

_SHOWN = 500
RUNNING = ("Preparing", "Active", "Cancelling")


def page(frame: Frame, live: str, sources: Sequence[str]) -> str:
    """The whole page around its live part. sources: what can be compared."""
    return render("jobs.html", frame, live=Markup(live), sources=sources)


def live(
    frame: Frame, backfills: Sequence[Document], scrub: Document, verifications: Sequence[Document]
) -> str:  # fmt: skip
    """scrub: the document of `scrub status`."""
    return render(
        "_jobs.html", frame, backfills=backfills, scrub=scrub, verifications=verifications, running=RUNNING
    )  # fmt: skip


def verification(frame: Frame, found: Document, result: Document | None, said: str) -> str:
    """One comparison: result is the answer of `verify --json`, None while it runs or where there is none."""
    differences = result["Differences"] if result is not None else []
    return render(
        "verification.html", frame, job=found, result=result, differences=differences[:_SHOWN],
        more=len(differences) - _SHOWN, said=[shown(line) for line in said.splitlines()],
    )  # fmt: skip
