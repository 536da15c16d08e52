"""Many files of a bucket are rewritten with content that looks encrypted: a person is told, and nothing is held."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fsrepl.region.rewrites import KEYS_MIN
from tests.world import DESTINATION, SOURCE, World

TEXT = b"The quick brown fox jumps over the lazy dog. " * 4


def _fill(world: World, data: bytes, number: int = KEYS_MIN + 20) -> None:
    for each in range(number):
        world.write(f"d{each % 7}/{each}", data)
    world.settle()


def _encrypt(world: World, number: int = KEYS_MIN + 20) -> None:
    for each in range(number):
        world.drop(f"d{each % 7}/{each}", os.urandom(200))
    world.settle()


def _told(world: World) -> list[dict[str, object]]:
    path = Path(world.engine.site.state) / "events.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [each["rewriteEventData"] for each in records if each["eventName"] == "Capture:ContentRewritten"]


def test_it_is_said_once(memory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The whole bucket: a warning, an event, a count that outlives the daemon; and all of it crosses."""
    with World(memory) as world:
        _fill(world, TEXT)
        assert _told(world) == []
        _encrypt(world)
        (told,) = _told(world)
        assert isinstance(told["keys"], int)
        assert told["keys"] >= KEYS_MIN
        assert caplog.text.count("rewritten bucket=east/src") == 1
        assert world.tree(SOURCE) == world.tree(DESTINATION)
        _fill(world, TEXT)
        _encrypt(world)
        assert len(_told(world)) == 1
        world.restart()
        assert world.engine.journal.rewrites(SOURCE) == 1


def test_other_writes_are_no_news(memory: Path) -> None:
    """Text, new files, files that were compressed before, a few files: whatever they look like."""
    with World(memory) as world:
        _encrypt(world)
        _encrypt(world)
        assert _told(world) == []
    with World(memory / "few") as world:
        _fill(world, TEXT)
        _encrypt(world, KEYS_MIN // 2)
        _fill(world, TEXT[1:])
        assert _told(world) == []
