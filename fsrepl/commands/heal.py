"""A bucket that has lost its .fsrepl is restored, as the bucket that the site knows.

`rsync --delete` onto a bucket's folder, or `git clean -fdx` in it, removes .fsrepl with all versions. The site still
has the bucket's identity and documents; its destinations and sources have its versions; the journal has its markers,
and most undelivered content is in the files themselves. All versions are restored under their old ids before the
identity is written. Until then the bucket is offline, so that no file is taken for a new one; the same command
continues an interrupted restore.

A missing file counts as deleted where other files are left in a bucket that users write into. Where no file is left,
the folder was lost and no file was deleted; in a bucket that only receives replicas, users delete nothing. In these
two cases the files are put back.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import logging
import stat
from collections import Counter
from collections.abc import Iterator, Mapping

from msgspec import Struct

from fsrepl.commands import agents
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import RecallVersions
from fsrepl.errors import BucketMissing, Refused, StoreDamaged, reason
from fsrepl.model import clock, json_text, keys
from fsrepl.model.address import Address, region_of
from fsrepl.model.rule import Replication
from fsrepl.model.version import Origin, Version, Versioning
from fsrepl.repair import rebuild
from fsrepl.repair.bring_back import BroughtBack, bring_back
from fsrepl.s3 import replication, rules
from fsrepl.storage import listing, remembered, versions
from fsrepl.storage.bucket import FOLDERS, META, Bucket, OpenBucket
from fsrepl.storage.documents import disowned, read_document, remove_document, write_document
from fsrepl.storage.fs import NO_FILE, Fs
from fsrepl.storage.intents import CURRENT, Intent, intend
from fsrepl.storage.site import Site, ignore_in_git

log = logging.getLogger("fsrepl")


REMOVED_IDENTITY = b"removed-bucket.json"
"""The identity of a bucket that is being removed."""
_BATCH = 256


class Healed(Struct, frozen=True):
    """The result of a restore. put_back: how many missing files will be shown again."""

    brought: BroughtBack
    put_back: int

    def document(self) -> dict[str, object]:
        return {
            "Healed": True, "Fetched": self.brought.fetched, "Kept": self.brought.kept, "Lost": self.brought.lost,
            "PutBack": self.put_back, "NotAsked": [*self.brought.away],
        }  # fmt: skip


class Missing(Struct, frozen=True):
    """How many objects have no file in a bucket's folder, by the journal, and what will happen to them.

    deleted_at: how many will also be deleted at each destination. away: why other buckets cannot be read now.
    """

    put_back: int
    deleted: int
    deleted_at: Mapping[str, int]
    away: tuple[str, ...]

    def document(self) -> dict[str, object]:
        return {
            "PutBack": self.put_back, "Deleted": self.deleted, "DeletedAt": dict(sorted(self.deleted_at.items())),
            "NotAsked": [*self.away],
        }  # fmt: skip


def is_lost(site: Site, bucket: Bucket) -> bool:
    """Whether a bucket has lost its folder, its .fsrepl, or a part that .fsrepl cannot work without.

    Raises FsreplError where the folder cannot be read.
    """
    if not has_folder(bucket):
        return True
    fs = bucket.fs
    with open_folder(bucket) as (_, fd):
        try:
            meta = fs.open_dir(fd, META)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            if _is_there(fs, meta, REMOVED_IDENTITY):
                return False
            if not _is_there(fs, meta, remembered.IDENTITY):
                return True
            was_versioned = remembered.has(site, bucket.address, remembered.VERSIONING)
            is_whole = _is_there(fs, meta, b"versions") or not was_versioned
            return not is_whole and (read_document(fs, meta, remembered.IDENTITY) or {}).get("uuid") == bucket.uuid
        except (OSError, ValueError):
            return False
        finally:
            fs.close(meta)


def _is_there(fs: Fs, at: int, name: bytes) -> bool:
    try:
        fs.stat(at, name)
    except FileNotFoundError:
        return False
    return True


def has_folder(bucket: Bucket) -> bool:
    """Whether a file or folder has the name of a bucket's folder. Raises Unavailable where its region is away."""
    with bucket.root.open() as at:
        return _is_there(bucket.fs, at, bucket.name.encode())


def make_folder(bucket: Bucket, umask: int | None) -> None:
    """Create an empty folder for a bucket that has lost its folder. umask: see buckets.make_bucket."""
    fs = bucket.fs
    with bucket.root.open() as at:
        fs.make_dir(at, bucket.name.encode(), 0o755)
        if umask is not None:
            with open_folder(bucket) as (_, fd):
                fs.chmod(fd, 0o755 & ~umask)
        fs.sync_file(at)


