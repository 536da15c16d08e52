"""Numbers, sizes and durations as text for people. Pure."""

from __future__ import annotations


def counted(number: int, one: str, many: str = "") -> str:
    """A number and its noun: 1 version, 1,200 versions."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def kinds_text(others: int, directories: int, links: int) -> str:
    """Objects by kind: 1,200 files, 3 directories, 1 symlink. Kinds without one are left out.

    others: files and symlinks. links: the symlinks among them.
    """
    kinds = ((others - links, "file", ""), (directories, "directory", "directories"), (links, "symlink", ""))
    return ", ".join(counted(each, one, many) for each, one, many in kinds if each) or counted(0, "file")


def size_text(count: float) -> str:
    """Bytes for people: 52 B, 1.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration_text(seconds: float) -> str:
    """A time span for people: 0.4 s, 3 min, 5.2 h, 3.1 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds else "0 s"
