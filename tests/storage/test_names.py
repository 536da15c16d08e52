"""Every name that a file can have is a key: sections 2 and 3."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from fsrepl.storage import listing
from tests.world import DESTINATION, SOURCE, World

ID = "01KB7ZK8Q0000000000000000A"
DIGEST = "0123456789abcdef" * 2

NAMES = [
    "new\nline", "tab\there", " ", "-rf", "*", "'\"\\", ";", "..x", "\x01\x7f", "a", "A",
    "caf\u00e9", "cafe\u0301", "\U0001f600", os.fsdecode(b"\xff\xfe\x80"),
    f"a;{ID}", f"a;{ID};deleted", f"a;{ID};meta.json", "a;null", "a;null;deleted", ";null", "x;deleted",
    f"~{DIGEST}", f"~{DIGEST}more", "~short", "n" * 218, "n" * 219, "n" * 255,
    "d/.fsrepl", "e/.fsrepl/versions/x", "dir;null/x", f"~{DIGEST[::-1]}/x", "/".join(["D" * 250] * 3),
    f"d;null/a;{ID}", f"~{DIGEST[::-1]}/~{DIGEST}",
]  # fmt: skip


def test_names_of_all_kinds(tmp_path: Path) -> None:
    """Section 2: each is captured, replicated, kept apart from fsrepl's own names, and survives the loss of the
    journal."""
    wanted = {name: name.encode("utf-8", "surrogateescape") for name in NAMES}
    with World(tmp_path) as world:
        for name, data in wanted.items():
            world.write(name, data)
        world.settle()
        assert world.tree(DESTINATION) == world.tree(SOURCE) == wanted
        ids = world.ids(SOURCE)
        assert ids == world.ids(DESTINATION)
        assert {key: len(versions) for key, versions in ids.items()} == dict.fromkeys(wanted.values(), 1)
        with world.engine.site.bucket(SOURCE).open() as opened:
            found = {key: [version.id for version in listing.versions_of(opened, key)] for key in ids}
        assert found == {key: [version[0] for version in versions] for key, versions in ids.items()}
        world.restart(without_journal=True)
        world.settle()
        assert world.ids(SOURCE) == world.ids(DESTINATION) == ids
        for name in wanted:
            world.path(name).unlink()
        world.settle()
        assert world.tree(DESTINATION) == {}
        assert {len(versions) for versions in world.ids(DESTINATION).values()} == {2}


def make_deep(top: Path, names: Sequence[bytes], data: bytes) -> None:
    """Make a file `f` below directories whose path is too long for one call."""
    with contextlib.ExitStack() as stack:
        at = _open(stack, top)
        for name in names:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=at)
            at = _open(stack, name, at)
        fd = os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=at)
        os.write(fd, data)
        os.close(fd)


def read_deep(top: Path, names: Sequence[bytes]) -> bytes:
    with contextlib.ExitStack() as stack:
        at = _open(stack, top)
        for name in names:
            at = _open(stack, name, at)
        fd = os.open("f", os.O_RDONLY, dir_fd=at)
        stack.callback(os.close, fd)
        return os.read(fd, 100)


def _open(stack: contextlib.ExitStack, path: bytes | Path, at: int | None = None) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
    stack.callback(os.close, fd)
    return fd


@pytest.mark.parametrize(
    "names", [[b"k" * 200] * 6, [b"p" * 200] * 40, [b"D" * 240] * 20, [b"s"] * 1200], ids=lambda names: str(len(names))
)
def test_paths_that_are_too_long_for_a_call(tmp_path: Path, names: list[bytes]) -> None:
    """Section 2: a key may be longer than S3's 1,024 bytes and than PATH_MAX, and deeper than the stack of a
    program."""
    try:
        with World(tmp_path) as world:
            make_deep(world.path(), names, b"deep")
            world.settle()
            assert read_deep(world.path(bucket=DESTINATION), names) == b"deep"
            with world.engine.site.bucket(DESTINATION).open() as bucket:
                assert [group[0].key for group in listing.versions_below(bucket)] == [b"/".join([*names, b"f"])]
            with contextlib.ExitStack() as stack:
                at = _open(stack, world.path())
                for name in names:
                    at = _open(stack, name, at)
                os.unlink("f", dir_fd=at)
            world.settle()
            assert os.listdir(world.path(bucket=DESTINATION)) == [".fsrepl"]
    finally:
        subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)  # pytest's own clean-up cannot


@pytest.mark.parametrize(
    "key", ["n" * 256, f"{'d' * 300}/f", "/".join(["p" * 250] * 20)], ids=lambda key: str(len(key))
)
def test_a_key_that_no_file_can_have_is_deleted_like_any_other(tmp_path: Path, key: str) -> None:
    """Section 5: `rm` of an unknown key adds a marker, as in S3, which crosses; there is no file to wait for."""
    with World(tmp_path) as world:
        world.remove(key)
        world.region().look_at(SOURCE, [key.encode()])  # as each command does on the key that it names
        world.settle()
        assert [version.marker for version in world.of(key)] == [True]
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        for bucket in (SOURCE, DESTINATION):
            assert not world.state(bucket).captures.deferred
        world.stays_quiet()


def test_what_is_no_file_is_no_version(tmp_path: Path) -> None:
    """G9, section 2: a link or a FIFO in the store under a version's name is skipped, also in listings."""
    with World(tmp_path) as world:
        world.write("k", b"k")
        world.settle()
        store = world.path(".fsrepl/versions")
        (store / f"link;{ID}").symlink_to("/etc/passwd")
        os.mkfifo(store / f"fifo;{ID}")
        world.restart(without_journal=True)
        world.settle()
        assert list(world.history(SOURCE)) == [b"k"]
        with world.engine.site.bucket(SOURCE).open() as bucket:
            assert [group[0].key for group in listing.versions_below(bucket)] == [b"k"]


def test_commands_print_the_exact_bytes_of_a_key(tmp_path: Path) -> None:
    """Section 5: for a key that is not UTF-8 every command prints KeyBase64, those that change something too."""
    key = b"k\xff"
    with World(tmp_path) as world:
        world.write(os.fsdecode(key), b"data")
        world.settle()
        on = {"bucket": SOURCE, "key": key}
        tagged = world.run("tag.set", **on, tags={"n": os.fsdecode(b"v\xff")})
        gone = world.run("object.rm", **on, version_id=None)
        back = world.run("object.restore", **on, version_id=None)
        for answer in (tagged, gone, back, world.run("object.restore", **on, version_id=None)):
            assert (answer["Key"], answer["KeyBase64"]) == (r"k\xff", "a/8=")
        assert tagged["TagSet"] == [{"Key": "n", "Value": r"v\xff"}]
