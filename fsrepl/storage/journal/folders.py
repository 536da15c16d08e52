"""One folder of a bucket in the journal, read a page at a time, however many names it has."""

from __future__ import annotations

from fsrepl.storage.journal.connection import Connection

_LAST = b"\xff" * 256
"""Appended to the beginning of a name, this sorts after all names that begin with it: no name has more bytes."""


class Folders:
    """The names and subfolders of a folder, in byte order.

    starts: only names that begin with this. after: only names after this one. deleted: also names of which a delete
    marker is the newest version.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def names(
        self, address: str, folder: bytes, *, starts: bytes, after: bytes | None, most: int, deleted: bool
    ) -> list[bytes]:
        """The next names of keys in a folder itself, at most so many."""
        rows = self._connection.execute(
            "SELECT name FROM object WHERE bucket = ? AND dir = ? AND name >= ? AND name > ? AND name < ? "
            f"{'' if deleted else 'AND NOT marker '}ORDER BY name LIMIT ?",
            (self._connection.ids.get(address), folder, starts, after or b"", starts + _LAST, most),
        )
        return [name for (name,) in rows]

    def subfolders(
        self, address: str, folder: bytes, *, starts: bytes, after: bytes | None, most: int, deleted: bool
    ) -> list[bytes]:
        """The next names of folders directly below a folder that have keys, at most so many.

        Each takes a few look-ups in the index, and not a read of what is below it. The order is that of the first
        directory at each name or below it: `a`, `a-b`, but `a-b`, `a` where no key is in `a` itself.
        """
        top = folder + b"/" if folder else b""
        at, inclusive, end = top + starts, True, top + starts + _LAST
        if after is not None:
            is_own = self._has_directory(address, top + after)
            at, inclusive = (top + after, False) if is_own else (top + after + b"0", True)
        found: list[bytes] = []
        while len(found) < most and (path := self._next(address, at, end, inclusive=inclusive)) is not None:
            name = path[len(top) :].split(b"/", 1)[0]
            below = top + name
            is_first = path == below or not self._has_directory(address, below)
            if is_first and name and (deleted or self._has_current(address, below)):
                found.append(name)
            # what is below `a` is not in one piece with `a` itself: `a-b` sorts between `a` and `a/c`
            at, inclusive = (path, False) if path == below else (below + b"0", True)  # 0 follows the slash
        return found

    def _next(self, address: str, at: bytes, end: bytes, *, inclusive: bool) -> bytes | None:
        """The first directory of keys from a path on, or after it."""
        row = self._connection.execute(
            f"SELECT dir FROM object WHERE bucket = ? AND dir {'>=' if inclusive else '>'} ? AND dir < ? "
            "ORDER BY dir LIMIT 1",
            (self._connection.ids.get(address), at, end),
        ).fetchone()
        return row[0] if row else None

    def _has_directory(self, address: str, path: bytes) -> bool:
        """Whether any key, deleted or not, is in a directory itself."""
        row = self._connection.execute(
            "SELECT 1 FROM object WHERE bucket = ? AND dir = ? LIMIT 1", (self._connection.ids.get(address), path)
        ).fetchone()
        return row is not None

    def _has_current(self, address: str, folder: bytes) -> bool:
        """Whether a key in a folder or below has a current version that is no marker."""
        number, where = self._connection.ids.get(address), "bucket = ? AND NOT marker AND"
        (found,) = self._connection.execute(
            f"SELECT EXISTS (SELECT 1 FROM object WHERE {where} dir = ?) "
            f"OR EXISTS (SELECT 1 FROM object WHERE {where} dir > ? AND dir < ?)",
            (number, folder, number, folder + b"/", folder + b"0"),
        ).fetchone()
        return bool(found)
