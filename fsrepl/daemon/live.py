"""What only a running daemon knows of its buckets, in answers that do not grow with the backlog.

`status` has the first hundred of each list of names and how many there are, `page` the rest, a page at a time, and
`of_key` all about one key, which is what `fsrepl why` asks for.
"""

from __future__ import annotations

import base64
import heapq
import time
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

from fsrepl.daemon.engine import Engine
from fsrepl.errors import Usage
from fsrepl.model import keys
from fsrepl.model.address import Address
from fsrepl.region.bucket_state import Place
from fsrepl.region.delivery_queue import Queue

FIRST = 100
"""How many names of a list are told without being asked for."""
PAGE = 1000
_STALLED_S = 10.0

Names = list[tuple[bytes, Any]]
Document = dict[str, Any]


def _unreadable(place: Place) -> Names:
    """Files, and directories with a slash behind them."""
    return [*list(place.unreadable.items()), *((p + b"/", why) for p, why in list(place.trouble.unreadable.items()))]


def _held(place: Place, *, conflict: bool) -> Names:
    return [(key, held.why) for key, held in list(place.held.items()) if held.conflict == conflict]


LISTS: Mapping[str, Callable[[Place], Names]] = {
    "polled": lambda place: [(path, "") for path in list(place.trouble.polled)],
    "mounts": lambda place: [(path, "") for path in list(place.trouble.mounts)],
    "unreadable": _unreadable,
    "behind": lambda place: _held(place, conflict=False),
    "conflicts": lambda place: _held(place, conflict=True),
    "set_aside": lambda place: [*list(place.set_aside.items()), *list(place.undelivered.items())],
    "waiting": lambda place: [(key, later.why) for key, later in list(place.later.items())],
}
"""What a bucket has many of: names, each with the reason where there is one."""


def status(engine: Engine) -> Document:
    """Of every bucket; and the ways to destinations that are blocked, and the large objects on their way."""
    return {
        "buckets": {
            address: _bucket(place) | _first(place)
            for region in list(engine.regions.values())
            for address, place in list(region.places.items())
        },
        "blocked": _blocked(engine),
        "transfers": _transfers(engine),
    }


def page(engine: Engine, address: str, name: str, after: bytes) -> Document:
    """The names of a list that sort behind one of them, as {"items", "after"}; after is null at the end."""
    engine.site.bucket(address)
    if name not in LISTS:
        raise Usage(f"there is no list {name!r}; there are {', '.join(LISTS)}")
    place = engine.region_of(address).places.get(address)
    left = [item for item in LISTS[name](place) if item[0] > after] if place is not None else []
    found = heapq.nsmallest(PAGE, left, key=itemgetter(0))
    last = base64.b64encode(found[-1][0]).decode() if len(left) > len(found) else None
    return {"items": _shown(found), "after": last}


def of_key(engine: Engine, address: Address) -> Document:
    """What concerns one key of a bucket, in the shape of `status`, and why its deliveries wait, as "retries"."""
    source, key = engine.site.bucket(address.bucket).address, address.key
    buckets = {
        other: _bucket(place)
        | {name: _shown([n for n in names(place) if n[0] == key]) for name, names in LISTS.items()}
        for region in list(engine.regions.values())
        for other, place in list(region.places.items())
    }
    retries = [
        {
            "source": queue.source, "destination": queue.destination, "key": keys.shown(key), "version": version,
            "why": why, "seconds": max(0.0, due_s - time.monotonic()), "attempts": attempts,
        }
        for queue in _queues(engine)
        if queue.source == source
        for (noted, version), (due_s, why, attempts) in list(queue.notes.items())
        if noted == key
    ]  # fmt: skip
    return {
        "running": True,
        "buckets": buckets,
        "retries": retries,
        "blocked": _blocked(engine),
        "transfers": _transfers(engine),
    }


def _bucket(place: Place) -> Document:
    trouble = place.bucket.trouble or (f"{place.bucket.address}: {place.put_down}" if place.put_down else "")
    return {
        "online": place.up or not trouble,
        "trouble": trouble,
        "scanning": bool(place.scans),
        "skipped": place.trouble.skipped_number if place.up and place.scanned else None,
        "paused": place.paused,
        "exposed": place.bucket.exposed,
    }


def _first(place: Place) -> Document:
    lists = {name: names(place) for name, names in LISTS.items()}
    first = {name: heapq.nsmallest(FIRST, found, key=itemgetter(0)) for name, found in lists.items()}
    return {name: _shown(found) for name, found in first.items()} | {
        "counts": {name: len(found) for name, found in lists.items()}
    }


def _shown(found: Names) -> dict[str, str]:
    return {keys.shown(name): why for name, why in found}


def _queues(engine: Engine) -> list[Queue]:
    return [queue for region in list(engine.regions.values()) for queue in list(region.queues.values())]


def _blocked(engine: Engine) -> list[Document]:
    return [
        {
            "source": queue.source, "destination": queue.destination, "why": queue.blocked_why,
            "seconds": max(0.0, queue.blocked_until_s - time.monotonic()),
        }
        for queue in _queues(engine)
        if queue.blocked_why
    ]  # fmt: skip


def _transfers(engine: Engine) -> list[Document]:
    now_s = time.monotonic()
    return [
        {
            "key": keys.shown(t.key), "source": t.source, "destination": t.destination,
            "bytes_done": t.bytes_done, "bytes_total": t.bytes_total,
            **({"bytes_verified": t.bytes_verified} if t.bytes_verified else {}),
            **({"stalled_seconds": now_s - t.moved_at_s} if not t.paced and now_s - t.moved_at_s > _STALLED_S else {}),
        }
        for t in list(engine.transfers)
    ]  # fmt: skip
