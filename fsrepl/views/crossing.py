"""Views that link and rename cannot reach from .fsrepl, as in a btrfs subvolume below the bucket.

Such a view is staged beside its place, under a temporary name, and the file taken out of it stays
beside it until it was inspected: here, too, a reader sees either the old version or the new one. A crash may leave
such a file. Its name identifies its key, and the next start clears it (views/displaced.py).
"""

from __future__ import annotations

import re

from fsrepl.model import digests, keys
from fsrepl.model.version import Kind, Version
from fsrepl.storage import records, staging, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.views import stage

_BESIDE = re.compile(rb"\.fsrepl-[0-9.]+-([0-9a-f]{32})(\.tmp|\.part)")
_WHOLE, _PART = b".tmp", b".part"


def beside(key: bytes) -> bytes:
    """A name for a whole file beside a key's view."""
    return b".fsrepl-" + staging.token() + b"-" + digests.short(key).encode() + _WHOLE


def owner(name: bytes) -> tuple[bytes, bool]:
    """The digest of the key whose view a file belongs beside, empty for other files; and whether the file is whole."""
    match = _BESIDE.fullmatch(name)
    return (match[1], match[2] == _WHOLE) if match else (b"", False)


def bring(bucket: OpenBucket, at: int, version: Version) -> bytes:
    """Stage a version's view beside its place, already durable; its name there. Raises OSError."""
    name = beside(version.key)
    part = name.removesuffix(_WHOLE) + _PART
    if version.place is not None:
        stage.stage_placed(bucket, version, at=at, name=name)
        bucket.views.changed.add(keys.split(version.key)[0])
        return name
    fd = versions.open_content(bucket, version)
    try:
        stage.stage_view(bucket, version, fd, at=at, name=part)
    finally:
        bucket.fs.close(fd)
    try:
        if version.kind is Kind.LINK:
            bucket.fs.sync_file(at)  # a symlink has no data
        else:
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
