"""halt.json: a bucket in which so much was deleted at once that the deletions are held, HALTED, until a person decides.

It lies in the bucket, and so survives a restart, a kill and the loss of the journal. It is written durably before the
first delivery is held, and is removed by `fsrepl ack` and `fsrepl undelete` alone.
"""

from __future__ import annotations

from msgspec import Struct

from fsrepl.model import clock
from fsrepl.storage.documents import read_document, remove_document, write_document
from fsrepl.storage.fs import Fs

NAME = b"halt.json"


class Halt(Struct, frozen=True):
    """A mass deletion. keys: the number of current keys at since_ns, when the first of them was deleted."""

    since_ns: int
    deleted: int
    keys: int

    @property
    def share(self) -> float:
        return round(self.deleted / self.keys, 3) if self.keys else 1.0

    def document(self) -> dict[str, object]:
        return {
            "since": clock.stamp(self.since_ns), "deleted": self.deleted, "keys": self.keys, "share": self.share,
        }  # fmt: skip

    def describe(self, address: str) -> str:
        """The deletion and its remedies as text, for the log, `why` and `wait`."""
        since = clock.stamp(self.since_ns)
        what = (
            f"{self.deleted:,} of {self.keys:,} keys were deleted at once" if self.deleted else "many keys were deleted"
        )
        return (
            f"HALTED since {since}: {what}, and deletions not sent by then are held; "
            f"`fsrepl undelete {address} --since {since}` brings the files back, `fsrepl ack {address}` lets the "
            "deletions cross"
        )


def read(fs: Fs, meta: int) -> Halt | None:
    """The halt in a bucket's document; None where there is no document. An invalid document halts the bucket too."""
    try:
        found = read_document(fs, meta, NAME)
        if found is None:
            return None
        deleted, keys = found["deleted"], found["keys"]
        if not (isinstance(deleted, int) and isinstance(keys, int) and 0 <= deleted < 1 << 63 and 0 <= keys < 1 << 63):
            raise ValueError("not numbers of keys")
        return Halt(clock.parse(str(found["since"])), deleted, keys)
    except (ValueError, KeyError):
        return Halt(0, 0, 0)


def write(fs: Fs, meta: int, halt: Halt) -> None:
    """Write the document durably. Raises OSError."""
    write_document(fs, meta, NAME, halt.document())


def remove(fs: Fs, meta: int) -> None:
    """Remove the document durably. Raises OSError."""
    remove_document(fs, meta, NAME)
