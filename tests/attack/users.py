"""Users of one side: one random action after another, on few keys, so that actions often meet."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from blake3 import blake3

from tests.attack.ledger import File, Ledger

DIRECTORIES = ("", "a", "b", "a/deep", "c")
NAMES = ("one", "two", "three", "four")
_LINKED = ".real"
"""What a directory is called while a link stands in its place."""

Key = str


def _digest(data: bytes) -> str:
    return blake3(data).hexdigest()


class Users:
    """All users of one bucket. Their actions do not overlap; only the daemon works at the same time."""

    def __init__(
        self, bucket: str, top: Path, aside: Path, seed: str, *, trees: bool = False, slowness: float = 1.0
    ) -> None:
        """trees: the bucket is a tree bucket, in which symlinks are objects. slowness: what pauses are multiplied
        by."""
        self.top, self.aside, self.trees, self.slowness = top, aside, trees, slowness
        self.ledger = Ledger(bucket)
        self.chance = random.Random(seed)
        self.deeds: Counter[str] = Counter()
        self.errors: list[str] = []
        self._number, self._tag, self._since_s = 0, seed, 0.0
        self._thread = threading.Thread(target=self._work, name=bucket)
        self._end = threading.Event()
        aside.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and put directories back where links have replaced them."""
        self._end.set()
        self._thread.join()
        self.look()
        while links := self._links():
            self._unlink_directory(links[0])  # the others may have other names after that
        self.look()

    def _links(self) -> list[Path]:
        found = (Path(folder, name) for folder, directories, names in os.walk(self.top) for name in directories + names)
        return [path for path in found if path.is_symlink()]

    def look(self) -> dict[Key, File]:
        """Observe the tree as a user sees it, and record it in the ledger."""
        found: dict[Key, tuple[int, int, str]] = {}
        for folder, directories, names, at in os.fwalk(self.top):  # no directory is left for a link to another one
            directories[:] = [name for name in directories if name != ".fsrepl"]
            for name in (*names, *directories):
                key = str(Path(folder, name).relative_to(self.top))
                with contextlib.suppress(OSError):  # the daemon replaced it in this moment
                    status = os.lstat(name, dir_fd=at)
                    if stat.S_ISLNK(status.st_mode):
                        if self.trees:
                            digest = _digest(os.fsencode(os.readlink(name, dir_fd=at)))
                            found[key] = (status.st_ino, status.st_mtime_ns, digest)
                    elif stat.S_ISREG(status.st_mode):
                        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=at), "rb") as file:
                            status = os.fstat(file.fileno())
                            found[key] = (status.st_ino, status.st_mtime_ns, _digest(file.read()))
        names_of = Counter(ino for ino, _, _ in found.values())
        tree = {key: File(ino, mtime_ns, digest, names_of[ino]) for key, (ino, mtime_ns, digest) in found.items()}
        self.ledger.saw(tree, time.monotonic())
        return tree

    def _work(self) -> None:
        kinds = list(_WEIGHTS)
        weights = list(_WEIGHTS.values())
        while not self._end.is_set():
            kind = self.chance.choices(kinds, weights)[0]
            self.look()
            try:
                getattr(self, kind)()
                self.deeds[kind] += 1
            except OSError:
                pass  # the file for this action does not exist
            except Exception as error:
                self.errors.append(f"{kind}: {error!r}")
            self.look()
            self._end.wait(self.slowness * self.chance.choice((0.0, 0.0, 0.01, 0.05, 0.2)))
            if self.chance.random() < 0.004:
                self._end.wait(8.0)  # so that some files rest

    # -- files and directories

    def _any(self) -> Path:
        return self.top / self.chance.choice(DIRECTORIES) / self.chance.choice(NAMES)

    def _existing(self) -> Path:
        files = [p for d in DIRECTORIES for n in NAMES if (p := self.top / d / n).is_file()]
        if not files:
            raise FileNotFoundError
        return self.chance.choice(files)

    def _data(self, size: int = 0) -> bytes:
        """Bytes that no user has written before."""
        self._number += 1
        head = f"{self._tag}:{self._number}:".encode()
        return head.ljust(size or self.chance.choice((40, 40, 400, 5000, 70_000)), b".")

    def _make_room(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def _open(self, path: Path, flags: int = 0, *, empties: bool = False) -> Iterator[int]:
        """A file opened for writing in place. What it holds in the end is recorded, whatever became of its name.

        So are the bytes that it held: since the last look at the tree the daemon may have shown another version there.
        empties: truncate it first, as O_TRUNC does.
        """
        self._since_s = time.monotonic()
        fd = os.open(path, os.O_RDWR | flags, 0o644)
        try:
            found = os.fstat(fd)
            before = _digest(os.pread(fd, found.st_size, 0))
            if empties:
                os.ftruncate(fd, 0)
            yield fd
            self._wrote(fd)
            if path.is_relative_to(self.top) and before != _digest(os.pread(fd, os.fstat(fd).st_size, 0)):
                self.ledger.overwrites(before, found.st_ino, str(path.relative_to(self.top)))
        finally:
            os.close(fd)

    def _wrote(self, fd: int) -> None:
        self.ledger.made(_digest(os.pread(fd, os.fstat(fd).st_size, 0)), self._since_s)

    # -- actions

    def write(self) -> None:
        """Write in place; the file is truncated first, as by `>`."""
        with self._open(self._make_room(self._any()), os.O_CREAT, empties=True) as fd:
            os.write(fd, self._data())

    def put(self) -> None:
        """Write beside the bucket, and rename into place."""
        aside = self.aside / "put"
        with self._open(aside, os.O_CREAT, empties=True) as fd:
            os.write(fd, self._data())
        aside.rename(self._make_room(self._any()))

    def append(self) -> None:
        with self._open(self._existing(), os.O_APPEND) as fd:
            os.write(fd, self._data(40))

    def slowly(self) -> None:
        with self._open(self._existing()) as fd:
            os.write(fd, self._data(40))
            self._wrote(fd)
            time.sleep(self.chance.choice((0.02, 0.2)))
            os.write(fd, self._data(40))

    def same_size(self) -> None:
        """Write other bytes of the same number."""
        with self._open(self._existing()) as fd:
            size = os.fstat(fd).st_size
            os.write(fd, self._data(max(40, size))[:size])

    def truncate(self) -> None:
        with self._open(self._existing()) as fd:
            os.ftruncate(fd, self.chance.randrange(os.fstat(fd).st_size + 1))

    def delete(self) -> None:
        self._existing().unlink()

    def chmod(self) -> None:
        self._existing().chmod(self.chance.choice((0o644, 0o600, 0o640)))

    def attribute(self) -> None:
        os.setxattr(self._existing(), "user.colour", self._data(40))

    def tag(self) -> None:
        os.setxattr(self._existing(), "user.fsrepl.tag.colour", self.chance.choice((b"red", b"blue")))

    def link(self) -> None:
        os.link(self._existing(), self._make_room(self._any()))

    def link_over(self) -> None:
        """Link over an existing file, as `ln -f` does."""
        aside = self.aside / f"link{self._number}"
        os.link(self._existing(), aside)
        try:
            aside.rename(self._make_room(self._any()))  # does nothing where both are one file
        finally:
            aside.unlink(missing_ok=True)

    def rename(self) -> None:
        self._existing().rename(self._make_room(self._any()))

    def rename_directory(self) -> None:
        name, other = self.chance.sample([d for d in DIRECTORIES if d], 2)
        aside = self.aside / f"moved{self._number}"
        one, two = self.top / name, self.top / other
        if one.is_symlink() or two.is_symlink() or one in two.parents or two in one.parents:
            return
        with contextlib.suppress(FileNotFoundError):
            two.rename(aside)
        one.rename(self._make_room(two))
        if aside.exists():
            aside.rename(one)

    def link_directory(self) -> None:
        """A directory moves, and a link to it takes its place."""
        path = self.top / self.chance.choice([d for d in DIRECTORIES if d])
        if path.is_symlink() or not path.is_dir():
            return
        real = path.with_name(path.name + _LINKED)
        path.rename(real)
        path.symlink_to(real.name)

    def unlink_directory(self) -> None:
        self._unlink_directory(self.top / self.chance.choice([d for d in DIRECTORIES if d]))

    def _unlink_directory(self, link: Path) -> None:
        if link.is_symlink():
            link.unlink()
            try:
                link.with_name(link.name + _LINKED).rename(link)
            except FileNotFoundError:
                pass
            except OSError as error:  # a replica made a directory in its place: it keeps its name
                if error.errno != errno.ENOTEMPTY:
                    raise

    def copy(self) -> None:
        """`cp -a` onto an existing file, with the attributes of another file, fsrepl's included."""
        subprocess.run(["cp", "-a", self._existing(), self._make_room(self._any())], capture_output=True, check=False)

    def rsync(self) -> None:
        """rsync a tree that is kept beside the bucket: some of it is new, most is unchanged."""
        self._rsync("-a")

    def rsync_attributes(self) -> None:
        self._rsync("-aX")

    def _rsync(self, options: str) -> None:
        tree, now_s = self.aside / "tree", time.monotonic()
        if self.chance.random() < 0.2:  # what is in the bucket now, with its attributes
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(
                self.top, tree, symlinks=True, ignore=lambda folder, names: {".fsrepl"} & {*names}, dirs_exist_ok=True
            )
        for _ in range(3):
            path = self._make_room(tree / self.chance.choice(DIRECTORIES) / self.chance.choice(NAMES))
            path.write_bytes(self._data())
        extra = self.chance.choice(([], ["--checksum"], ["--inplace"], ["--delete", "--exclude=/.fsrepl"]))
        for path in tree.rglob("*"):
            with contextlib.suppress(OSError):
                new, place = path.read_bytes(), self.top / path.relative_to(tree)
                self.ledger.made(_digest(new), now_s)
                self.ledger.copied.add(_digest(new))
                if "--inplace" in extra:  # which writes over the old bytes, and cuts the file afterwards
                    self.ledger.made(_digest(new + place.read_bytes()[len(new) :]), now_s)
        subprocess.run(["rsync", options, *extra, f"{tree}/", f"{self.top}/"], capture_output=True, check=False)


_WEIGHTS = {
    "write": 20, "put": 20, "append": 10, "slowly": 4, "same_size": 15, "truncate": 6, "delete": 12,
    "chmod": 4, "attribute": 4, "tag": 2, "link": 6, "link_over": 3, "rename": 8, "rename_directory": 3,
    "link_directory": 2, "unlink_directory": 4, "copy": 4, "rsync": 1, "rsync_attributes": 1,
}  # fmt: skip
