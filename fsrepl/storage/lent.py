"""An open bucket is lent to another process of the daemon, as a descriptor and a few facts about the bucket.

The borrower works in the folder that the lender has opened and verified, and needs neither the site nor its settings.
It changes nothing but .fsrepl/tmp, attributes, and the views of an intent.
"""

from __future__ import annotations

import time
from pathlib import Path

from msgspec import Struct

from fsrepl.model.address import region_of
from fsrepl.settings import RegionSettings
from fsrepl.storage.bucket import Bucket, OpenBucket
from fsrepl.storage.bucket_documents import Documents, Identity
from fsrepl.storage.fs import Fs
from fsrepl.storage.root import Identities, Root


class Lent(Struct, frozen=True, array_like=True):
    """A bucket as its borrower knows it. coarse, reflinks: see Bucket."""

    address: str
    sharing: str
    trees: bool
    coarse: tuple[int, int]
    reflinks: bool | None


def lend(bucket: OpenBucket) -> Lent:
    """A bucket as its borrower is to know it, beside the descriptor `bucket.fd`. Raises OSError where the filesystem
    cannot be asked."""
    own = bucket.bucket
    return Lent(bucket.address, own.sharing, own.trees, (bucket.device, bucket.coarse_ns), own.reflinks)


def borrow(lent: Lent, fd: int, fs: Fs) -> OpenBucket:
    """The bucket in a process that has borrowed it, which closes the descriptor with it, also where this raises
    OSError."""
    region = region_of(lent.address)
    root = Root(fs, time.time_ns, Identities(), RegionSettings(region, Path("/"), lent.sharing))
    bucket = Bucket(root, lent.address, "", lambda _: [])
    bucket.documents = Documents(identity=Identity(trees=lent.trees))
    bucket.coarse, bucket.reflinks = lent.coarse, lent.reflinks
    return OpenBucket(bucket, fd)
