"""Durability of a batch: one syncfs, or parallel fsyncs."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fsrepl.storage.bucket import OpenBucket

_SLOW_S = 0.02
_FEW = 8


# -- durability


class Syncer:
    """Durability of a batch by one syncfs, or by parallel fsyncs if it is small and syncfs was slow lately.

    syncfs waits for all data of the filesystem: 8 to 450 ms beside a busy writer, where an fsync took 1. The fsyncs
    have separate threads, since a background worker may take minutes, or wait for the region that waits here. Each
    filesystem has separate threads, since one that hangs blocks them.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._slow_until: dict[int, float] = {}

    def close(self) -> None:
        for threads in self._threads.values():
            threads.shutdown()

    def _threads_of(self, device: int) -> ThreadPoolExecutor:
        with self._guard:
            if device not in self._threads:
                self._threads[device] = ThreadPoolExecutor(_FEW, thread_name_prefix="sync")
            return self._threads[device]

    def staged(self, bucket: OpenBucket, names: Sequence[tuple[int, bytes]]) -> None:
        """Make staged files, each (directory, name), survive a power cut. Raises OSError; the files must then be
        written again.

        A kernel tells each descriptor of an error once, at the next syncfs, whichever file it concerns: it may be one
        that was staged meanwhile, to be synced later. So after a failure nothing more is trusted until the bucket is
        opened again.
        """
        if bucket.sync_error is not None:
            raise bucket.sync_error
        if len(names) <= _FEW and time.monotonic() < self._slow_until.get(bucket.device, 0.0):
            with bucket.fs.released():
                list(self._threads_of(bucket.device).map(lambda at: _sync_name(bucket, *at), names))
            for fd in {at for at, _ in names}:
                bucket.fs.sync_file(fd)
            return
        began = time.monotonic()
        try:
            bucket.fs.sync_all(bucket.fd)
        except OSError as error:
            bucket.sync_error = error
            raise
        if time.monotonic() - began > _SLOW_S:
            self._slow_until[bucket.device] = time.monotonic() + 5


def _sync_name(bucket: OpenBucket, at: int, name: bytes) -> None:
    try:
        fd = bucket.fs.open_read(at, name)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return  # a symlink has no data, and is written with the directory that names it
        raise
    try:
        bucket.fs.sync_file(fd)
    finally:
        bucket.fs.close(fd)
