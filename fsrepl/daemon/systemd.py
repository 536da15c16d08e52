"""Notifications to systemd: readiness and the watchdog. Source: sd_notify(3)."""

from __future__ import annotations

import contextlib
import math
import os
import socket


def turn_max_s() -> float:
    """The longest time between two turns of the loop, each of which feeds the watchdog; without one infinite. Source:
    sd_watchdog_enabled(3)."""
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 2e6
    except (KeyError, ValueError):
        return math.inf


def notify(message: str) -> None:
    """Send a state to systemd. Does nothing without systemd. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.connect("\0" + address[1:] if address.startswith("@") else address)
        to.sendall(message.encode())
