"""The findings of the doctor, the worst first."""

from __future__ import annotations

import time

from markupsafe import Markup

from fsrepl.console.diagnosing import Diagnosis
from fsrepl.console.pages.rendering import Frame, render


def page(frame: Frame, live: str) -> str:
    """The whole page around its live part."""
    return render("doctor.html", frame, live=Markup(live))


def live(frame: Frame, known: Diagnosis) -> str:
    """The findings, and how old they are."""
    looked = known.looked
    found = [finding.document() for finding in looked.findings] if looked is not None else []
    return render(
        "_doctor.html", frame,
        looked=_time(looked.ended_s) if looked is not None else "",
        took_s=round(looked.took_s, 1) if looked is not None else 0.0,
        trouble=looked.trouble if looked is not None else "",
        looking_since=_time(known.looking_since_s) if known.looking_since_s else "",
        bad=[finding for finding in found if finding["Level"] != "ok"],
        good=[finding for finding in found if finding["Level"] == "ok"],
    )  # fmt: skip


def _time(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_s))
