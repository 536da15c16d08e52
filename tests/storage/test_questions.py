"""Steps that ask the journal little are answered from memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from fsrepl.lifecycle import run
from fsrepl.model.scrub import Scrub
from fsrepl.model.version import Version
from fsrepl.model.view import View
from fsrepl.repair import scrub_state
from fsrepl.s3.lifecycle import DAY_NS
from fsrepl.storage.journal.rows import Object
from fsrepl.views import view_metadata

BUCKET: Any = SimpleNamespace(address="east/src")


class Remembered:
    """Facts, in memory."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}

    def fact(self, name: str) -> str:
        return self.facts.get(name, "")

    def set_fact(self, name: str, value: str) -> None:
        self.facts[name] = value

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Known:
    """CurrentVersions, in memory: those of one bucket."""

    def __init__(self, objects: dict[bytes, Object]) -> None:
        self.objects = objects

    def object(self, address: str, key: bytes) -> Object | None:
        assert address == BUCKET.address
        return self.objects.get(key)

    def look_up(self, address: str, keys_: Iterable[bytes]) -> dict[bytes, Object]:
        return {key: known for key in keys_ if (known := self.object(address, key)) is not None}


def test_how_far_a_scrub_is_is_a_fact() -> None:
    """G11: read as it was written, each bucket for itself."""
    facts = Remembered()
    assert scrub_state.load(facts, "east/src") == Scrub()
    scrub_state.save(facts, "east/src", replace(Scrub(), paused=True))
    assert scrub_state.load(facts, "east/src").paused
    assert not scrub_state.load(facts, "west/dst").paused


def test_new_rules_wait_for_the_next_midnight_once() -> None:
    """s3-semantics, 5.3: rules that are changed again the next day do not postpone what is due."""
    facts = Remembered()
    run.begin(facts, "east/src", 5 * DAY_NS + 7)
    first = dict(facts.facts)
    assert list(first.values()) == [str(5 * DAY_NS)]
    run.begin(facts, "east/src", 6 * DAY_NS + 7)
    assert facts.facts == first
    run.remember(facts, "east/src", 6 * DAY_NS + 7)
    assert list(facts.facts.values()) == [str(6 * DAY_NS)]


@pytest.mark.parametrize(("shown", "is_shown"), [("1", True), ("0", False), ("", False)])
def test_a_view_shows_the_version_that_is_recorded(shown: str, is_shown: bool) -> None:
    """Section 7: metadata goes to a view only where that shows the version."""
    view = View(1, 2, 3, 4, 0o644, shown=shown)
    current = Known({b"k": Object("1", 0, False, b"digest", view)})
    found = view_metadata.shown_view(current, BUCKET, Version(b"k", "1", 0, False))
    assert found == (view if is_shown else None)
    assert view_metadata.shown_view(current, BUCKET, Version(b"other", "1", 0, False)) is None
