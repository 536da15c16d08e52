"""Archived content (GLACIER and DEEP_ARCHIVE with a tier), made readable for some days, as S3's RestoreObject does.

The copy lies beside the archived content, where the symlink in the place of a current version leads. It is made before
the record says until when it is kept. A copy that no record names is swept.
"""

from __future__ import annotations

import contextlib

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.commands.documents.objects import restore_header
from fsrepl.commands.objects import find
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import RestoreArchived
from fsrepl.daemon.worker import Worker
from fsrepl.errors import ContentDamaged, Refused, StoreDamaged, Unavailable, reason
from fsrepl.model import digests, keys
from fsrepl.model.clock import within
from fsrepl.model.version import Place, Version, Versioning
from fsrepl.s3.lifecycle import DAY_NS
from fsrepl.storage import placed, records, tiers, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.tiers import INVALID_STATE


class _Wanted(Struct, frozen=True):
    version: Version
    place: Place


def restore(engine: Engine, request: RestoreArchived) -> dict[str, object]:
    """Restore a copy of an archived version until midnight UTC after some days; again, to keep it for longer.

    The caller's thread copies, the region's thread does the rest. Raises Refused, Unavailable, ContentDamaged.
    """
    if request.days < 1:
        raise Refused("InvalidArgument", "--days must be 1 or more")
    region, bucket = engine.region_of(request.address.bucket), engine.site.bucket(request.address.bucket)
    wanted = region.ask(lambda: _find(region, request))
    until_ns = within(-(-(engine.site.now() + request.days * DAY_NS) // DAY_NS) * DAY_NS)
    is_there = wanted.place.until_ns > engine.site.now()
    try:
        with bucket.open() as opened:
            staged = b"" if is_there else _copy(opened, wanted)
        region.ask(lambda: _finish(region, bucket.address, wanted, staged, until_ns))
    except OSError as error:
        raise Unavailable(f"{request.address} is not restored: {reason(error)}; try again") from error
    return keys.key_document(wanted.version.key) | {
        "VersionId": wanted.version.id,
        "StorageClass": wanted.version.storage_class,
        "Restore": restore_header(until_ns),
        "Extended": is_there,
    }


def _find(region: Worker, request: RestoreArchived) -> _Wanted:
    address, key = request.address.bucket, request.address.key
    state = region.flush(address, [key])
    with state.bucket.open() as bucket:
        if state.bucket.versioning is Versioning.OFF:
            raise Refused("InvalidRequest", f"{address} was never versioned: nothing of it is archived")
        version = versions.ensure_whole(find(region, bucket, key, request.version_id, content=True))
    if version.place is None or not version.place.is_archived:
        lies = f"its content, of class {version.storage_class or 'STANDARD'}, can be read"
        raise Refused(INVALID_STATE, f"version {version.id} of {address}/{keys.shown(key)} is not archived: {lies}")
    return _Wanted(version, version.place)


def _copy(bucket: OpenBucket, wanted: _Wanted) -> bytes:
    """Copy archived content, hidden and verified; the name of the copy in the tier's staging folder."""
    version, tier = wanted.version, bucket.tier(wanted.place.tier)
    name = tiers.new_token().encode() + tiers.RESTORED
    fd = tier.open_stored(version.key, wanted.place)
    try:
        new = bucket.fs.create(tier.tmp, name)
        try:
            read = digests.Passing(tiers.decoded(bucket.fs, fd, wanted.place))
            with contextlib.suppress(StoreDamaged):
                bucket.fs.write_sparse(new, read)
                bucket.fs.sync_file(new)
                if digests.of_chunks(bucket.fs.chunks(new)) == version.digest:
                    return name
        except BaseException:
            bucket.fs.unlink(tier.tmp, name)
            raise
        finally:
            bucket.fs.close(new)
    finally:
        bucket.fs.close(fd)
    bucket.fs.unlink(tier.tmp, name)
    raise ContentDamaged(
        f"the archived content of version {version.id} of {bucket.address}/{keys.shown(version.key)} no longer matches "
        "its BLAKE3; `fsrepl verify --repair` looks for a good copy",
        version.id,
    )


def _finish(region: Worker, address: str, wanted: _Wanted, staged: bytes, until_ns: int) -> None:
    """Name the copy, record until when it is kept, and let people read it where it is shown. In the region's thread."""
    version = wanted.version
    with region.ready(address).bucket.open() as bucket:
        tier = bucket.tier(wanted.place.tier)
        now = versions.read(bucket, version.key, version.id, marker=False)
        if now is None or now.place is None or now.place != wanted.place:
            with contextlib.suppress(OSError):
                bucket.fs.unlink(tier.tmp, staged)
            raise Unavailable(
                f"version {version.id} of {address}/{keys.shown(version.key)} changed meanwhile; try again"
            )
        if staged:
            bucket.fs.rename(tier.tmp, staged, tier.fd, keys.tier_name(wanted.place.token, version.key))
            bucket.fs.sync_file(tier.fd)
        kept_ns = max(until_ns, now.place.until_ns) if not staged else until_ns
        restored = replace(now, place=replace(now.place, until_ns=kept_ns))
        records.amend(bucket, restored)
        bucket.fs.sync_all(bucket.fd)
        region.engine.recent.forget(address, version.key, version.id)
        known = region.engine.journal.versions.object(address, version.key)
        if known is not None and known.id == version.id and known.view is not None and known.view.shown == version.id:
            placed.open_to_readers(bucket, restored)
