"""The metrics of s3-semantics, 3.5, per rule and destination: plain values, counted in the journal.

A restart changes none of them (G11), except for Prometheus' counters of what was replicated, which begin with a
process. They are counted for every rule, whether or not S3's metrics are on for it, since they cost nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from msgspec import Struct, field

from fsrepl.repair import scrub_state
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.questions import DeliveryCounts, Rule
from fsrepl.storage.journal.rows import Counts
from fsrepl.storage.site import Site

_MINUTE_NS = 60_000_000_000


class RuleMetrics(Struct, frozen=True):
    """S3's metrics of one rule. Pending counts live replication alone; failures of the last minute count both kinds."""

    bytes_pending: int = 0
    latency_s: float = 0.0
    """The age of the oldest pending delivery, in seconds."""
    operations_pending: int = 0
    operations_failed: int = 0

    def document(self) -> dict[str, float]:
        """The metrics by S3's names. Source: s3-semantics, 3.5."""
        return {
            "BytesPendingReplication": self.bytes_pending,
            "ReplicationLatency": self.latency_s,
            "OperationsPendingReplication": self.operations_pending,
            "OperationsFailedReplication": self.operations_failed,
        }


def of_bucket(deliveries: DeliveryCounts, address: str, now_ns: int) -> dict[Rule, RuleMetrics]:
    """The metrics of each rule of a source that has pending or failed deliveries."""
    pending = deliveries.live_pending_counts(address)
    failed = deliveries.failed_counts(address, now_ns - _MINUTE_NS)
    out = {}
    for rule in pending.keys() | failed.keys():
        counts = pending.get(rule, Counts())
        behind_ns = max(0, now_ns - counts.oldest_ns) if counts.number else 0
        out[rule] = RuleMetrics(counts.bytes, round(behind_ns / 1e9, 3), counts.number, failed.get(rule, 0))
    return out


class Gauge(Struct, frozen=True):
    """One number for Prometheus, with its name and labels."""

    name: str
    about: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()
    is_counter: bool = False
    """Whether it counts from the start of the daemon, and never falls until then."""


class Daemon(Struct, frozen=True):
    """Numbers that only the running daemon knows."""

    ready: bool
    watched: int
    events_lost: int
    spaces: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes that are free for users, and all, of each region that answers."""
    completed: Mapping[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)
    """Number and bytes of the deliveries completed since the daemon was started, by source, destination and rule."""
    log_dropped: int = 0
    """Lines of the log that were dropped since then, because they were not read."""


def gauges(site: Site, journal: Journal, daemon: Daemon) -> Iterator[Gauge]:
    """All exported gauges: the daemon's, and each rule's, including rules without deliveries."""
    yield Gauge(
        "fsrepl_ready",
        "1 once every bucket is watched; a bucket without an earlier scan is watched once it is scanned.",
        daemon.ready,
    )
    yield Gauge("fsrepl_watched_directories", "Directories whose changes are noticed at once.", daemon.watched)
    yield Gauge("fsrepl_events_lost", "How often file events were lost, and scanned for.", daemon.events_lost)
    about = "Lines of the log that were dropped, since nobody read them."
    yield Gauge("fsrepl_log_lines_dropped", about, daemon.log_dropped, is_counter=True)
    yield from _spaces(site, daemon)
    for address, bucket in sorted(site.buckets.items()):
        yield Gauge("fsrepl_bucket_online", "1 while a bucket can be used.", not bucket.trouble, (("bucket", address),))
    for address, bucket in sorted(site.buckets.items()):
        halted = bucket.halt is not None
        about = "1 while deletions of a bucket are held, since too much was deleted at once."
        yield Gauge("fsrepl_bucket_halted", about, halted, (("bucket", address),))
    for address in sorted(site.buckets):
        found_, repaired = journal.damage(address)
        scrubbed = scrub_state.load(journal, address)
        about = "When the last complete scrub of a bucket ended, in seconds since the epoch; 0 without one."
        ended_s = scrubbed.result.ended_ns / 1e9 if scrubbed.result is not None else 0
        yield Gauge("fsrepl_scrub_ended_seconds", about, ended_s, (("bucket", address),))
        about = "How often stored content was found damaged."
        yield Gauge("fsrepl_damage_found", about, found_, (("bucket", address),))
        about = "How often damaged content was repaired from a good copy."
        yield Gauge("fsrepl_damage_repaired", about, repaired, (("bucket", address),))
        about = "How often many files were rewritten at once with content that looks encrypted."
        yield Gauge("fsrepl_rewrites_suspected", about, journal.rewrites(address), (("bucket", address),))
    for address, bucket in sorted(site.buckets.items()):
        found = of_bucket(journal.deliveries, address, site.now())
        failed, large = journal.deliveries.failed_counts(address), journal.crossed(address)
        rules = {(r.destination, r.id) for r in bucket.replication.rules} if bucket.replication else set()
        for rule in sorted(rules | found.keys() | failed.keys()):
            labels = (("source", address), ("destination", rule[0]), ("rule", rule[1]))
            yield from _of_rule(found.get(rule, RuleMetrics()), failed.get(rule, 0), labels)
            yield from _of_completed(daemon.completed.get((address, *rule), (0, 0)), labels)
            size, crossed = large.get(rule, (0, 0))
            yield Gauge(
                "fsrepl_large_bytes_replicated", "Bytes of the large objects that were delivered.", size, labels
            )
            about = "The part of them that crossed in the tries that completed, since the destination lacked it."
            yield Gauge("fsrepl_large_bytes_crossed", about, crossed, labels)


def _spaces(site: Site, daemon: Daemon) -> Iterator[Gauge]:
    """Each region: whether it answers, and its space. The space of a region that is away or hangs is unknown."""
    for name in sorted(site.settings.regions):
        label = (("region", name),)
        yield Gauge("fsrepl_region_online", "1 while a region answers.", name in daemon.spaces, label)
    for name, (free, total) in sorted(daemon.spaces.items()):
        label = (("region", name),)
        kept = site.settings.capture.keep_free.needed(total)
        yield Gauge("fsrepl_region_free_bytes", "Bytes that are free in a region.", free, label)
        yield Gauge("fsrepl_region_size_bytes", "The size of a region's filesystem.", total, label)
        yield Gauge("fsrepl_region_keep_free_bytes", "With less space free, capture pauses there.", kept, label)


def _of_completed(completed: tuple[int, int], labels: tuple[tuple[str, str], ...]) -> Iterator[Gauge]:
    about = "Operations replicated since the daemon was started."
    yield Gauge("fsrepl_operations_replicated", about, completed[0], labels, is_counter=True)
    about = "Their bytes."
    yield Gauge("fsrepl_bytes_replicated", about, completed[1], labels, is_counter=True)


def _of_rule(found: RuleMetrics, failed: int, labels: tuple[tuple[str, str], ...]) -> Iterator[Gauge]:
    for name, about, value in (
        ("bytes_pending_replication", "Bytes that wait to be replicated.", found.bytes_pending),
        ("replication_latency_seconds", "How far the destination is behind.", found.latency_s),
        ("operations_pending_replication", "Operations that wait to be replicated.", found.operations_pending),
        ("operations_failed_replication", "Operations that failed in the last minute.", found.operations_failed),
        ("deliveries_failed", "Deliveries that are FAILED, for a person to act.", failed),
    ):
        yield Gauge(f"fsrepl_{name}", about, value, labels)