@contextlib.contextmanager
def open_folder(bucket: Bucket) -> Iterator[tuple[int, int]]:
    """Open a region's folder and a bucket's folder in it, whatever it contains. Raises BucketMissing, Unavailable."""
    with bucket.root.open() as at:
        try:
            fd = bucket.fs.open_dir(at, bucket.name.encode(), cross=True)
        except OSError as error:
            raise BucketMissing(f"bucket {bucket.address}: its folder cannot be opened: {reason(error)}") from error
        try:
            yield at, fd
        finally:
            bucket.fs.close(fd)


def heal(engine: Engine, address: str, *, trees: bool = False) -> Healed:
    """Restore a bucket. Copies in the caller's thread, since no other work happens in an offline bucket.

    trees: as a tree bucket, whatever it was.
    """
    bucket, region = engine.site.bucket(address), engine.region_of(address)
    region.ask(lambda: region.drop_bucket(address))
    with open_folder(bucket) as (_, fd):
        identity = _make_folders(engine, bucket, fd) | ({"trees": True} if trees else {})
        again = engine.fs.open_dir(fd, b"")
        with OpenBucket(bucket, again) as opened:
            bucket.documents = bucket.read_documents(opened)
            healed = Healed(BroughtBack(), 0)
            if bucket.versioning is not Versioning.OFF:
                healed = Healed(
                    bring_back(engine, opened, functools.partial(_recall, engine)), _put_back(engine, opened)
                )
            opened.sync()
            engine.fs.sync_all(opened.fd)
            if not _is_there(engine.fs, opened.meta, remembered.IDENTITY):
                write_document(engine.fs, opened.meta, remembered.IDENTITY, identity)
            engine.fs.sync_file(fd)
    bucket.seen = {}
    engine.recent.forget(address)
    log.warning(
        "healed bucket=%s fetched=%d kept=%d lost=%d put_back=%d",
        address, healed.brought.fetched, healed.brought.kept, healed.brought.lost, healed.put_back,
    )  # fmt: skip
    region.ask(lambda: region.follow(address))
    return healed


def _recall(engine: Engine, address: str, wanted: bytes) -> bytes:
    """Have the agent of a bucket on another machine read what it has of a lost one. Raises FsreplError."""
    host = engine.site.hosts[region_of(address)]
    answer = agents.perform(host, RecallVersions(Address.parse_bucket(address), wanted), within_s=None)
    return base64.b64decode(answer["Found"])


def _make_folders(engine: Engine, bucket: Bucket, fd: int) -> dict[str, object]:
    """Create .fsrepl with its folders and documents, without the identity; the identity to write at the end."""
    fs, site = engine.fs, engine.site
    with contextlib.suppress(FileExistsError):
        fs.make_dir(fd, META, 0o700)
    meta = fs.open_dir(fd, META)
    try:
        if why := disowned(fs, fs.stat_fd(meta)):
            raise Refused(
                "AccessDenied", f"{bucket.address} cannot be restored: its .fsrepl {why}; move that .fsrepl away"
            )
        names = [name for name in remembered.DOCUMENTS if name != remembered.IDENTITY]
        remembered.put_back(site, bucket.address, meta, names)
        _write_what_else_is_known(engine, bucket, meta)
        is_versioned = _is_there(fs, meta, remembered.VERSIONING)
        for folder in FOLDERS if is_versioned else FOLDERS[:-1]:
            with contextlib.suppress(FileExistsError):
                fs.make_dir(meta, folder)
        ignore_in_git(fs, meta)
        remove_document(fs, meta, remembered.IDENTITY)  # until everything is restored
        return remembered.identity(site, bucket) or {
            "uuid": bucket.uuid, "name": bucket.name, "region": bucket.region, "created": clock.stamp(0),
            **({"trees": True} if remembered.was_tree(site, bucket.address) else {}),
        }  # fmt: skip
    finally:
        fs.close(meta)


def _write_what_else_is_known(engine: Engine, bucket: Bucket, meta: int) -> None:
    """Write documents that the site has no copies of, as for a bucket that was lost before it was first read."""
    fs, address = engine.fs, bucket.address
    if _is_there(fs, meta, remembered.VERSIONING):
        return
    if engine.journal.totals.versions(address) or _is_known_elsewhere(engine.site, bucket):
        write_document(fs, meta, remembered.VERSIONING, replication.versioning_document(Versioning.ENABLED))
        text = engine.journal.fact(f"replication {address}")
        if text and not _is_there(fs, meta, remembered.REPLICATION):
            write_document(fs, meta, remembered.REPLICATION, json_text.loads(text))


