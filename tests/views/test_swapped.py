"""A hostile user who swaps a directory for a symlink at a moment of the daemon's work gains nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fsrepl.storage.fs import MUTATIONS
from tests.doubles import UnsyncedFs
from tests.world import DESTINATION, SOURCE, World, worlds


class SwappingFs(UnsyncedFs):
    """The filesystem, with an act of somebody else just before a change: the nth."""

    def __init__(self, calls: int) -> None:
        self.calls_left, self.act = calls, lambda: None
        self.acted_before = ""
        for name in MUTATIONS:
            setattr(self, name, self._counted(name, getattr(UnsyncedFs, name).__get__(self)))

    def _counted(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            self.calls_left -= 1
            if self.calls_left == 0:
                self.acted_before = name
                self.act()
            return real(*args, **more)

        return call


def looks(top: Path) -> dict[str, tuple[object, ...]]:
    found = {}
    for path in (top, *sorted(top.rglob("*"))):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        names = os.listxattr(path, follow_symlinks=False)
        found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_ctime_ns, content, names)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("side", [SOURCE, DESTINATION])
def test_a_directory_swapped_for_a_symlink_before_a_change(memory: Path, side: str) -> None:
    """G9: what the symlink points to keeps its entries, content, rights and times, whatever was about to change."""
    for calls, world in worlds(memory, trees=True):
        outside = world.home / "outside"
        for top in (outside, world.path("folder")):
            (top / "sub/empty").mkdir(parents=True)
            (top / "file").write_bytes(b"content")
            (top / "link").symlink_to("file")
            os.link(top / "file", top / "name")
        world.settle()
        before = looks(outside)
        fs = SwappingFs(5 * calls + 1)  # every fifth change: the others differ little
        swapped = world.path("folder", side)

        def swap(swapped: Path = swapped, outside: Path = outside) -> None:
            if swapped.is_dir() and not swapped.is_symlink():
                swapped.rename(swapped.with_name("away"))
                swapped.symlink_to(outside)

        world.restart(fs=fs)
        fs.act = swap
        folder = world.path("folder")
        folder.chmod(0o700)
        os.setxattr(folder, "user.note", b"value")
        (folder / "file").write_bytes(b"other content")
        (folder / "new").write_bytes(b"new")
        (folder / "link").unlink()
        (folder / "link").symlink_to("/elsewhere")
        shutil.rmtree(folder / "sub")
        (folder / "made").mkdir()
        for _ in range(2):
            world.settle()
        assert looks(outside) == before, f"swapped in turn {calls}, before {fs.acted_before}"
        if not fs.acted_before:
            return


@pytest.mark.slow
def test_a_directory_is_never_wider_than_at_its_source(memory: Path) -> None:
    """At no change of the daemon's is a directory of the replica open to people whom neither version admits."""
    with World(memory / "world", trees=True) as world:
        world.path("folder").mkdir(mode=0o750)
        os.chmod(world.path("folder"), 0o750)
        world.settle()
        seen: set[int] = set()

        class Watching(UnsyncedFs):
            def __init__(self) -> None:
                for name in MUTATIONS:
                    setattr(self, name, self._watched(getattr(UnsyncedFs, name).__get__(self)))

            def _watched(self, real: Callable[..., object]) -> Callable[..., object]:
                def call(*args: object, **more: object) -> object:
                    try:
                        return real(*args, **more)
                    finally:
                        for path in world.path(bucket=DESTINATION).glob("*"):
                            if path.is_dir() and path.name != ".fsrepl":
                                seen.add(path.stat().st_mode & 0o777)

                return call

        world.restart(fs=Watching())
        world.path("folder").chmod(0o705)
        world.write("folder/file", b"content")
        world.path("closed").mkdir()
        world.path("closed").chmod(0o700)
        world.write("closed/file", b"content")
        world.settle()
        assert {path.stat().st_mode & 0o777 for path in world.path(bucket=DESTINATION).glob("[a-z]*")} == {0o700, 0o705}
        assert seen <= {0o750, 0o705, 0o700}


def test_people_whom_new_rights_exclude_see_no_new_attribute(memory: Path) -> None:
    """A directory that is closed and gets an attribute at once: it is closed first."""
    with World(memory / "world", trees=True) as world:
        world.path("folder").mkdir()
        world.path("folder").chmod(0o755)
        world.settle()
        modes: list[int] = []

        class Watching(UnsyncedFs):
            def set_attribute(self, fd: int, name: str, value: bytes) -> None:
                if name == "user.secret":
                    modes.append(os.fstat(fd).st_mode & 0o077)
                super().set_attribute(fd, name, value)

        world.restart(fs=Watching())
        world.path("folder").chmod(0o700)
        os.setxattr(world.path("folder"), "user.secret", b"value")
        world.settle()
        assert os.getxattr(world.path("folder", DESTINATION), "user.secret") == b"value"
        assert set(modes) == {0}
        world.stays_quiet()
