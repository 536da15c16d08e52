"""Notifications to systemd: readiness and the watchdog. Source: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """Send a state to systemd. Does nothing without systemd. Source: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.connect("\0" + address[1:] if address.startswith("@") else address)
        to.sendall(message.encode())
