"""How far the scrub of a bucket is, which the journal keeps."""

from __future__ import annotations

from fsrepl.model import scrub
from fsrepl.model.scrub import Scrub
from fsrepl.storage.journal.database import Journal


def load(journal: Journal, address: str) -> Scrub:
    return scrub.decode(journal.fact(_fact(address)))


def save(journal: Journal, address: str, found: Scrub) -> None:
    with journal.transaction():
        journal.set_fact(_fact(address), scrub.encode(found))


def _fact(address: str) -> str:
    return f"scrub {address}"
