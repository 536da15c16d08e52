"""Debian's Chromium, for the tests that need a real browser; they are skipped where it or Playwright is missing."""

from __future__ import annotations

import importlib.util
import shutil
from typing import Any

import pytest

from tests.console.visitor import Console

CHROMIUM = shutil.which("chromium")

needs_chromium = [
    pytest.mark.slow(15),
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
    pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="Playwright is not installed"),
]
"""The marks of a file of such tests."""


def enter(browser: Any, console: Console, **context: Any) -> Any:
    """A page of a new browser that is signed in; it notes any fault that the browser reports in `faults`."""
    page = browser.new_context(base_url=f"http://127.0.0.1:{console.port}", **context).new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
    page.goto(console.another_link())
    page.wait_for_url("**/")
    return page
