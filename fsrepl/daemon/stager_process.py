"""The stager's own process: carries out one order after the other, until the daemon ends. See region/stager.py."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

import fsrepl.capture.in_stager as captures
import fsrepl.replicate.in_stager as replicas
from fsrepl.daemon import memory
from fsrepl.errors import FsreplError
from fsrepl.region import stager
from fsrepl.region.recent import Contents
from fsrepl.region.stager import Order
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Fs, end_with_parent
from fsrepl.storage.lent import borrow

log = logging.getLogger("fsrepl")

ORDERS: Mapping[str, Callable[[bytes, Sequence[OpenBucket], Contents], bytes]] = {
    captures.READ: captures.carry_out_read,
    captures.STAGE: captures.carry_out_stage,
    replicas.STAGE: replicas.carry_out_stage,
    replicas.REMOVE: replicas.carry_out_remove,
    replicas.RECORD: replicas.carry_out_record,
}


def main(fd: int) -> None:
    """Serve a connection until it ends. fd: the socket."""
    # Those who end the daemon send their signals to all of its processes: this one ends after it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    # It ends with the daemon also in the midst of an order: the next daemon may be at the same files by then.
    end_with_parent()
    os.umask(0o077)
    memory.prepare()
    fs, held = Fs(), Contents(captures.HELD_BYTES)
    with contextlib.suppress(EOFError, OSError), socket.socket(fileno=fd) as connection:
        stager.send_frame(connection, stager.READY)
        while True:
            order, fds = stager.receive_order(connection)
            stager.send_frame(connection, carry_out(order, fds, fs, held))


def carry_out(order: Order, fds: Sequence[int], fs: Fs, held: Contents) -> bytes:
    """The answer to an order, empty where it could not be carried out. The descriptors are closed."""
    left = list(fds)
    try:
        with contextlib.ExitStack() as opened:
            buckets = [opened.enter_context(borrow(lent, left.pop(0), fs)) for lent in order.buckets]
            return ORDERS[order.what](order.order, buckets, held)
    except (FsreplError, OSError):  # the daemon meets it too
        return b""
    except Exception:
        log.exception("the stager could not %s: an unexpected error", order.what)
        return b""
    finally:
        for fd in left:
            os.close(fd)
