"""Ports of this machine, and what the metrics' endpoint says."""

from __future__ import annotations

import urllib.request
from socket import socket

from tests.waiting import DEADLINE_S


def free_port() -> int:
    with socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE_S) as answer:
        return str(answer.read().decode())
