"""Tiers as JSON: what lies in them, and what is to be moved. Counted in the journal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from msgspec import Struct

from fsrepl.errors import FsreplError
from fsrepl.lifecycle.wanted_tier import PLACED_MIN_BYTES, to_be_moved
from fsrepl.model.keys import Document
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import read_tier
from fsrepl.storage.site import Site
from fsrepl.storage.tiers import Tier, tier_address


class Held(Struct):
    """Versions whose content lies in a tier, and those that are to be moved there. bytes: of the content itself."""

    versions: int = 0
    bytes: int = 0
    waiting: int = 0
    waiting_bytes: int = 0


def held(site: Site, journal: Journal, addresses: Iterable[str] | None = None) -> Mapping[str, Held]:
    """By tier, "REGION/CLASS", for all buckets or some; content that is to be moved back counts at
    "REGION/STANDARD"."""
    found: dict[str, Held] = defaultdict(Held)
    for address in site.buckets if addresses is None else addresses:
        bucket = site.buckets[address]
        if not bucket.root.settings.classes:
            continue
        for traits, is_small, number, size in journal.totals.classed(address, PLACED_MIN_BYTES):
            if tier := read_tier(traits):
                each = found[tier_address(bucket.region, tier)]
                each.versions, each.bytes = each.versions + number, each.bytes + size
            if (to := to_be_moved(bucket, traits, 0 if is_small else PLACED_MIN_BYTES)) is not None:
                each = found[tier_address(bucket.region, to or "STANDARD")]
                each.waiting, each.waiting_bytes = each.waiting + number, each.waiting_bytes + size
    return found


def tiers(site: Site, journal: Journal) -> list[Document]:
    """Each tier of the settings, whether it is online, and what lies in it."""
    counts = held(site, journal)
    return [_tier(tier, counts.get(tier.address, Held())) for tier in site.tiers()]


def _tier(tier: Tier, counts: Held) -> Document:
    trouble = ""
    try:
        with tier.open():
            pass
    except FsreplError as error:
        trouble = str(error)
    return {
        "Tier": tier.address,
        "Path": str(tier.settings.path),
        "Online": not trouble,
        "Draining": tier.settings.drain,
        "Versions": counts.versions,
        "Bytes": counts.bytes,
        "Waiting": counts.waiting,
        "WaitingBytes": counts.waiting_bytes,
        **({"Trouble": trouble} if trouble else {}),
    }
