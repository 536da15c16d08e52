"""Deliveries as JSON: those with a status, and the kinds of failures with what a person can do."""

from __future__ import annotations

from fsrepl.commands.why import remedy
from fsrepl.model import clock, keys
from fsrepl.model.keys import Document
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import Delivery


def failures(journal: Journal, source: str) -> list[Document]:
    """The kinds of failures of a bucket, the most frequent first."""
    found: list[Document] = [
        {
            "Bucket": source,
            "Destination": destination,
            "Rule": rule,
            "Reason": reason,
            "Remedy": remedy(reason),
            "Number": number,
            "Last": clock.stamp(clock.within(since_ns)),
        }
        for destination, rule, reason, number, since_ns in journal.deliveries.failures(source)
    ]
    return sorted(found, key=lambda each: -int(str(each["Number"])))


def delivery(found: Delivery) -> Document:
    return keys.key_document(found.key) | {
        "VersionId": found.id,
        "DeleteMarker": found.marker,
        "Size": found.size,
        "Destination": found.destination,
        "Rule": found.rule,
        "Status": found.status,
        "Reason": found.reason,
        "Since": clock.stamp(clock.within(found.since_ns)),
        "Job": found.job or None,
    }
