"""Where the content of a version is to lie, by its storage class and the settings. Pure."""

from __future__ import annotations

from fsrepl.storage.bucket import Bucket
from fsrepl.storage.journal.rows import read_tier, read_traits

PLACED_MIN_BYTES = 4096
"""Smaller content stays with its record, whose file takes an inode and mostly a block in any case."""


def wanted_tier(bucket: Bucket, storage_class: str, tier: str) -> str:
    """The tier in which content of a class is to lie; empty for the bucket's store.

    tier: where it lies. A class without a directory is a label, and so is one whose directory is not attached yet. What
    lies in a tier that the settings do not name any more stays there.
    """
    if tier and bucket.root.tier(tier) is None:
        return tier
    found = bucket.root.tier(storage_class)
    return storage_class if found is not None and found.expected and not found.settings.drain else ""


def to_be_moved(bucket: Bucket, traits: str, size: int) -> str | None:
    """The tier to which content is to be moved, empty for the bucket's store; None where it lies as its class says.

    size: of the content, in bytes; so are symlinks and directories of tree buckets left out.
    """
    if size < PLACED_MIN_BYTES:
        return None
    storage_class, _ = read_traits(traits)
    tier = read_tier(traits)
    to = wanted_tier(bucket, storage_class or "", tier)
    return to if to != tier else None
