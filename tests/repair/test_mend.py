"""Damaged blocks of large versions: each is replaced alone, by any copy that has it, and the damage is reported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsrepl.settings import reading
from fsrepl.storage import damaged
from tests.replicate.test_large import BLOCK_MAX, SIZE, content, set_up
from tests.stored import stored
from tests.verifying import verify
from tests.world import DESTINATION, SOURCE, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        set_up(made)
        made.set_sharing(west="private")
        made.write("k", content())
        made.settle()
        yield made


def rot(world: World, bucket: str, *places: int) -> Path:
    path = stored(world, "k", bucket)
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"rot")
    return path


@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_a_damaged_block_is_replaced_alone(world: World, bucket: str) -> None:
    """Section 9: from the other region, whichever side was damaged; a second verification finds nothing."""
    path = rot(world, bucket, 2 << 20)
    before = world.engine.limiter.position
    assert verify(world, repair=True) == [(bucket, "k", "DigestMismatch", True)]
    assert world.engine.limiter.position - before <= BLOCK_MAX
    assert path.read_bytes() == content()
    assert verify(world, repair=True) == []
    assert world.leftovers(bucket) == []
    world.stays_quiet()


def test_copies_that_are_all_damaged_mend_one_another(world: World) -> None:
    """Section 9: as long as no block is damaged in all of them."""
    paths = rot(world, SOURCE, 0, 3 << 20), rot(world, DESTINATION, 2 << 20)
    found = verify(world, repair=True)
    assert [(problem, repaired) for _, _, problem, repaired in found] == [("DigestMismatch", True)] * 2
    assert [path.read_bytes() for path in paths] == [content()] * 2


def test_a_block_that_no_copy_has(world: World) -> None:
    """Section 5: it is named, nothing is invented, and what there is stays."""
    paths = [rot(world, bucket, 2 << 20) for bucket in (SOURCE, DESTINATION)]
    world.write("k", content()[: 2 << 20])  # the file in the source has it no longer either
    world.path("k", DESTINATION).write_bytes(b"x")
    before = [path.read_bytes() for path in paths]
    assert ("east/src", "k", "DigestMismatch", False) in verify(world, repair=True)
    assert [path.read_bytes() for path in paths] == before
    world.settle()
    assert world.leftovers(SOURCE) == []


def test_without_any_map_a_block_is_replaced_alone_too(world: World) -> None:
    """Section 9: the map is made again from a good copy."""
    for bucket in (SOURCE, DESTINATION):
        for path in world.path(".fsrepl/blocks", bucket).iterdir():
            path.unlink()
    rot(world, SOURCE, 2 << 20)
    before = world.engine.limiter.position
    assert verify(world, repair=True) == [(SOURCE, "k", "DigestMismatch", True)]
    assert world.engine.limiter.position - before <= BLOCK_MAX


@pytest.mark.parametrize("large", [True, False])
def test_what_was_damaged_is_kept_aside_and_reported(
    world: World, caplog: pytest.LogCaptureFixture, large: bool
) -> None:
    """Section 9: in the log, as an event, and in the counts; the damaged parts are there for people to look at."""
    if not large:
        text = world.settings.path.read_text().replace('large_file = "1MiB"', 'large_file = "1GiB"')
        world.settings.path.write_text(text)
        world.settings = reading.load(world.settings.path)
        world.restart()
    rot(world, SOURCE, 2 << 20)
    verify(world, repair=True)
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("damaged content")]
    assert line.endswith("it is repaired from a good copy")
    (about,) = world.path(".fsrepl/damaged").glob("*.json")
    document = json.loads(about.read_text())
    (part,) = document["Damaged"]
    assert document["Key"] == "k"
    assert part["Length"] <= (BLOCK_MAX if large else SIZE)
    kept = about.with_suffix("").read_bytes()
    assert kept[2 << 20 : (2 << 20) + 3] == b"rot"
    assert kept[part["Offset"] : 2 << 20] == content()[part["Offset"] : 2 << 20]
    events = [json.loads(line) for line in (Path(world.engine.site.state) / "events.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["eventName"] == "Scrub:ContentDamaged"]
    assert event["scrubEventData"] == {"damagedBytes": part["Length"], "repaired": True}
    assert event["s3"]["object"]["key"] == "k"
    assert world.engine.journal.damage(SOURCE) == (1, 1)
    with world.engine.site.bucket(SOURCE).open() as opened:
        assert damaged.forget_old(opened, world.engine.site.now()) == 0
        assert damaged.forget_old(opened, world.engine.site.now() + 31 * 86_400 * 10**9) == 2
