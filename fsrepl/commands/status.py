"""The document of `fsrepl status`: counted in the journal, the index of all records, so that a restart changes
nothing (G11). The running daemon adds what only it knows: what waits, why, and until when.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fsrepl.commands import reader
from fsrepl.commands.documents import tiers
from fsrepl.commands.reader import Document
from fsrepl.daemon import metrics
from fsrepl.daemon.metrics import RuleMetrics
from fsrepl.errors import FsreplError
from fsrepl.model import keys
from fsrepl.model.version import Versioning
from fsrepl.repair import scrub_state
from fsrepl.storage import halt
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.questions import Rule
from fsrepl.storage.journal.rows import Counts
from fsrepl.storage.site import Site
from fsrepl.views import obstacles

_UNSHOWN_MAX = 1000
_LINKED_MAX = 200
_COUNTED = {name: name for name in ("polled", "mounts", "unreadable", "set_aside", "uncaptured")} | {
    "behind": "views_behind"
}
"""The daemon's lists of which status names the first entries only, and their names in its document."""


def status(site: Site, said: Document) -> Document:
    """The document of `status --json`. said: the daemon's status."""
    with reader.reader(site) as journal_:
        buckets = [_bucket(site, journal_, address, said) for address in sorted(site.buckets)]
        buckets += [_of_service(journal_, a, said) for name in site.destinations for a in site.destinations_in(name)]
        tiers_ = tiers.tiers(site, journal_)
    return {
        "daemon": {
            "running": bool(said.get("running")),
            "pid": said.get("pid"),
            "ready": bool(said.get("ready")),
            "since": said.get("since"),
            **({"trouble": said["trouble"]} if "trouble" in said else {}),
            **{name: said[name] for name in ("watched", "events_lost", "stuck") if name in said},
        },
        "buckets": buckets,
        "transfers": said.get("transfers", []),
        **({"tiers": tiers_} if tiers_ else {}),
        **({"unattached": unattached} if (unattached := site.unattached()) else {}),
    }


def _bucket(site: Site, journal_: Journal, address: str, said: Document) -> Document:
    bucket = site.buckets[address]
    conflicts: list[Document] = []
    linked = 0
    halted: halt.Halt | None = None
    alive: Mapping[str, Any] = said.get("buckets", {}).get(address, {})
    with contextlib.suppress(FsreplError, OSError), bucket.open() as opened:
        halted = halt.read(opened.fs, opened.meta)
        conflicts = _conflicts(opened, journal_, alive.get("conflicts", {}))
        linked = _linked(opened, journal_)
    skipped = alive.get("skipped")
    total = journal_.totals.counts(address)
    counts = journal_.deliveries.counts(address)
    trouble = bucket.trouble or alive.get("trouble", "")
    pending = _sum(counts, "PENDING")
    now_ns = site.now()
    document: Document = {
        "bucket": address,
        "online": not trouble,
        "versioning": str(bucket.versioning),
        "objects": total.objects,
        "versions": total.versions,
        "bytes": total.bytes,
        "noncurrent_bytes": total.bytes - total.current_bytes,
        "pending": pending.number,
        "pending_bytes": pending.bytes,
        "failed": _sum(counts, "FAILED").number,
        "skipped": journal_.skipped(address) if skipped is None else skipped,
        "lag_seconds": _lag(pending, now_ns),
        "rules": _rules(
            site,
            address,
            counts,
            metrics.of_bucket(journal_.deliveries, address, now_ns),
            journal_.crossed(address),
            now_ns,
        ),
    }
    if bucket.versioning is not Versioning.OFF:
        document["scrub"] = scrub_state.load(journal_, address).document()
    if trouble:
        document["trouble"] = trouble
    if halted is not None:
        document["halted"] = halted.document() | {"held": journal_.deliveries.count_held(address)}
    if moving := _moving(site, journal_, address, alive.get("moves_wait", "")):
        document["moving"] = moving
    if alive.get("lifecycle_waits"):
        document["lifecycle_waits"] = alive["lifecycle_waits"]
    if linked:
        document["linked"] = linked
    if conflicts:
        document["view_conflicts"] = conflicts
    return document | _at_work(address, said, alive)


def _at_work(address: str, said: Mapping[str, Any], alive: Mapping[str, Any]) -> Document:
    """The part of a bucket's document that only a running daemon knows: its work there, and what waits, and why."""
    document: Document = {}
    for name in ("scanning", "paused", "exposed", "unreadable"):
        if alive.get(name):
            document[name] = alive[name]
    if alive.get("paused"):
        document["waiting"] = alive.get("counts", {}).get("waiting", 0)
    for name in ("polled", "mounts"):
        if alive.get(name):
            document[name] = list(alive[name])
    if behind := [{"Key": name, "Why": why} for name, why in alive.get("behind", {}).items()]:
        document["views_behind"] = behind
    if aside := [{"Key": name, "Why": why} for name, why in alive.get("set_aside", {}).items()]:
        document["set_aside"] = aside
    if uncaptured := [{"Key": name, "Why": why} for name, why in alive.get("uncaptured", {}).items()]:
        document["uncaptured"] = uncaptured
    if counts_ := {_COUNTED[name]: n for name, n in alive.get("counts", {}).items() if n and name in _COUNTED}:
        document["counts"] = counts_
    blocked = [b for b in said.get("blocked", []) if b["source"] == address]
    if blocked:
        document["blocked"] = [{"destination": b["destination"], "why": b["why"]} for b in blocked]
    if retrying := [r for r in said.get("retrying", []) if r["source"] == address]:
        document["retrying"] = [{name: r[name] for name in ("destination", "why", "deliveries")} for r in retrying]
    return document


