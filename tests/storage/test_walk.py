"""One walk for all that goes through a tree: what it finds, in which order, and what it does not enter."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrepl.model import keys
from fsrepl.storage.fs import Entry, FileType, Fs
from fsrepl.storage.walk import Directory, Walk, directories, in_key_order, remove_below
from tests import mounts

Tree = dict[bytes, "Tree | FileType"]
Found = dict[bytes, dict[bytes, FileType]]

NAMES = st.one_of(
    st.sampled_from([b"a", b"a-b", b"a.b", b"a0", b"A", b".hidden", b"but", b"~", b"\xff\n", "ü".encode(), b"x" * 255]),
    st.binary(min_size=1, max_size=3).filter(lambda name: not {b"/", b"\0"} & {bytes([b]) for b in name}),
).filter(lambda name: name not in (b".", b".."))
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.dictionaries(NAMES, st.sampled_from([FileType.REGULAR, FileType.LINK, FileType.OTHER]), max_size=4),
    lambda below: st.dictionaries(
        NAMES, st.one_of(st.sampled_from([FileType.REGULAR, FileType.LINK, FileType.OTHER]), below), max_size=4
    ),
    max_leaves=12,
)  # type: ignore[arg-type]


def make(path: bytes, tree: Tree) -> None:
    for name, what in tree.items():
        at = path + b"/" + name
        if isinstance(what, dict):
            os.mkdir(at)
            make(at, what)
        elif what is FileType.REGULAR:
            os.close(os.open(at, os.O_CREAT | os.O_WRONLY))
        elif what is FileType.OTHER:
            os.mkfifo(at)
        else:
            os.symlink(b"..", at)  # which a walk that follows links never leaves


@contextmanager
def opened(path: Path | bytes) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def made(tree: Tree) -> Iterator[tuple[bytes, int]]:
    """A tree on the disk: its path, and an open descriptor."""
    home = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        make(os.fsencode(home), tree)
        with opened(os.fsencode(home)) as top:
            yield os.fsencode(home), top
    finally:
        shutil.rmtree(home)


def by_os_walk(home: bytes) -> Found:
    """The same tree as the standard library walks it."""
    found: Found = {}
    for path, below, others in os.walk(home):
        here = found[os.path.relpath(path, home) if path != home else b""] = {}
        for name in below + others:
            at = path + b"/" + name
            if os.path.islink(at):
                here[name] = FileType.LINK
            elif not (os.path.isdir(at) or os.path.isfile(at)):
                here[name] = FileType.OTHER
            else:
                here[name] = FileType.DIRECTORY if os.path.isdir(at) else FileType.REGULAR
    return found


def whole(directory: Directory) -> tuple[bytes, dict[bytes, FileType]]:
    return directory.path, dict(directory.entries)


@given(TREES)
def test_every_directory_is_read_once_before_those_in_it(tree: Tree) -> None:
    """The walk finds what os.walk finds, follows no link, and a caller who reads no entries still gets below."""
    with made(tree) as (home, top):
        expected = by_os_walk(home)
        found = [whole(directory) for directory in directories(Fs(), top)]
        assert dict(found) == expected
        paths = [path for path, _ in found]
        assert len(paths) == len(set(paths))
        assert all(paths.index(keys.split(path)[0]) < paths.index(path) for path in paths if path)
        assert sorted(directory.path for directory in directories(Fs(), top)) == sorted(expected)


@given(TREES)
def test_a_name_at_the_top_is_left_out(tree: Tree) -> None:
    """Only there: the same name further below is one like any other."""
    with made(tree) as (home, top):
        expected = {p: e for p, e in by_os_walk(home).items() if p.split(b"/")[0] != b"but"}
        expected[b""].pop(b"but", None)
        assert dict(map(whole, directories(Fs(), top, but=b"but"))) == expected


@given(TREES)
def test_keys_come_in_the_order_of_their_bytes(tree: Tree) -> None:
    """S3 lists keys so: `a-b` before `a/b` before `a0`, whatever directories they are in."""
    with made(tree) as (home, top):
        found = in_key_order(Fs(), top, b"", lambda d: [(k, k) for k in (keys.join(d.path, n) for n in d.files())])
        expected = by_os_walk(home)
        every = [keys.join(p, n) for p, e in expected.items() for n, kind in e.items() if kind is FileType.REGULAR]
        assert list(found) == sorted(every)


@given(TREES)
def test_a_walk_goes_on_where_it_was_left(tree: Tree) -> None:
    """A scan reads some directories, lets others go first, and continues with the tree opened anew."""
    with made(tree) as (home, _):
        walk, found = Walk(), {}
        while walk.todo:
            with opened(home) as again, walk.step(Fs(), again) as directory:
                path, entries = whole(directory)
                assert path not in found
                found[path] = entries
            walk = Walk(list(walk.todo), walk.but)
        assert found == by_os_walk(home)


@given(TREES)
def test_everything_below_is_removed_but_one_name(tree: Tree) -> None:
    with made(tree) as (home, top):
        kept = {p: e for p, e in by_os_walk(home).items() if p.split(b"/")[0] == b"but"}
        remove_below(Fs(), top, but=b"but")
        expected = {b"": {n: k for n, k in {b"but": tree.get(b"but")}.items() if k is not None}, **kept}
        found = by_os_walk(home)
        assert found.keys() == expected.keys()
        assert found[b""].keys() == expected[b""].keys()
        remove_below(Fs(), top)
        assert by_os_walk(home) == {b"": {}}


class CountingFs(Fs):
    """Counts the descriptors that are open."""

    open_now = most = 0

    def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
        fd = super().open_dir(at, path, cross=cross)
        self.open_now += 1
        self.most = max(self.most, self.open_now)
        return fd

    def close(self, fd: int) -> None:
        super().close(fd)
        self.open_now -= 1


WALKS: dict[str, Callable[[Fs, int], object]] = {
    "directories": lambda fs, top: sum(len(d.files()) for d in directories(fs, top)),
    "in_key_order": lambda fs, top: sum(1 for _ in in_key_order(fs, top, b"", lambda d: ((n, n) for n in d.files()))),
    "remove_below": lambda fs, top: remove_below(fs, top),
}


@pytest.mark.parametrize("walk", WALKS.values(), ids=WALKS.keys())
@pytest.mark.parametrize(("name", "depth"), [(b"d", 1_500), (b"x" * 255, 40)], ids=["deep", "long"])
def test_depth_costs_no_descriptors_and_no_stack(
    memory: Path, walk: Callable[[Fs, int], int], name: bytes, depth: int
) -> None:
    """Deeper than Python's stack and than a process may have files open; and a path longer than PATH_MAX."""
    fd = os.open(memory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        fd = below
    os.close(fd)
    fs = CountingFs()
    with opened(memory) as top:
        done = walk(fs, top)
        assert done in (depth, None)
        assert (fs.open_now, fs.most) == (0, 1)
        remove_below(fs, top)  # which shutil.rmtree could not
        assert os.listdir(memory) == []


class MeddlingFs(Fs):
    """Something happens to a directory: as it is opened, or after its first entry was read."""

    def __init__(self, path: bytes, *, opened: Callable[[], None], listed: Callable[[], None]) -> None:
        self.path, self.opened, self.listed = path, opened, listed
        self.fd = -1

    def open_dir(self, at: int, path: bytes, *, cross: bool = False) -> int:
        if path == self.path:
            self.opened()
        fd = super().open_dir(at, path, cross=cross)
        self.fd = fd if path == self.path else -1
        return fd

    def entries(self, fd: int) -> Iterator[Entry]:
        for number, entry in enumerate(super().entries(fd)):
            if fd == self.fd and number == 1:
                self.listed()
            yield entry


def fail(number: int) -> Callable[[], None]:
    def failing() -> None:
        raise OSError(number, os.strerror(number))

    return failing


def nothing() -> None:
    pass


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        (tmp_path / "top" / name).mkdir(parents=True)
        for file in ("1", "2"):
            (tmp_path / "top" / name / file).touch()
    return tmp_path / "top"


def replaced_by_link(path: Path) -> None:
    path.rename(path.parent.parent / "away")
    path.symlink_to(path.parent.parent)


def replaced_by_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


@pytest.mark.parametrize("vanish", [shutil.rmtree, replaced_by_link, replaced_by_file])
def test_what_vanishes_meanwhile_is_left_out(three: Path, vanish: Callable[[Path], object]) -> None:
    """Nobody hears of it: it is as if the walk had begun a moment later."""
    fs = MeddlingFs(b"b", opened=lambda: vanish(three / "b") and None, listed=nothing)
    with opened(three) as top:
        assert {d.path: sorted(d.files()) for d in directories(fs, top)} == {
            b"": [],
            b"a": [b"1", b"2"],
            b"c": [b"1", b"2"],
        }


def test_a_tree_that_is_not_there_has_nothing(three: Path) -> None:
    with opened(three) as top:
        assert list(directories(Fs(), top, b"missing")) == []
        assert list(in_key_order(Fs(), top, b"a/1", lambda d: [(d.path, d.path)])) == []


CANNOT_BE_READ = {
    "opened": (fail(errno.EACCES), nothing, errno.EACCES),
    "listed": (nothing, fail(errno.EIO), errno.EIO),
}


@pytest.mark.parametrize(("on_open", "on_list", "number"), CANNOT_BE_READ.values(), ids=CANNOT_BE_READ.keys())
def test_the_caller_hears_of_a_directory_that_cannot_be_read(
    three: Path, on_open: Callable[[], None], on_list: Callable[[], None], number: int
) -> None:
    """With its path; the others are walked all the same. Without anybody to hear of it, the error is raised."""
    fs = MeddlingFs(b"b", opened=on_open, listed=on_list)
    told: list[tuple[bytes, int | None]] = []
    with opened(three) as top:
        found = {d.path: d.files() for d in directories(fs, top, failed=lambda path, e: told.append((path, e.errno)))}
        assert told == [(b"b", number)]
        assert {path: len(files) for path, files in found.items() if path != b"b"} == {b"": 0, b"a": 2, b"c": 2}
        with pytest.raises(OSError, match=os.strerror(number)):
            [d.files() for d in directories(fs, top)]
        with pytest.raises(OSError, match=os.strerror(number)):
            [d.path for d in directories(fs, top)]  # also where the entries interest nobody
        told.clear()
        in_order = in_key_order(
            fs, top, b"", lambda d: [(keys.join(d.path, n),) * 2 for n in d.files()],
            failed=lambda path, e: told.append((path, e.errno)),
        )  # fmt: skip
        assert list(in_order) == [b"a/1", b"a/2", b"c/1", b"c/2"]
        assert told == [(b"b", number)]


@mounts.only_root
def test_no_other_mount_is_entered(tmp_path: Path) -> None:
    """Another filesystem, and a directory of the same one bound there: device numbers would not tell the second."""
    top, other = tmp_path / "top", tmp_path / "other"
    for path in (top / "same", top / "bound", other):
        path.mkdir(parents=True)
    (other / "theirs").touch()
    mounts.cover(other, top / "bound")
    told: dict[bytes, int | None] = {}
    try:
        with mounts.tmpfs(top / "tmpfs") as at, opened(top) as fd:
            (at / "theirs").touch()
            found = [d.path for d in directories(Fs(), fd, failed=lambda path, e: told.update({path: e.errno}))]
            assert sorted(found) == [b"", b"same"]
            assert told == {b"bound": errno.EXDEV, b"tmpfs": errno.EXDEV}
            with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
                remove_below(Fs(), fd)
            assert (at / "theirs").exists()
    finally:
        mounts.clear(top / "bound")
    assert (other / "theirs").exists()
