"""The replicas that a bucket receives: those that are expected, that failed, and that are made again."""

from __future__ import annotations

import contextlib

from msgspec import Struct, field

from fsrepl.region.expected import Expected
from fsrepl.storage.alike import Alike
from fsrepl.storage.early_copy import EarlyCopy
from fsrepl.storage.fs import Fs


class ReplicaState(Struct, eq=False):
    """Changed by the steps of replicate/."""

    alike: Alike = field(default_factory=Alike)
    """Samples of the blocks of the bucket's large contents."""
    expected: dict[tuple[str, bytes], Expected] = field(default_factory=dict)
    """By source and key: updates that are being captured at the source, for which no early copy has begun."""
    early: dict[tuple[str, bytes], EarlyCopy] = field(default_factory=dict)
    """By source and key: copies of versions here, for updates that are expected from there. Background workers take
    them out."""
    unsynced: set[tuple[bytes, str]] = field(default_factory=set)
    """Replicas that exist but could not be synced: the kernel may have dropped their data. They are made again."""
    undelivered: dict[bytes, str] = field(default_factory=dict)
    """Keys whose replicas cannot be made here because of an unexpected error, and what it was."""
    singly: bool = False
    """After an unexpected error in a batch, its deliveries are made singly once, which finds the one that failed."""

    def forget(self, fs: Fs) -> None:
        """The bucket goes away. Early copies are closed, and swept when it is back."""
        self.undelivered.clear()
        self.expected.clear()
        while self.early:
            with contextlib.suppress(KeyError):  # a worker has taken it
                self.early.popitem()[1].abandon(fs)