def _is_known_elsewhere(site: Site, bucket: Bucket) -> bool:
    """Whether another bucket has a version from this bucket, or sent one to it."""
    with rebuild.Elsewhere(site, bucket) as elsewhere:
        for there in elsewhere.buckets.values():
            for path, at, name, stored in versions.stream(there, lambda *about: None):
                with contextlib.suppress(OSError, StoreDamaged):
                    version = versions.read_stored(there, at, keys.join(path, stored.name), stored, name)
                    if version.source == bucket.address or bucket.address in version.deliveries:
                        return True
    return False


# -- files that are missing


def far_destinations(site: Site, address: str) -> list[str]:
    """The buckets of S3 services and of other machines that a bucket's rules lead to, by the site's copy of them."""
    document = remembered.document(site, address, remembered.REPLICATION)
    if document is None:
        return []
    found = replication.read_replication(document, source=address, named=site.named)
    return sorted({rule.destination for rule in found.rules if region_of(rule.destination) in site.destinations})


def not_asked(site: Site, bucket: Bucket) -> tuple[str, ...]:
    """Why buckets that may have versions of a lost bucket cannot be read now."""
    regions = {region_of(address) for address in far_destinations(site, bucket.address)}
    away = {why for name in regions if (why := site.destinations[name].trouble())}
    with rebuild.Elsewhere(site, bucket) as elsewhere:
        return tuple(sorted(away | {*elsewhere.away.values()}))


def require_all(site: Site, bucket: Bucket) -> None:
    """Raises Refused where a bucket that may have versions of a lost bucket cannot be read now."""
    if away := not_asked(site, bucket):
        raise Refused(
            "InvalidRequest",
            f"{bucket.address} would be restored without versions that only a missing region has, and these would "
            f"be lost: {'; '.join(away)}. Attach it first, or continue without it with --yes",
        )


def what_is_missing(engine: Engine, bucket: Bucket, fd: int | None) -> Missing:
    """How a restore will treat files that a bucket's folder lacks; fd is None where the folder is gone."""
    configuration, known, missing = _configuration(engine, bucket), 0, 0
    crossing: Counter[str] = Counter()
    for key, current in engine.journal.versions.objects(bucket.address):
        if current.marker:
            continue
        known += 1
        if fd is None or not _has_file(bucket.fs, fd, key):
            missing += 1
            crossing.update(rules.choose(configuration, Version(key, "", 0, marker=True, origin=Origin.USER)).keys())
    away = not_asked(engine.site, bucket)
    if configuration is None or missing == known:
        return Missing(missing, 0, {}, away)
    return Missing(0, missing, crossing, away)


def _configuration(engine: Engine, bucket: Bucket) -> Replication | None:
    """The replication that a restored bucket will have."""
    document = remembered.document(engine.site, bucket.address, remembered.REPLICATION)
    text = engine.journal.fact(f"replication {bucket.address}")
    if document is None and text and not remembered.has(engine.site, bucket.address, remembered.VERSIONING):
        document = json_text.loads(text)
    if document is None:
        return None
    return replication.read_replication(document, source=bucket.address, named=engine.site.named)


def _put_back(engine: Engine, bucket: OpenBucket) -> int:
    """Write intents to show the missing files, where they do not count as deleted; how many.

    Crash recovery shows these files when the bucket is online again. Without a journal that says what would be
    deleted, nothing is deleted.
    """
    may_delete = bucket.bucket.replication is not None and engine.journal.totals.versions(bucket.address) > 0
    if may_delete and any(_has_file(bucket.fs, bucket.fd, key) for key in _objects(bucket)):
        return 0
    number = 0
    missing = (key for key in _objects(bucket) if not _has_file(bucket.fs, bucket.fd, key))
    while batch := [Intent(key, CURRENT, None) for key in itertools.islice(missing, _BATCH)]:
        intend(engine.syncer, bucket, batch).keep()
        number += len(batch)
    return number


def _objects(bucket: OpenBucket) -> Iterator[bytes]:
    return (found[0].key for found in listing.versions_below(bucket) if not found[0].marker)


def _has_file(fs: Fs, fd: int, key: bytes) -> bool:
    """Whether a key has its file, or its directory, in a bucket's folder, or may have it in one that cannot be read."""
    directory, name = keys.split(key)
    try:
        at = fs.open_dir(fd, directory)
        try:
            return not name or not stat.S_ISDIR(fs.stat(at, name).st_mode)
        finally:
            fs.close(at)
    except OSError as error:
        return error.errno not in NO_FILE
