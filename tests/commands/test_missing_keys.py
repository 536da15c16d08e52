"""A key that is missing, where the bucket has the one that was meant: with another last slash, or shown like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.cli import objects
from fsrepl.commands import why
from fsrepl.errors import Refused
from fsrepl.storage import listing
from tests.world import SOURCE, World, at


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, trees=True) as made:
        made.path("web").mkdir()
        made.path("gone").mkdir()
        made.write("file", b"data")
        made.settle()
        made.path("gone").rmdir()
        made.settle()
        yield made


def find(world: World, key: bytes) -> object:
    with listing.open_bucket(world.engine.site, SOURCE) as bucket:
        return listing.find(bucket, key, None)


def of(name: str, **more: object) -> Callable[[World, bytes], object]:
    return lambda world, key: world.run(name, bucket=SOURCE, key=key, **more)


COMMANDS: dict[str, Callable[[World, bytes], object]] = {
    "head": find,
    "why": lambda world, key: why.why(world.engine.site, at(SOURCE, key), None, {"running": False}),
    "restore": of("object.restore", version_id=None),
    "rm --version-id": of("object.rm", version_id="0"),
    "tag set": of("tag.set", version_id=None, tags={"a": "b"}),
    "retry": lambda world, key: world.run("retry", scope=f"{SOURCE}/{key.decode()}"),
}


def refusal(world: World, command: str, key: bytes) -> str:
    with pytest.raises(Refused) as caught:
        COMMANDS[command](world, key)
    assert caught.value.code == "NoSuchKey"
    return str(caught.value)


def test_a_directory_named_without_its_slash_is_pointed_to(world: World) -> None:
    """Each command on one key names the directory's key; a key that nothing is like gets no such words."""
    for command in COMMANDS:
        assert refusal(world, command, b"web").endswith("; web/ is a key there, that of a directory"), command
        assert "is a key there" not in refusal(world, command, b"none"), command
        assert "; gone/ is a key there, that of a directory" in refusal(world, command, b"gone"), command


@pytest.mark.parametrize("command", ["head", "why", "restore", "rm --version-id", "tag set"])
def test_a_file_named_with_a_slash_is_pointed_to(world: World, command: str) -> None:
    """Also the other way round: `file/`, where `file` is the key."""
    assert refusal(world, command, b"file/").endswith("; file is a key there")


def test_rm_of_a_directory_without_its_slash_adds_a_marker_and_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """S3's rule holds: an unknown key gets a delete marker. The directory stays, and standard error names its key."""
    monkeypatch.setattr(objects, "perform", lambda asked: world.run("object.rm", bucket=SOURCE, key=asked.address.key))
    objects.rm(at(SOURCE, b"web"))
    assert capsys.readouterr().err == f"there was no {SOURCE}/web; web/ is a key there, that of a directory\n"
    assert world.current("web").marker
    world.settle()
    assert not world.current("web/").marker
    assert world.path("web").is_dir()
    for command in ("head", "restore"):  # the key has a marker now, and still no version
        assert refusal(world, command, b"web").endswith("; web/ is a key there, that of a directory")
    objects.rm(at(SOURCE, b"none"))
    assert capsys.readouterr().err == ""


def test_a_name_as_it_was_printed_is_explained(world: World) -> None:
    """Each command says how a shell writes the bytes for which people are shown escapes, where there is such a key."""
    world.path("odd\n").write_bytes(b"data")
    world.settle()
    for command in COMMANDS:
        assert refusal(world, command, b"odd\\x0a").endswith(
            "; \\xNN in a printed name is one byte, and $'odd\\x0a' in bash is that name"
        )
        assert "in bash" not in refusal(world, command, b"even\\x0a"), command
