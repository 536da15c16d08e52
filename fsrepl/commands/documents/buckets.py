"""Buckets as JSON: `bucket ls`, `versioning show`. Their backlog is in commands/status.py."""

from __future__ import annotations

from collections.abc import Iterable

from fsrepl.commands.services import BucketFacts, ServiceFacts
from fsrepl.errors import FsreplError, Refused
from fsrepl.model.address import region_of
from fsrepl.model.keys import Document
from fsrepl.storage.bucket import Bucket
from fsrepl.storage.site import Site


def buckets(site: Site, region: str = "") -> list[Document]:
    """The buckets, or the buckets of one region, with their settings."""
    return [_bucket(site.buckets[a]) for a in sorted(site.buckets) if region in ("", site.buckets[a].region)]


def _bucket(bucket: Bucket) -> Document:
    trouble = ""
    try:
        with bucket.open():
            pass
    except FsreplError as error:
        trouble = str(error)
    return {
        "Bucket": bucket.address,
        "Online": not trouble,
        "Versioning": str(bucket.versioning),
        "ReplicatesTo": sorted({rule.destination for rule in bucket.replication.rules}) if bucket.replication else [],
        "LifecycleRules": sum(rule.enabled for rule in bucket.lifecycle.rules) if bucket.lifecycle else 0,
        "Trees": bucket.trees,
        "Path": str(bucket.path),
        **({"Trouble": trouble} if trouble else {}),
    }


def of_service(found: BucketFacts) -> Document:
    """A bucket of a region that only takes replicas."""
    return {
        "Bucket": found["address"],
        "Online": not found["trouble"],
        "Versioning": found["versioning"],
        "ReplicatesTo": [],
        "LifecycleRules": 0,
        "Path": found["place"],
        **({"Trouble": found["trouble"]} if found["trouble"] else {}),
    }


def versioning(bucket: Bucket) -> Document:
    """S3's VersioningConfiguration, which is empty where a bucket was never versioned. Raises FsreplError."""
    with bucket.open():
        return {"Status": str(bucket.versioning)} if bucket.versioning else {}


def versioning_there(site: Site, address: str, known: Iterable[ServiceFacts]) -> Document:
    """S3's VersioningConfiguration of a bucket elsewhere. known: what the daemon sees, whose credentials count.

    Raises FsreplError.
    """
    for each in (bucket for service in known for bucket in service["buckets"]):
        if each["address"] == address and each["versioning"]:
            return {"Status": each["versioning"]}
    region = site.destinations[region_of(address)]
    found = region.versioning(address)
    if found is None:
        raise Refused("NoSuchBucket", f"there is no bucket {address} at {region.url}")
    return {"Status": str(found)} if found else {}
