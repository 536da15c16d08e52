"""A set of directories in which those below one are found without reading all the others."""

from __future__ import annotations

Directory = tuple[str, bytes]
"""A bucket's address, and the path of a directory in it with a slash at its end; empty for the bucket itself."""


class Subtrees:
    """A set of directories. See the module."""

    def __init__(self) -> None:
        self._members: set[Directory] = set()
        self._children: dict[Directory, set[Directory]] = {}
        """By directory, its direct children that are members, or have members below them."""

    def add(self, directory: Directory) -> None:
        self._members.add(directory)
        while (parent := _parent(directory)) is not None:
            known = self._children.setdefault(parent, set())
            if directory in known:
                break
            known.add(directory)
            directory = parent

    def remove(self, directory: Directory) -> None:
        self._members.discard(directory)
        while directory not in self._members and directory not in self._children:
            parent = _parent(directory)
            if parent is None or (known := self._children.get(parent)) is None:
                break
            known.discard(directory)
            if known:
                break
            del self._children[parent]
            directory = parent

    def of(self, top: Directory) -> list[Directory]:
        """The members among a directory and all below it."""
        found, todo = [], [top]
        while todo:
            directory = todo.pop()
            if directory in self._members:
                found.append(directory)
            todo += self._children.get(directory, ())
        return found


def _parent(directory: Directory) -> Directory | None:
    address, path = directory
    if not path:
        return None
    above = path[:-1].rpartition(b"/")[0]
    return address, above + b"/" if above else b""
