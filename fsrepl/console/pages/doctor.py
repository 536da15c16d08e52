"""The findings of the doctor, the worst first."""

from __future__ import annotations

from collections.abc import Sequence

from fsrepl.console.pages.rendering import Frame, render


def page(frame: Frame, findings: Sequence[dict[str, str]]) -> str:
    bad = [finding for finding in findings if finding["Level"] != "ok"]
    return render("doctor.html", frame, bad=bad, good=[finding for finding in findings if finding["Level"] == "ok"])
