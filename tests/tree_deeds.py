"""Random acts on a tree, of every kind that a tree bucket keeps, and the comparison of two trees by rsync."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

_MODES = (0o700, 0o711, 0o750, 0o755, 0o1777)


class Deeds:
    """Random acts in a directory. links: hard links among them. names: so many names, if there are only few; then the
    acts are those that make, edit and remove names of one file."""

    def __init__(self, top: Path, seed: int, *, links: bool = True, names: int = 0) -> None:
        self.top, self.random, self.names = top, random.Random(seed), names
        top.mkdir(exist_ok=True)
        self._acts = [
            self.write, self.write, self.write_in_place, self.append, self.make_directory, self.symlink, self.remove,
            self.rename, self.chmod, self.attribute, self.own, self.touch, self.remove_tree, self.to_file_or_back,
        ]  # fmt: skip
        self._acts += [self.hard_link] if links else []
        if names:
            self._acts = [
                *(self.hard_link, self.own, self.touch) * 3, self.write, self.symlink, self.append, self.attribute,
                self.chmod, self.rename, *(self.remove,) * 2,
            ]  # fmt: skip

    def act(self, number: int) -> None:
        for _ in range(number):
            self.random.choice(self._acts)()

    # -- places

    def _below(self) -> list[Path]:
        """All entries, symlinks not followed."""
        found: list[Path] = []
        todo = [self.top]
        while todo:
            for entry in sorted(os.scandir(todo.pop()), key=lambda entry: entry.name):
                found.append(Path(entry.path))
                if entry.is_dir(follow_symlinks=False):
                    todo.append(Path(entry.path))
        return found

    def _some(self, kind: str = "") -> Path | None:
        entries = [path for path in self._below() if _kind(path).startswith(kind)]
        return self.random.choice(entries) if entries else None

    def _directory(self) -> Path:
        found = [path for path in self._below() if _kind(path) == "directory" and len(path.parts) < 40]
        return self.random.choice([self.top, *found])

    def _new(self) -> Path:
        if self.names:
            return self.top / f"n{self.random.randrange(self.names)}"
        return self._directory() / f"n{self.random.randrange(100000)}"

    # -- acts

    def write(self) -> None:
        path = self._new()
        if path.is_symlink() or path.is_dir():
            return
        path.write_bytes(self.random.randbytes(self.random.choice((0, 10, 5000))))

    def write_in_place(self) -> None:
        if path := self._some("file"):
            with path.open("r+b") as file:
                file.write(self.random.randbytes(20))

    def append(self) -> None:
        if path := self._some("file"):
            with path.open("ab") as file:
                file.write(self.random.randbytes(20))

    def make_directory(self) -> None:
        path = self._new()
        if not os.path.lexists(path):
            (path / "below").mkdir(parents=True)

    def symlink(self) -> None:
        target = self.random.choice(("nothing", "/etc/hostname", "..", "../../..", "n1/n2"))
        path = self._new()
        if not os.path.lexists(path):
            os.symlink(target, path)

    def hard_link(self) -> None:
        to = self._new()
        path = self.random.choice((self._some("file"), self._some("file"), self._some("link")))
        if path and not os.path.lexists(to):
            os.link(path, to, follow_symlinks=False)

    def remove(self) -> None:
        if (path := self._some()) and not (_kind(path) == "directory" and any(path.iterdir())):
            path.rmdir() if _kind(path) == "directory" else path.unlink()

    def remove_tree(self) -> None:
        if self.random.random() < 0.3 and (path := self._some("directory")):
            shutil.rmtree(path)

    def rename(self) -> None:
        to = self._new()
        if (path := self._some()) and path not in to.parents and not os.path.lexists(to):
            path.rename(to)

    def chmod(self) -> None:
        if path := self.random.choice((self._some("file"), self._some("directory"))):
            path.chmod(self.random.choice(_MODES))

    def own(self) -> None:
        if os.geteuid() == 0 and (path := self._some()):
            os.chown(path, self.random.randrange(1000, 1003), self.random.randrange(1000, 1003), follow_symlinks=False)

    def attribute(self) -> None:
        if path := self.random.choice((self._some("file"), self._some("directory"))):
            os.setxattr(path, f"user.note{self.random.randrange(3)}", self.random.randbytes(8))

    def touch(self) -> None:
        if path := self.random.choice((self._some("file"), self._some("link"))):
            os.utime(path, ns=(0, self.random.randrange(10**18)), follow_symlinks=False)

    def to_file_or_back(self) -> None:
        """A file where a directory was, a directory where a symlink was, and so on."""
        if path := self._some():
            shutil.rmtree(path) if _kind(path) == "directory" else path.unlink()
            make = self.random.choice((Path.mkdir, Path.touch, lambda path: os.symlink("target", path)))
            make(path)


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "link"
    return "directory" if path.is_dir() else "file"


def differences(one: Path, other: Path, *, links: bool = True) -> list[str]:
    """What rsync would change in one tree to make it like another: nothing, where they are alike.

    Times of directories, and fsrepl's own attributes and folder, are left out.
    """
    command = ["rsync", "-aAX" + "H" * links, "--dry-run", "--itemize-changes", "--checksum", "--delete"]
    command += ["--omit-dir-times", "--exclude=/.fsrepl", "--filter=-x user.fsrepl.*", "--filter=-x trusted.*"]
    command += [f"{one}/", f"{other}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
