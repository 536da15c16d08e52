"""Differences as JSON, as `verify` prints them: {"Differences": [...]}, then the totals."""

from __future__ import annotations

from fsrepl.model import clock, keys
from fsrepl.model.keys import Document
from fsrepl.repair.compare import Difference
from fsrepl.repair.verify_progress import Tally


def difference(found: Difference) -> Document:
    return keys.key_document(found.key) | {
        "VersionId": found.version,
        "Bucket": found.bucket,
        "Problem": str(found.problem),
        "Repaired": found.repaired,
    }


def totals(tally: Tally) -> Document:
    counts: Document = {
        "Checked": tally.checked,
        "Bytes": tally.bytes,
        "Pending": tally.pending,
        "Failed": tally.failed,
    }
    away = [{"Bucket": bucket, "Why": why} for bucket, why in tally.away.items()]
    dates = [
        keys.key_document(found.key)
        | {"Bucket": bucket, "Versions": found.number, "ModificationTime": clock.stamp(found.mtime_ns)}
        for bucket, found in tally.dates.items()
    ]
    mounted = [
        {"Bucket": bucket, "Path": keys.shown(path), "Keys": number} for (bucket, path), number in tally.mounted.items()
    ]
    return (
        counts
        | ({"BytesKnown": tally.known} if tally.known else {})
        | ({"Mounted": mounted} if mounted else {})
        | ({"Away": away} if away else {})
        | ({"DatesNotHeld": dates} if dates else {})
    )
