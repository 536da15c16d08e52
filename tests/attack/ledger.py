"""The files that users had, and for how long. Pure: the verdict depends on the observations alone."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

REST_S = 5.0
"""Bytes that rested so long beside a working daemon must be a version, however busy the machine is."""


@dataclass(frozen=True, slots=True)
class File:
    """A file as a user sees it. names: how many keys of the bucket are names of it."""

    ino: int
    mtime_ns: int
    digest: str
    names: int = 1


@dataclass(frozen=True, slots=True)
class Rest:
    """The same file with the same bytes at one key, from one moment to another, in monotonic seconds."""

    bucket: str
    key: str
    file: File
    since_s: float
    until_s: float


class Verdict(enum.Enum):
    KEPT = "a version holds it"
    SHORT = "it did not rest long enough beside a working daemon"
    UNSEEN = "it came through another name of the file: only a scan finds that"
    OVERWRITTEN = "it was the stored version's own file, and was overwritten in place"
    LOST = "no version holds it"


@dataclass(slots=True)
class Ledger:
    """The observations of one bucket. A user who changes the tree looks at it before and after."""

    bucket: str
    rests: list[Rest] = field(default_factory=list)
    overwritten: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    """Bytes that were overwritten in place (the file stayed, and its bytes went): their digest and the file's inode
    number, and the keys that were names of the file just before or after."""
    contents: dict[str, float] = field(default_factory=dict)
    """The digest of all bytes that a file had, also those that a look came too late for; and since when, at most."""
    copied: set[str] = field(default_factory=set)
    """Digests of bytes that are kept elsewhere, and may come back to their key at any time."""
    _now: dict[str, tuple[File, float]] = field(default_factory=dict)

    def saw(self, tree: Mapping[str, File], now_s: float) -> None:
        """Record how the tree looks now. A file that looks as it did last time has rested since it was first seen."""
        for file in tree.values():
            self.made(file.digest, now_s)
        was: dict[int, tuple[str, set[str]]] = {}
        for key, (file, _) in self._now.items():
            was.setdefault(file.ino, (file.digest, set()))[1].add(key)
        for key, file in tree.items():
            digest, names = was.get(file.ino, (file.digest, set()))
            if digest != file.digest:
                self.overwrites(digest, file.ino, *names, key)
        for key, (file, since_s) in self._now.items():
            if tree.get(key) != file:
                self.rests.append(Rest(self.bucket, key, file, since_s, now_s))
        self._now = {
            key: self._now[key] if key in self._now and self._now[key][0] == file else (file, now_s)
            for key, file in tree.items()
        }

    def overwrites(self, digest: str, ino: int, *names: str) -> None:
        """Record that these bytes of a file are overwritten in place, or are about to be."""
        self.overwritten.setdefault((digest, ino), set()).update(names)

    def made(self, digest: str, since_s: float) -> None:
        """Record bytes that a file has, or will have; they did not exist before since_s."""
        self.contents.setdefault(digest, since_s)

    def close(self, now_s: float) -> list[Rest]:
        """All that rested, up to now."""
        self.saw({}, now_s)
        return self.rests


def judge(
    rest: Rest, up: Iterable[tuple[float, float]], kept: Collection[str], destroyed: Collection[str],
    overwritten: Collection[str],
) -> Verdict:  # fmt: skip
    """The verdict on bytes that rested at a key.

    up: the periods in which a daemon was ready. kept: digests of the key's versions that are whole. destroyed: digests
    of versions whose stored content has changed.
    """
    digest = rest.file.digest
    if digest in kept:
        return Verdict.KEPT
    if digest in destroyed and digest in overwritten:
        return Verdict.OVERWRITTEN
    beside_s = max((min(rest.until_s, until) - max(rest.since_s, since) for since, until in up), default=0.0)
    if beside_s < REST_S:
        return Verdict.SHORT
    return Verdict.UNSEEN if rest.file.names > 1 else Verdict.LOST