def _moving(site: Site, journal_: Journal, address: str, why: str) -> list[Document]:
    """The content that is to be moved to tiers, or back to STANDARD. why: the reason why the last try failed."""
    found = tiers.held(site, journal_, [address])
    return [
        {"tier": tier, "versions": each.waiting, "bytes": each.waiting_bytes, **({"why": why} if why else {})}
        for tier, each in sorted(found.items())
        if each.waiting
    ]


def _of_service(journal_: Journal, address: str, said: Document) -> Document:
    """A bucket that is no tree here: what the journal has of it, and what the daemon last saw."""
    alive: Mapping[str, Any] = said.get("buckets", {}).get(address, {})
    found = journal_.remote.counts(address)
    if not found.versions:  # only of S3 services there are rows of their own
        found = journal_.remote.delivered_counts(address)
    trouble = alive.get("trouble", "")
    return {
        "bucket": address,
        "online": not trouble,
        "versioning": str(Versioning.ENABLED) if alive.get("seen") else "",
        "seen": bool(alive.get("seen")),
        "objects": found.objects,
        "versions": found.versions,
        "bytes": found.bytes,
        "noncurrent_bytes": found.bytes - found.current_bytes,
        "pending": 0,
        "pending_bytes": 0,
        "failed": 0,
        "skipped": 0,
        "lag_seconds": 0,
        "rules": [],
        **({"trouble": trouble} if trouble else {}),
        **({"throttled": alive["throttled"]} if alive.get("throttled") else {}),
    }


def _conflicts(bucket: OpenBucket, journal_: Journal, known: Mapping[str, str]) -> list[Document]:
    """The keys whose views are obstructed, and by what; no more than a person would read. known: what the daemon met
    by key: an object that this filesystem, or a bucket that is no tree bucket, cannot show has nothing in its way."""
    unshown = journal_.views.unshown(bucket.address, _UNSHOWN_MAX)
    found = ((key, obstacles.describe(bucket, key) or known.get(keys.shown(key), "")) for key in unshown)
    return [keys.key_document(key) | {"Reason": "ViewConflict", "Why": why} for key, why in found if why]


def _linked(bucket: OpenBucket, journal_: Journal) -> int:
    """The number of keys whose file is also another key's file.

    While a directory is renamed the journal has files under their old names and their new ones. So some of the files
    are looked at, and where these have one name only, just those that have more are counted.
    """
    number = journal_.totals.linked(bucket.address)
    if not number:
        return 0
    looked = [_there(bucket, group) for group in journal_.views.linked(bucket.address, limit=_LINKED_MAX)]
    return number if all(looked) else sum(looked)


def _there(bucket: OpenBucket, group: Sequence[bytes]) -> int:
    """How many of some keys have the same file as another one of them; 0 where they are different ones."""
    inodes: Counter[int] = Counter()
    for key in group:
        with contextlib.suppress(OSError):
            inodes[bucket.view_status(key).st_ino] += 1
    return sum(number for number in inodes.values() if number > 1)


def _sum(counts: Mapping[tuple[str, str, str], Counts], status: str, destination: str = "", rule: str = "") -> Counts:
    found = [c for (d, r, s), c in counts.items() if s == status and destination in ("", d) and rule in ("", r)]
    oldest = min((c.oldest_ns for c in found if c.number), default=0)
    return Counts(sum(c.number for c in found), sum(c.bytes for c in found), oldest)


def _lag(pending: Counts, now_ns: int) -> float:
    """The age of the oldest pending delivery, in seconds; 0 without one."""
    return round(max(0, now_ns - pending.oldest_ns) / 1e9, 3) if pending.number else 0


def _rules(
    site: Site,
    address: str,
    counts: Mapping[tuple[str, str, str], Counts],
    measured: Mapping[Rule, RuleMetrics],
    large: Mapping[Rule, tuple[int, int]],
    now_ns: int,
) -> list[Document]:
    """A row for each rule, and for each removed rule that still has deliveries.

    A rule is Unknown while the bucket's document cannot be read.
    """
    bucket = site.buckets[address]
    replication = bucket.replication
    rows: dict[tuple[str, str], str] = {}
    for rule in replication.rules if replication else ():
        rows[rule.destination, rule.id] = "Enabled" if rule.enabled else "Disabled"
    for destination, rule_id, _ in counts:
        rows.setdefault((destination, rule_id), "Unknown" if bucket.trouble else "Removed")
    out = []
    for (destination, rule_id), state in rows.items():
        completed = _sum(counts, "COMPLETED", destination, rule_id)
        pending = _sum(counts, "PENDING", destination, rule_id)
        out.append(
            {
                "id": rule_id,
                "status": state,
                "destination": destination,
                "pending": pending.number,
                "pending_bytes": pending.bytes,
                "failed": _sum(counts, "FAILED", destination, rule_id).number,
                "lag_seconds": _lag(pending, now_ns),
                "completed": completed.number,
                "completed_bytes": completed.bytes,
                **_large(large.get((destination, rule_id))),
                "metrics": measured.get((destination, rule_id), RuleMetrics()).document(),
            }
        )
    return out


def _large(found: tuple[int, int] | None) -> Document:
    """The bytes of large objects that a rule delivered, and the part that crossed."""
    return {"large_bytes": found[0], "large_bytes_crossed": found[1]} if found else {}
