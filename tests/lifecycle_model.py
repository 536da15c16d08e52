"""S3's text on lifecycle rules implemented a second time, on a page, for comparison with s3/due.py.

It takes S3's own JSON, and asks for each version, with dates, what each element of each rule says about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any

Json = dict[str, Any]


@dataclass
class HeldVersion:
    """One version of a key in a bucket."""

    id: str
    created: datetime
    marker: bool = False
    size: int = 0
    tags: Mapping[str, str] | None = None
    storage_class: str = "STANDARD"
    status: str = ""


def midnight(moment: datetime) -> datetime:
    """The next midnight UTC, or the moment itself where it is one."""
    start = datetime.combine(moment.date(), time(), UTC)
    return start if start == moment else start + timedelta(days=1)


def matches(rule: Json, key: str, held: HeldVersion) -> bool:
    filter_ = rule.get("Filter", {})
    flat = {**filter_, **filter_.get("And", {})}
    tags = [*flat.get("Tags", []), *([flat["Tag"]] if "Tag" in flat else [])]
    sized = [name for name in flat if name.startswith("ObjectSize")]
    if not key.startswith(rule.get("Prefix", flat.get("Prefix", ""))):
        return False
    if held.marker:
        return not tags and not sized
    if any((held.tags or {}).get(tag["Key"]) != tag["Value"] for tag in tags):
        return False
    return flat.get("ObjectSizeGreaterThan", -1) < held.size < flat.get("ObjectSizeLessThan", held.size + 1)


WAYS_DOWN = {
    "STANDARD": ["STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"],
    "STANDARD_IA": ["INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"],
    "INTELLIGENT_TIERING": ["ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"],
    "ONEZONE_IA": ["GLACIER", "DEEP_ARCHIVE"],
    "GLACIER_IR": ["GLACIER", "DEEP_ARCHIVE"],
    "GLACIER": ["DEEP_ARCHIVE"],
    "DEEP_ARCHIVE": [],
}


def run(
    document: Json, key: str, versions: Sequence[HeldVersion], state: str, now: datetime, *, batch: bool
) -> list[tuple[str, str, str, str]]:
    """(version id, action, storage class, blocked by) of each action of a run at a moment, the newest version first."""
    done = []
    for age, held in enumerate(versions):
        removed, marked = False, False
        moves: list[str] = []
        name = ""
        for rule in document["Rules"]:
            if rule["Status"] != "Enabled" or not matches(rule, key, held):
                continue
            expiration = rule.get("Expiration", {})
            elapsed = ("Days" in expiration and midnight(held.created + timedelta(expiration["Days"])) <= now) or (
                "Date" in expiration and datetime.fromisoformat(expiration["Date"]) <= now
            )
            if age == 0 and held.marker:
                seen = expiration.get("ExpiredObjectDeleteMarker", False) and held.created <= now
                if len(versions) == 1 and (elapsed or seen):
                    removed, name = True, "ExpiredObjectDeleteMarker"
            elif age == 0:
                name = "Expiration"
                if elapsed:
                    removed, marked = removed or state == "", True
            terms: list[tuple[Json, datetime]] = []
            if age == 0:
                terms += [
                    (each, midnight(held.created + timedelta(each["Days"])))
                    if "Days" in each
                    else (each, datetime.fromisoformat(each["Date"]))
                    for each in rule.get("Transitions", [])
                ]
            else:
                since = versions[age - 1].created
                gone = rule.get("NoncurrentVersionExpiration")
                kept = gone is None or age - 1 < gone.get("NewerNoncurrentVersions", 0)
                if not kept and midnight(since + timedelta(gone["NoncurrentDays"])) <= now:
                    removed, name = True, "NoncurrentVersionExpiration"
                terms += [
                    (each, midnight(since + timedelta(each["NoncurrentDays"])))
                    for each in rule.get("NoncurrentVersionTransitions", [])
                    if age - 1 >= each.get("NewerNoncurrentVersions", 0)
                ]
            small = held.size < 131072 and "ObjectSize" not in str(rule.get("Filter"))
            if not small and not held.marker and state:
                moves += [each["StorageClass"] for each, due in terms if due <= now]
        moves = [each for each in WAYS_DOWN["STANDARD"] if each in moves and each in WAYS_DOWN[held.storage_class]]
        waits = [held.status]
        if removed:
            action, to = name, ""
        elif moves:
            action, to = ("NoncurrentVersionTransition" if age else "Transition"), moves[-1]
        elif marked:
            action, to = "Expiration", ""
            waits += [other.status for other in versions if state == "Suspended" and other.id == "null"]
        else:
            continue
        why = next((status for status in waits if status in ("PENDING", "FAILED")), "")
        if action == "ExpiredObjectDeleteMarker" and batch and held.status == "REPLICA":
            why = "BatchJob"
        done.append((held.id, action, to, why))
    return done
