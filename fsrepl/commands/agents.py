"""Requests that the agent of a region on another machine carries out."""

from __future__ import annotations

from typing import Any

from fsrepl.daemon import control, request_json
from fsrepl.daemon.requests import Request
from fsrepl.link.host import ANSWER_S, Host


def perform(host: Host, request: Request, within_s: float | None = ANSWER_S) -> dict[str, Any]:
    """Its answer. within_s: None for no limit. Raises FsreplError: the agent's, or Unavailable where there is none."""
    answer = host.ask(request_json.encode(request), within_s)
    if "error" in answer:
        raise control.raised(answer["error"])
    found: dict[str, Any] = answer["ok"]
    return found
