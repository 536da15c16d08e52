"""How far the scrub of a bucket is, which the journal keeps."""

from __future__ import annotations

from fsrepl.model import scrub
from fsrepl.model.scrub import Scrub
from fsrepl.storage.journal.questions import Facts


def load(facts: Facts, address: str) -> Scrub:
    return scrub.decode(facts.fact(_fact(address)))


def save(facts: Facts, address: str, found: Scrub) -> None:
    with facts.transaction():
        facts.set_fact(_fact(address), scrub.encode(found))


def _fact(address: str) -> str:
    return f"scrub {address}"
