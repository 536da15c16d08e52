"""The event, the log line and the metrics of a delivery, made from one value, so that they agree.

A line is the name of the outcome, then name=value, with quotes around user input. Under systemd a
line begins with its level, as sd-daemon(3) says.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

from fsrepl.errors import FsreplError, reason
from fsrepl.model import keys
from fsrepl.model.clock import Clock
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import Result, Status, Version
from fsrepl.s3 import events
from fsrepl.storage.eventlog import EventLog
from fsrepl.storage.journal.rows import Delivery, Outcome

log = logging.getLogger("fsrepl")

_LEVELS = {logging.DEBUG: "<7>", logging.INFO: "<6>", logging.WARNING: "<4>", logging.ERROR: "<3>"}
_COMPLAIN_S = 600.0


class Formatter(logging.Formatter):
    """Plain lines: with a level for systemd's journal, with a time elsewhere."""

    def format(self, record: logging.LogRecord) -> str:
        prefix = line_prefix(record.levelno)
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return "\n".join(prefix + line for line in text.splitlines() or [""])


def line_prefix(level: int) -> str:
    if "JOURNAL_STREAM" in os.environ:
        return _LEVELS.get(level, "")
    return time.strftime("%Y-%m-%d %H:%M:%S ") + logging.getLevelName(level) + " "


class Complaint:
    """A lasting fault: logged at once, then at intervals, and when it is over. Used by one thread at a time."""

    def __init__(self, what: str) -> None:
        self._what, self._again_s, self._number = what, 0.0, 0

    def say(self, why: object) -> None:
        self._number += 1
        now_s = time.monotonic()
        if now_s >= self._again_s:
            self._again_s = now_s + _COMPLAIN_S
            log.warning("%s: %s%s", self._what, why, f" (for the {self._number}th time)" if self._number > 1 else "")

    def over(self) -> None:
        if self._number:
            log.info("%s: works again", self._what)
            self._number, self._again_s = 0, 0.0


def rules_of(replication: Replication | None) -> Mapping[tuple[str, str], Rule]:
    """The rules of a configuration, by their id and destination."""
    return {(rule.id, rule.destination): rule for rule in replication.rules} if replication else {}


def result_of(delivery: Delivery, outcome: Outcome, rule: Rule | None) -> Result:
    """The result of a delivery. rule: its rule as it is now, if there still is one."""
    return Result(
        delivery.source, delivery.key, delivery.id, delivery.destination, delivery.rule, outcome.status,
        outcome.reason,
        delivery.marker, delivery.size, delivery.created_ns, delivery.since_ns, delivery.digest, delivery.operation,
        events.tracking(delivery.tracking, rule), bool(delivery.job),
        outcome.crossed_bytes,
    )  # fmt: skip


class Reporter:
    """Logs all lines of a batch at once: the record is most of a line's cost."""

    def __init__(self, eventlog: EventLog, now: Clock) -> None:
        self.eventlog, self._now = eventlog, now
        self._guard = threading.Lock()
        self._completed: dict[tuple[str, str, str], tuple[int, int]] = {}
        self._unwritten = Complaint("events are lost, events.jsonl cannot be written")

    def captured(self, address: str, rows: Iterable[tuple[bytes, str, bool, int, str]]) -> None:
        """Log (key, version id, marker, size, origin) of versions made here. DEBUG: users know that a file changed."""
        if log.isEnabledFor(logging.DEBUG):
            for key, version, marker, size, origin in rows:
                kind = "marker" if marker else "version"
                log.debug(
                    '%s bucket=%s key="%s" version=%s size_bytes=%d origin=%s',
                    kind, address, keys.shown(key), version, size, origin,
                )  # fmt: skip

    def announce(self, results: Sequence[Result]) -> bool:
        """Write the results' events durably, before the record says the same; whether that succeeded.

        The other way round, a power cut between the two would lose them. The same event twice counts once.
        """
        now_ns = self._now()
        return self._write(events.records(results, now_ns))

    def announce_untracked(self, results: Iterable[Result]) -> bool:
        """Write that these results are no longer tracked by their rule's metrics."""
        now_ns = self._now()
        return self._write(events.record(events.Name.UNTRACKED, result, now_ns) for result in results)

    def announce_halt(self, address: str, halt: events.Record) -> bool:
        """Write durably that a bucket's deletions are held; whether that succeeded."""
        return self._write([events.of_halt(address, halt, self._now())])

    def announce_damage(self, address: str, version: Version, damaged_bytes: int, *, repaired: bool) -> bool:
        """Write durably that stored content was damaged; whether that succeeded."""
        return self._write([events.of_damage(address, version, damaged_bytes, self._now(), repaired=repaired)])

    def announce_rewrites(self, address: str, keys: int) -> bool:
        """Write durably that so much of a bucket was rewritten; whether that succeeded."""
        return self._write([events.of_rewrites(address, keys, self._now())])

    def announce_lifecycle(self, records: Iterable[events.Record]) -> bool:
        """Write lifecycle's events durably; whether that succeeded."""
        return self._write(records)

    def _write(self, records: Iterable[events.Record]) -> bool:
        try:
            self.eventlog.append(records)
        except (OSError, FsreplError) as error:
            self._unwritten.say(reason(error))
            return False
        return True

    def settled(self, results: Iterable[Result]) -> None:
        """Log the deliveries that ended, and those that are late: PENDING."""
        now_ns = self._now()
        lines: dict[int, list[str]] = {
            level: [] for level in (logging.INFO, logging.WARNING) if log.isEnabledFor(level)
        }
        completed = []
        for result in results:
            done = result.status is Status.COMPLETED
            if done:
                completed.append(result)
            level = logging.INFO if done else logging.WARNING
            if level not in lines:
                continue
            outcome = {Status.FAILED: "failed", Status.PENDING: "late"}.get(
                result.status, "replicated marker" if result.marker else "replicated"
            )
            why = f" reason={result.reason}" if result.reason else ""
            crossed = "" if result.crossed_bytes is None else f" crossed_bytes={result.crossed_bytes}"
            seconds = max(0.0, (now_ns - result.created_ns) / 1e9)
            lines[level].append(
                f'{outcome} bucket={result.source} key="{keys.shown(result.key)}" '
                f"version={result.version} to={result.destination} size_bytes={result.size_bytes}{crossed} "
                f"seconds={seconds:.3f}{why}"
            )
        if completed:
            self._count(completed)
        for level, group in lines.items():
            if group:
                log.log(level, "%s", "\n".join(group))

    def _count(self, completed: Iterable[Result]) -> None:
        with self._guard:  # each region has a thread
            for result in completed:
                rule = result.source, result.destination, result.rule
                number, size_bytes = self._completed.get(rule, (0, 0))
                self._completed[rule] = number + 1, size_bytes + result.size_bytes

    def completed(self) -> dict[tuple[str, str, str], tuple[int, int]]:
        """The number and bytes of deliveries completed by this process, by (source, destination, rule)."""
        with self._guard:
            return dict(self._completed)

    def close(self) -> None:
        """Nothing is buffered."""
