"""Views that link and rename do not reach from .fsrepl, as those in a btrfs subvolume below the bucket.

What becomes such a view is made beside it, under names that look temporary, and what comes out of it stays
beside it until it was looked at: a reader sees the old version or the new one there as well. A crash may leave
such a file; its name tells the key that it belongs to, and the next start deals with it (views/displaced.py).
"""

from __future__ import annotations

import re

from fsrepl.model import digests, keys
from fsrepl.model.version import Version
from fsrepl.storage import records, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import stage

_BESIDE = re.compile(rb"\.fsrepl-[0-9.]+-([0-9a-f]{32})(\.tmp|\.part)")
_WHOLE, _PART = b".tmp", b".part"


def beside(key: bytes) -> bytes:
    """A name for a whole file beside a key's view."""
    return b".fsrepl-" + staging.token() + b"-" + digests.short(key).encode() + _WHOLE


def owner(name: bytes) -> tuple[bytes, bool]:
    """The digest of the key whose view a file was made beside, empty where that is none; and whether it is whole."""
    match = _BESIDE.fullmatch(name)
    return (match[1], match[2] == _WHOLE) if match else (b"", False)


def bring(bucket: OpenBucket, at: int, version: Version) -> bytes:
    """Make what shall become a version's view beside it, durable already; its name there. Raises OSError."""
    name = beside(version.key)
    part = name.removesuffix(_WHOLE) + _PART
    fd = versions.open_version(bucket, version.key, version.id)
    try:
        stage.stage_view(bucket, version, fd, at=at, name=part)
    finally:
        bucket.fs.close(fd)
    try:
        fd = records.open_file(bucket, at, part)
        try:
            bucket.fs.sync_file(fd)
        finally:
            bucket.fs.close(fd)
        bucket.fs.rename_new(at, part, at, name)
    except OSError:
        bucket.fs.unlink(at, part)
        raise
    bucket.views.changed.add(keys.split(version.key)[0])
    return name
