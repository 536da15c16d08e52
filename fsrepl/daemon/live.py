"""The knowledge of a running daemon about its buckets, in answers that do not grow with the backlog.

`status` has the first hundred names of each list and their number, `page` the rest, a page at a time, and
`of_key` all about one key, for `fsrepl why`.
"""

from __future__ import annotations

import base64
import heapq
import time
from operator import itemgetter

from fsrepl.daemon.engine import Engine
from fsrepl.daemon.ssh_region import SshRegion
from fsrepl.daemon.uplink import Uplink
from fsrepl.errors import Usage
from fsrepl.model import keys
from fsrepl.model.address import Address
from fsrepl.model.keys import Document
from fsrepl.region.bucket_state import NAMES, BucketState, Names
from fsrepl.region.delivery_queue import Queue

FIRST = 100
"""Number of names of a list that `status` includes."""
PAGE = 1000


def status(engine: Engine) -> Document:
    """The state of every bucket, blocked routes to destinations, and large objects in transfer."""
    return {
        "buckets": {
            address: state.describe() | _first(state)
            for region in list(engine.regions.values())
            for address, state in list(region.states.items())
        }
        | _of_services(engine),
        "blocked": _blocked(engine),
        "retrying": [each for queue in _queues(engine) for each in queue.reasons()],
        "transfers": _transfers(engine),
    }


def page(engine: Engine, address: str, name: str, after: bytes) -> Document:
    """The names of a list that sort after one of them, as {"items", "after"}; after is null at the end."""
    engine.site.bucket(address)
    if name not in NAMES:
        raise Usage(f"there is no list {name!r}; there are {', '.join(NAMES)}")
    state = engine.region_of(address).states.get(address)
    left = [item for item in NAMES[name](state) if item[0] > after] if state is not None else []
    found = heapq.nsmallest(PAGE, left, key=itemgetter(0))
    last = base64.b64encode(found[-1][0]).decode() if len(left) > len(found) else None
    return {"items": _shown(found), "after": last}


def of_key(engine: Engine, address: Address) -> Document:
    """The state of one key, in the shape of `status`, and why its deliveries wait, as "retries"."""
    source, key = engine.site.bucket(address.bucket).address, address.key
    buckets = {
        other: state.describe()
        | {name: _shown([n for n in names(state) if n[0] == key]) for name, names in NAMES.items()}
        for region in list(engine.regions.values())
        for other, state in list(region.states.items())
    }
    now_s = time.monotonic()
    retries = [each for queue in _queues(engine) if queue.source == source for each in queue.retries(key, now_s)]
    return {
        "running": True,
        "buckets": buckets,
        "retries": retries,
        "blocked": _blocked(engine),
        "transfers": _transfers(engine),
    }


def _of_services(engine: Engine) -> Document:
    """The buckets of regions that only take replicas, which deliveries went to since the start."""
    found: Document = {}
    for each in list(engine.receivers.values()):
        if isinstance(each, Uplink):
            found |= {address: state.describe() for address, state in list(each.states.items())}
        elif isinstance(each, SshRegion):
            found |= {address: state.describe() for address, state in each.states.items()}
    return found


def _first(state: BucketState) -> Document:
    lists = {name: names(state) for name, names in NAMES.items()}
    first = {name: heapq.nsmallest(FIRST, found, key=itemgetter(0)) for name, found in lists.items()}
    return {name: _shown(found) for name, found in first.items()} | {
        "counts": {name: len(found) for name, found in lists.items()}
    }


def _shown(found: Names) -> dict[str, str]:
    return {keys.shown(name): why for name, why in found}


def _queues(engine: Engine) -> list[Queue]:
    return [queue for region in list(engine.receivers.values()) for queue in list(region.queues.values())]


def _blocked(engine: Engine) -> list[Document]:
    now_s = time.monotonic()
    return [blocked for queue in _queues(engine) if (blocked := queue.blocked(now_s))]


def _transfers(engine: Engine) -> list[Document]:
    now_s = time.monotonic()
    return [progress.describe(now_s) for progress in [*engine.transfers, *engine.verifications.under_way()]]
