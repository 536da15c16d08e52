"""What an administrator does: regions, buckets, versioning, replication, roles.

Each function either does all of it or leaves things as they were. Those that concern one bucket run
in its region's thread (operations.py sees to that).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fsrepl import arn, capture, clock, commit, config, control, keys, plan, roles, settings, store, transfer
from fsrepl.errors import BucketMissing, FsreplError, Refused, Unavailable, Usage
from fsrepl.fs import UNSUPPORTED, Fs, reason
from fsrepl.journal import Owed, view_of
from fsrepl.model import NO_SHORTFALL, NULL, Origin, Replication, Status, Version, Versioning
from fsrepl.site import (
    FOLDERS,
    META,
    REGION_IDENTITY,
    OpenBucket,
    Site,
    new_identity,
    read_document,
    remove_document,
    write_bytes,
    write_document,
)
from fsrepl.watch import ARRIVED, Mark

if TYPE_CHECKING:
    from fsrepl.engine import Engine

_BATCH = 512
_RECORD_BYTES = 8192
"""What a stored version takes beside its content: its inode, and a block for its attributes."""
DEFAULT_REGIONS = ("us-east-1", "eu-west-1")


# -- the site


def init(directory: Path, regions: dict[str, str | None]) -> dict[str, object]:
    """A new site: its settings, and an identity in each region. A region that has one is attached as it is."""
    directory = Path(os.path.abspath(directory))
    path = directory / settings.FILE
    if path.exists():
        raise Usage(f"{path} exists already; `fsrepl region add` adds regions to it")
    wanted = {name: given or name for name, given in (regions or dict.fromkeys(DEFAULT_REGIONS)).items()}
    wanted = {n: p if p == n else os.path.abspath(p) for n, p in wanted.items()}
    text = settings.render(wanted)
    parsed = settings.parse(text, path, os.path.realpath)
    site = Site(parsed)
    with contextlib.ExitStack() as undo:
        _make_directory(directory, "the site", undo)
        for name in wanted:
            attach_region(site, name, undo)
        site.save_identities()
        _write_settings(site.fs, path, text)
        undo.pop_all()
    return {"Site": str(directory), "Regions": [{"Name": n, "Path": str(r.path)} for n, r in parsed.regions.items()]}


def _make_directory(path: Path, what: str, undo: contextlib.ExitStack) -> None:
    """A directory, and those above it that are missing; undo removes what was made. Raises Usage."""
    try:
        for each in reversed([p for p in (path, *path.parents) if not os.path.lexists(p)]):
            each.mkdir(exist_ok=True)
            undo.callback(_remove_if_empty, each)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise Usage(f"{what} cannot be at {path}: {reason(error)}") from error


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def _write_settings(fs: Fs, path: Path, text: str) -> None:
    """Replace fsrepl.toml in one step. A file that is there, or that a link leads to, keeps its owner and mode."""
    path = Path(os.path.realpath(path))
    with _open_directory(fs, path.parent) as at:
        name = path.name.encode()
        try:
            like = fs.stat(at, name)
        except FileNotFoundError:
            like = None
        write_bytes(fs, at, name, text.encode(), mode=0o644, like=like)


@contextlib.contextmanager
def _open_directory(fs: Fs, path: Path) -> Iterator[int]:
    fd = fs.open_root(path)
    try:
        yield fd
    finally:
        fs.close(fd)


# -- regions


def attach_region(site: Site, name: str, undo: contextlib.ExitStack, *, replaced: bool = False) -> list[str]:
    """Make a directory the region of this name, or take it as the region that it is; the buckets found in it.

    Raises Usage where it is another region, not the one that is known, or at work for another site. replaced:
    it is a new disk for a region that is lost. undo takes back what was made.
    """
    path = site.settings.regions[name].path
    _make_directory(path, f"region {name}", undo)
    with _open_directory(site.fs, path) as at:
        try:
            identity = read_document(site.fs, at, REGION_IDENTITY)
        except (OSError, ValueError) as error:
            raise Usage(f"the identity of region {name} at {path} cannot be read: {error}") from error
        known = site.identities["regions"].get(name)
        if identity is None:
            if known is not None and not replaced:
                raise Usage(
                    f"{path} is not the region {name} that this site knows (no {REGION_IDENTITY.decode()}); mount it, "
                    "or if its disk is lost, give the new one with --replace"
                )
            _require_attributes(site.fs, at, f"region {name} at {path}")
            undo.callback(_remove_identity, path)
            identity = dict(new_identity(name, site.now()))
        elif identity.get("name") != name:
            raise Usage(f"{path} is the region {identity.get('name')!r}; give it that name")
        elif known is not None and identity.get("uuid") != known and not replaced:
            raise Usage(f"{path} is another region named {name} than this site knows; --replace takes it in its stead")
        _claim(site, name, at, identity)
        site.identities["regions"][name] = str(identity["uuid"])
        found = []
        for entry in site.fs.entries(at):
            if not entry.is_dir(follow_symlinks=False):
                continue
            with contextlib.suppress(OSError, ValueError, FsreplError):
                fd = site.fs.open_dir(at, os.fsencode(entry.name) + b"/" + META, cross=True)
                try:
                    bucket = read_document(site.fs, fd, b"bucket.json")
                finally:
                    site.fs.close(fd)
                if bucket is not None:
                    arn.check_bucket_name(entry.name)
                    address = f"{name}/{entry.name}"
                    site.identities["buckets"][address] = str(bucket["uuid"])
                    found.append(address)
    return sorted(found)


def _remove_identity(path: Path) -> None:
    (path / REGION_IDENTITY.decode()).unlink(missing_ok=True)


def _claim(site: Site, name: str, at: int, identity: dict[str, object]) -> None:
    """Write into a region whose it is: two daemons that capture in one region would make two versions of each file.

    A site whose own folder was lost leaves its claim behind, so a claim counts only while its daemon runs.
    """
    mine = {"uuid": site.uuid, "state": site.state}
    claim = identity.get("site")
    if claim == mine:
        return
    of_another = isinstance(claim, dict) and claim.get("uuid") != site.uuid and claim.get("state") != site.state
    if isinstance(claim, dict) and of_another and control.is_locked(str(claim.get("state"))):
        raise Usage(
            f"region {name} at {site.settings.regions[name].path} belongs to a site that is at work, with its state in "
            f"{claim.get('state')}; take it out of that one with `fsrepl region forget {identity.get('name')}`"
        )
    write_document(site.fs, at, REGION_IDENTITY, {**identity, "site": mine})


def _require_attributes(fs: Fs, at: int, what: str) -> None:
    """Raises Usage where a filesystem takes no user attributes, or no files of ours."""
    name = b".fsrepl-probe-%d" % os.getpid()
    try:
        fd = fs.create(at, name)
    except OSError as error:
        raise Usage(f"{what}: cannot write there: {reason(error)}") from error
    try:
        fs.set_attribute(fd, "user.fsrepl.probe", b"1")
    except OSError as error:
        if error.errno in UNSUPPORTED:
            raise Usage(
                f"{what}: this filesystem has no user attributes, which hold what fsrepl knows of each file; "
                "use ext4, xfs, btrfs or a tmpfs of Linux 6.6, or mount it with user_xattr"
            ) from error
        raise Usage(f"{what}: cannot set a user attribute: {reason(error)}") from error
    finally:
        fs.close(fd)
        fs.unlink(at, name)


def add_region(engine: Engine, name: str, path: str, *, replaced: bool) -> dict[str, object]:
    """Attach a region, or make a new one; with replaced, a new disk whose buckets are to be filled again."""
    file = engine.settings.path
    old = engine.settings.regions.get(name)
    text = file.read_text()
    absolute = os.path.abspath(os.path.join(file.parent, path))
    if old is None:
        text = settings.add_region(text, name, absolute)
    elif os.path.realpath(old.path) != os.path.realpath(absolute):
        if not replaced and name in engine.site.identities["regions"] and not _is_region(absolute, name, engine.site):
            raise Usage(f"region {name} is at {old.path}; --replace gives it another disk")
        text = settings.add_region(settings.remove_region(text, name), name, absolute)
    parsed = settings.parse(text, file, os.path.realpath)
    site = Site(parsed, engine.fs, engine.site.now)
    lost = [a for a in site.identities["buckets"] if a.startswith(name + "/")] if replaced else []
    with contextlib.ExitStack() as undo:
        found = attach_region(site, name, undo, replaced=replaced)
        for address in lost:
            if address not in found:
                _make_bucket(site, address, Versioning.ENABLED)
        site.save_identities()
        _write_settings(engine.fs, file, text)
        undo.pop_all()
    engine.reload(parsed)
    refilled = sum(_fill_again(engine, address) for address in lost)
    return {"Name": name, "Path": absolute, "Buckets": sorted({*found, *lost}), "Refilled": refilled}


def _is_region(path: str, name: str, site: Site) -> bool:
    with contextlib.suppress(OSError, ValueError), _open_directory(site.fs, Path(path)) as at:
        identity = read_document(site.fs, at, REGION_IDENTITY) or {}
        return identity.get("uuid") == site.identities["regions"].get(name)
    return False


def _fill_again(engine: Engine, destination: str) -> int:
    """Owe a bucket that was lost everything it had been delivered; how much that is."""
    number = 0
    for address in list(engine.site.buckets):
        lost = [d for d in engine.journal.deliveries(address) if d.destination == destination]
        lost = [d for d in lost if d.status != Status.PENDING]
        if not lost:
            continue

        def again(address: str = address, lost: Sequence[Owed] = lost) -> int:
            region = engine.region_of(address)
            done = 0
            with engine.site.bucket(address).open() as bucket:
                for owed in lost:
                    version = store.read(bucket, owed.key, owed.id, marker=owed.marker)
                    delivery = version.deliveries.get(destination) if version else None
                    if version is None or delivery is None:
                        continue
                    pending = replace(plan.owed_again(delivery), edit=False)
                    region.owe_again(bucket, version, {**version.deliveries, destination: pending})
                    done += 1
            return done

        number += engine.ask(address.partition("/")[0], again)
    return number


def forget_region(engine: Engine, name: str) -> dict[str, object]:
    """Take a region out of the site; its directory stays as it is."""
    if name not in engine.settings.regions:
        raise Usage(f"there is no region {name!r} in {engine.settings.path}; it names {engine.site.region_names()}")
    if len(engine.settings.regions) == 1:
        raise Usage(f"{name} is the only region of this site")
    file = engine.settings.path
    text = settings.remove_region(file.read_text(), name)
    parsed = settings.parse(text, file, os.path.realpath)
    site = engine.site
    with contextlib.suppress(FsreplError, OSError), site.open_region(name) as at:
        identity = read_document(engine.fs, at, REGION_IDENTITY) or {}
        write_document(engine.fs, at, REGION_IDENTITY, {n: v for n, v in identity.items() if n != "site"})
    site.identities["regions"].pop(name, None)
    for address in [a for a in site.identities["buckets"] if a.startswith(name + "/")]:
        del site.identities["buckets"][address]
    site.save_identities()
    _write_settings(engine.fs, file, text)
    engine.reload(parsed)
    return {"Name": name}


# -- buckets


def create_bucket(engine: Engine, address: str, *, versioning: bool) -> dict[str, object]:
    site = engine.site
    region, name = arn.split_address(address)
    arn.check_bucket_name(name)
    if region not in site.settings.regions:
        raise Usage(f"there is no region {region!r} in {site.settings.path}; it names {site.region_names()}")
    with site.open_region(region) as at:
        try:
            fd = site.fs.open_dir(at, name.encode(), cross=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Refused("InvalidBucketName", f"{address} cannot be made: {reason(error)}") from error
        else:
            try:
                if address in site.buckets:
                    raise Refused("BucketAlreadyOwnedByYou", f"{address} exists already")
                if any(e.name != META.decode() for e in site.fs.entries(fd)):
                    raise Refused(
                        "BucketAlreadyExists", f"{address} is a folder with files; `fsrepl bucket adopt` makes it a bucket"
                    )
            finally:
                site.fs.close(fd)
    _make_bucket(site, address, Versioning.ENABLED if versioning else Versioning.OFF)
    site.save_identities()
    return {"Bucket": address, "Versioning": "Enabled" if versioning else ""}


def _make_bucket(site: Site, address: str, versioning: Versioning) -> None:
    """The folder and what makes it a bucket, its identity last. What is there already stays."""
    region, _, name = address.partition("/")
    fs = site.fs
    with site.open_region(region) as at:
        with contextlib.suppress(FileExistsError):
            fs.make_dir(at, name.encode(), 0o755)
        fd = fs.open_dir(at, name.encode(), cross=True)
        try:
            with contextlib.suppress(FileExistsError):
                fs.make_dir(fd, META, 0o700)
            meta = fs.open_dir(fd, META)
            try:
                for folder in FOLDERS if versioning is not Versioning.OFF else FOLDERS[:-1]:
                    with contextlib.suppress(FileExistsError):
                        fs.make_dir(meta, folder)
                if versioning is not Versioning.OFF:
                    write_document(fs, meta, b"versioning.json", config.versioning_document(versioning))
                known = read_document(fs, meta, b"bucket.json")
                identity = known or dict(new_identity(name, site.now(), region=region))
                if known is None:
                    write_document(fs, meta, b"bucket.json", identity)
            finally:
                fs.close(meta)
            fs.sync_file(fd)
            fs.sync_file(at)
        finally:
            fs.close(fd)
    site.identities["buckets"][address] = str(identity["uuid"])


def adopt_bucket(engine: Engine, address: str, *, dry_run: bool) -> dict[str, object]:
    """Make a folder full of files a versioned bucket: each file becomes its key's null version."""
    site = engine.site
    region, name = arn.split_address(address)
    arn.check_bucket_name(name)
    if region not in site.settings.regions:
        raise Usage(f"there is no region {region!r} in {site.settings.path}; it names {site.region_names()}")
    if address in site.buckets and _versioning(site, address) is not Versioning.OFF:
        raise Refused("BucketAlreadyOwnedByYou", f"{address} is a versioned bucket already")
    with site.open_region(region) as at:
        try:
            fd = site.fs.open_dir(at, name.encode(), cross=True)
        except OSError as error:
            raise Refused("NoSuchBucket", f"{address}: there is no such folder in the region: {reason(error)}") from error
        try:
            objects, size = _measure(site.fs, fd)
            free, total = site.fs.space(fd)
        finally:
            site.fs.close(fd)
    sharing = site.settings.regions[region].sharing
    needed = objects * _RECORD_BYTES + (0 if sharing == "link" else size)
    answer: dict[str, object] = {"Bucket": address, "Objects": objects, "Bytes": size, "Needed": needed, "Free": free}
    if free - needed < engine.settings.capture.keep_free.needed(total) and sharing != "link":
        raise Refused(
            "InvalidRequest",
            f"{address} holds {objects} files of {size >> 20} MiB, which are stored once more, and {free >> 20} MiB are "
            "free; make room, or set sharing = \"link\" for the region where no program writes into files",
        )
    if dry_run:
        return answer
    _make_bucket(site, address, Versioning.OFF)
    site.save_identities()
    return {**answer, "Adopted": enable_versioning(engine, address, Versioning.ENABLED)}


def _measure(fs: Fs, top: int) -> tuple[int, int]:
    """How many files there are below a directory, and their bytes."""
    objects = size = 0
    for _, fd, files in _walk(fs, top):
        for name in files:
            with contextlib.suppress(OSError):
                size += fs.stat(fd, name).st_size
                objects += 1
    return objects, size


def _walk(fs: Fs, top: int) -> Iterator[tuple[bytes, int, list[bytes]]]:
    todo = [b""]
    while todo:
        path = todo.pop()
        try:
            fd = fs.open_dir(top, path)
        except OSError:
            continue
        try:
            files = []
            for entry in fs.entries(fd):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if path or name != META:
                        todo.append(keys.join(path, name))
                elif entry.is_file(follow_symlinks=False):
                    files.append(name)
            yield path, fd, files
        finally:
            fs.close(fd)


def _versioning(site: Site, address: str) -> Versioning:
    with site.bucket(address).open():
        return site.bucket(address).versioning


def remove_bucket(engine: Engine, address: str, *, purge: bool) -> dict[str, object]:
    """Remove a bucket; with purge also everything in it. Its identity goes first: no crash makes this a deletion."""
    site = engine.site
    bucket = site.bucket(address)
    try:
        with bucket.open() as opened:
            holds = next(_contents(opened), None)
            if holds is not None and not purge:
                raise Refused(
                    "BucketNotEmpty", f"{address} holds objects or versions; --yes removes it with everything in it"
                )
            engine.region_of(address).put_down(address)
            remove_document(site.fs, opened.meta, b"bucket.json")
            _remove_below(site.fs, opened.fd)
        with site.open_region(bucket.region) as at:
            with contextlib.suppress(OSError):
                site.fs.remove_dir(at, bucket.name.encode())
            site.fs.sync_file(at)
    except BucketMissing:
        pass
    del site.identities["buckets"][address]
    site.save_identities()
    engine.recent.forget(address)
    with engine.journal.transaction():
        engine.journal.forget_bucket(address)
    return {"Bucket": address}


def _contents(bucket: OpenBucket) -> Iterator[bytes]:
    for _, _, files in _walk(bucket.fs, bucket.fd):
        yield from files
    if bucket.versions >= 0:
        for _, _, found in store.walk(bucket):
            yield from (name for name, _ in found)


def _remove_below(fs: Fs, fd: int) -> None:
    for entry in list(fs.entries(fd)):
        name = os.fsencode(entry.name)
        if entry.is_dir(follow_symlinks=False):
            below = fs.open_dir(fd, name)
            try:
                _remove_below(fs, below)
            finally:
                fs.close(below)
            fs.remove_dir(fd, name)
        else:
            fs.unlink(fd, name)


# -- versioning


def set_versioning(engine: Engine, address: str, wanted: Versioning) -> dict[str, object]:
    bucket = engine.site.bucket(address)
    with bucket.open():
        if wanted is Versioning.SUSPENDED and bucket.replication is not None:
            raise Refused(
                "InvalidBucketState",
                f"a replication configuration is present on {address}, so its versioning cannot be suspended; "
                f"`fsrepl replication rm {address}` removes the configuration",
            )
        now = bucket.versioning
    if now is Versioning.OFF:
        enable_versioning(engine, address, wanted)
    elif now is not wanted:
        engine.region_of(address).flush(address)  # what was dropped before this call belongs to the state before
        with bucket.open() as opened:
            write_document(engine.fs, opened.meta, b"versioning.json", config.versioning_document(wanted))
            bucket.refresh(opened)
        engine.region_of(address).follow(address)
    return {"Bucket": address, "Status": str(wanted)}


def enable_versioning(engine: Engine, address: str, wanted: Versioning) -> int:
    """Turn versioning on for the first time: what is there becomes null versions; how many. The state is set last."""
    bucket = engine.site.bucket(address)
    with bucket.open() as opened:
        with contextlib.suppress(FileExistsError):
            engine.fs.make_dir(opened.meta, b"versions")
    with bucket.open() as opened:
        engine.journal.bucket_id(address, bucket.uuid)
        number = 0
        for path, _, files in _walk(engine.fs, opened.fd):
            for start in range(0, len(files), _BATCH):
                number += _import(engine, opened, [keys.join(path, n) for n in files[start : start + _BATCH]])
        write_document(engine.fs, opened.meta, b"versioning.json", config.versioning_document(wanted))
        bucket.refresh(opened)
    engine.region_of(address).follow(address)
    return number


def _import(engine: Engine, bucket: OpenBucket, found: Sequence[bytes]) -> int:
    """Store files that were there before versioning, each as its key's null version."""
    patience = engine.region_of(bucket.address).patience
    batch = []
    for key in found:
        mark = Mark(bucket.address, key, ARRIVED, 0, time.monotonic())
        seen = capture.look(bucket, mark, None, patience, time.time_ns(), in_lane=True)
        if isinstance(seen, capture.Taken):
            created_ns = min(seen.found.st_mtime_ns, engine.site.now())
            version = Version(
                key, NULL, created_ns, False, seen.size, seen.digest, Origin.ADOPTED,
                posix=seen.posix, attrs=seen.attrs, tags=seen.tags,
            )  # fmt: skip
            batch.append((capture.stage(bucket, seen, version), seen))
    if not batch:
        return 0
    engine.syncer.staged(bucket, [(bucket.tmp, staged.name) for staged, _ in batch])
    for staged, _ in batch:
        store.publish(bucket, staged)
    bucket.sync()
    with engine.journal.transaction():
        for staged, seen in batch:
            engine.journal.add(bucket.address, staged.version)
            engine.journal.see(bucket.address, staged.version.key, view_of(seen.found, NULL, racy=seen.racy))
    return len(batch)


# -- replication


class _Buckets:
    """What validation asks of the site's buckets: config.Buckets.

    configured: destinations that were accepted before. One of them that is away can't be looked at, and is
    accepted again, so that an outage keeps nobody from changing or disabling other rules.
    """

    def __init__(self, site: Site, configured: Collection[str] = ()) -> None:
        self._site, self._configured = site, configured

    def named(self, name: str) -> list[str]:
        return self._site.named(name)

    def versioning(self, address: str) -> Versioning | None:
        """Raises Unavailable for a bucket that is away, and was not seen before that."""
        if address not in self._site.buckets:
            return None
        try:
            return _versioning(self._site, address)
        except BucketMissing:
            return None
        except Unavailable:
            if address in self._configured:
                return Versioning.ENABLED
            last_seen = self._site.buckets[address].versioning
            if last_seen is Versioning.OFF:
                raise
            return last_seen

    def account(self, address: str) -> str:
        return "000000000000"


def candidates(site: Site, source: str) -> list[str]:
    """Buckets that a source can be replicated to: versioned, there, in another region."""
    buckets = _Buckets(site)
    return [
        address
        for address in sorted(site.buckets)
        if address.partition("/")[0] != source.partition("/")[0]
        and _is_enabled(buckets, address)
    ]


def _is_enabled(buckets: _Buckets, address: str) -> bool:
    try:
        return buckets.versioning(address) is Versioning.ENABLED
    except Unavailable:
        return False


def enable_replication(
    engine: Engine, source: str, destination: str | None, *, prefixes: Sequence[str] = (), storage_class: str = "",
    role: str = "", rule_id: str = "", delete_markers: bool = True, add: bool = False, replace_all: bool = False,
    dry_run: bool = False,
) -> dict[str, object]:  # fmt: skip
    """What the console's five steps write. All of it or nothing: a role that was made goes again if the rest fails."""
    site = engine.site
    existing = _configuration(site, source)
    if destination is None:
        if existing is None:
            raise Refused("ReplicationConfigurationNotFoundError", f"{source} has no replication configuration yet")
        document = config.set_status(existing.document, "Enabled")
        return {**_finish(engine, source, document, dry_run=dry_run), "Created": False}
    if existing is not None and not (add or replace_all):
        raise Refused(
            "InvalidRequest", f"{source} has a replication configuration; --add adds to it, --replace replaces it"
        )
    _check_pair(site, source, destination)
    rules = config.enable_document(
        destination, role=role or "any", prefixes=list(prefixes), storage_class=storage_class, rule_id=rule_id,
        delete_markers=delete_markers,
    )  # fmt: skip
    made: roles.RoleDocument | None = None
    if add and existing is not None:
        role = role or existing.role
        if role == existing.role:
            made = _role_with(engine, role, source, destination)
        document = config.add_rules(existing.document, rules["Rules"])
    else:
        if not role:
            role, made = _generated_role(engine, source, destination)
        document = rules
    document["Role"] = arn.role_arn(role)
    answer = _finish(engine, source, document, dry_run=True)
    if not dry_run:
        undo = _write_role(engine, role, made)
        try:
            answer = _finish(engine, source, document, dry_run=False)
        except BaseException:
            undo()
            raise
    return {**answer, "Role": role, "Created": made is not None}


def _check_pair(site: Site, source: str, destination: str) -> None:
    """S6, S11: both sides, each named, with what could be chosen instead."""
    buckets = _Buckets(site)
    site.bucket(source)
    offered = ", ".join(candidates(site, source)) or "none yet"
    region, _name = arn.split_address(destination)
    if region not in site.settings.regions:
        raise Usage(f"there is no region {region!r} in {site.settings.path}; it names {site.region_names()}")
    if buckets.versioning(source) is not Versioning.ENABLED:
        raise Refused(
            "InvalidRequest",
            f"versioning must be Enabled on the source {source} first: `fsrepl versioning enable {source}`",
        )
    if source == destination:
        raise Refused("InvalidRequest", f"destination {destination} is the source; choose one of: {offered}")
    there = buckets.versioning(destination)
    if there is None:
        raise Refused("InvalidRequest", f"destination {destination} must exist, and does not; choose one of: {offered}")
    if region == source.partition("/")[0]:
        raise Refused(
            "InvalidRequest", f"destination {destination} must be in another region than {source}; choose one of: {offered}"
        )
    if there is not Versioning.ENABLED:
        raise Refused(
            "InvalidRequest",
            f"versioning must be Enabled on the destination {destination}: `fsrepl versioning enable {destination}`; "
            f"or choose one of: {offered}",
        )


def _configuration(site: Site, source: str) -> Replication | None:
    bucket = site.bucket(source)
    with bucket.open():
        return bucket.replication


def configuration(site: Site, source: str) -> Replication:
    """Raises Refused(ReplicationConfigurationNotFoundError)."""
    found = _configuration(site, source)
    if found is None:
        raise Refused("ReplicationConfigurationNotFoundError", f"{source} has no replication configuration")
    return found


def has_configuration(site: Site, source: str) -> bool:
    return _configuration(site, source) is not None


def put_replication(
    engine: Engine, source: str, document: object, *, size_bytes: int = 0, dry_run: bool = False
) -> dict[str, object]:
    """Save a configuration as S3 takes it. Raises Refused with S3's codes."""
    return _finish(engine, source, document, dry_run=dry_run, size_bytes=size_bytes)


def _finish(
    engine: Engine, source: str, document: object, *, dry_run: bool, size_bytes: int = 0
) -> dict[str, object]:
    """Validate a configuration, save it, and follow it from now on."""
    site = engine.site
    bucket = site.bucket(source)
    with bucket.open():
        pass
    configured = {rule.destination for rule in bucket.replication.rules} if bucket.replication else set()
    buckets = _Buckets(site, configured)
    parsed = config.parse_replication(document, source=source, buckets=buckets, size_bytes=size_bytes)
    answer: dict[str, object] = {"ReplicationConfiguration": parsed.document}
    if dry_run:
        return answer
    region = engine.region_of(source)
    region.flush(source)  # what was dropped before this call is judged by the rules of its time
    with bucket.open() as opened:
        if bucket.replication is None:
            _break_links(engine, opened)
        write_document(engine.fs, opened.meta, b"replication.json", answer)
        bucket.refresh(opened)
    region.follow(source)
    return answer


def _break_links(engine: Engine, bucket: OpenBucket) -> None:
    """A bucket becomes a source, so users write into it: its views get content of their own first."""
    if bucket.bucket.sharing == "link" or bucket.versions < 0:
        return
    for directory in engine.journal.directories(bucket.address):
        for name, known in engine.journal.objects_in(bucket.address, directory).items():
            if known.marker or known.view is None or known.view.shown != known.id:
                continue
            key = keys.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                fd = store.open_version(bucket, key, known.id)
                try:
                    linked = engine.fs.stat_fd(fd).st_ino == known.view.ino
                    version = store.read(bucket, key, known.id, marker=False) if linked else None
                    staged, shortfall = transfer.stage_view(bucket, version, fd) if version else (b"", NO_SHORTFALL)
                finally:
                    engine.fs.close(fd)
                if version is not None:
                    outcome = commit.show(bucket, version, known.view, staged)
                    if isinstance(outcome, commit.Shown):
                        store.amend(bucket, replace(version, shortfall=shortfall))
                        with engine.journal.transaction():
                            engine.journal.see(bucket.address, key, outcome.view)
    bucket.sync()


def disable_replication(engine: Engine, source: str) -> dict[str, object]:
    found = configuration(engine.site, source)
    return _finish(engine, source, config.set_status(found.document, "Disabled"), dry_run=False)


def remove_replication(engine: Engine, source: str) -> dict[str, object]:
    configuration(engine.site, source)
    bucket = engine.site.bucket(source)
    engine.region_of(source).flush(source)
    with bucket.open() as opened:
        remove_document(engine.fs, opened.meta, b"replication.json")
        bucket.refresh(opened)
    engine.region_of(source).follow(source)
    return {"Bucket": source}


def note_rules(bucket: OpenBucket, now_ns: int) -> bool:
    """Write down since when each rule is in effect, where that changed; whether it did.

    By the clock for people, and as the ctime of the configuration's file, which the ctimes of
    objects found by a scan can be compared with.
    """
    documents = bucket.bucket.documents
    wanted = {}
    if documents.replication is not None:
        ctime_ns = bucket.fs.stat(bucket.meta, b"replication.json").st_ctime_ns
        for rule in documents.replication.rules:
            if rule.enabled:
                content = config.effective_content(rule)
                known = documents.since.get(rule.id)
                if known is not None and known.content == content:
                    wanted[rule.id] = {"content": content, "ctime_ns": known.ctime_ns, "since": known.since}
                else:
                    wanted[rule.id] = {"content": content, "ctime_ns": ctime_ns, "since": clock.stamp(now_ns)}
    known_all = {
        n: {"content": s.content, "ctime_ns": s.ctime_ns, "since": s.since} for n, s in documents.since.items()
    }
    if wanted == known_all:
        return False
    write_document(bucket.fs, bucket.meta, b"rules.json", wanted)
    return True


# -- roles


def _role_path(engine: Engine, name: str) -> Path:
    return engine.settings.roles / f"{name}.json"


def _read_role(engine: Engine, name: str) -> dict[str, object] | None:
    try:
        found = json.loads(_role_path(engine, name).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Refused("MalformedPolicyDocument", f"role {name}: {_role_path(engine, name)} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _generated_role(engine: Engine, source: str, destination: str) -> tuple[str, roles.RoleDocument | None]:
    """The name of the role for a pair of buckets, and its document where it is still to be made.

    The name is cut at 64 characters as the console cuts it; a role of that name for another pair is
    never shared: then the name ends in a digest of the pair. Source: s3-semantics, 6.2.
    """
    name = roles.generated_name(source.partition("/")[2], destination.partition("/")[2])
    for candidate in (name, roles.distinct_name(name, (source, destination))):
        document = roles.generate(candidate, source, [destination])
        found = _read_role(engine, candidate)
        if found is None:
            return candidate, document
        if found == document:
            return candidate, None
    raise Refused(
        "EntityAlreadyExists", f"role {name} exists with another policy; name one with --role, or remove it"
    )


def _role_with(engine: Engine, name: str, source: str, destination: str) -> roles.RoleDocument | None:
    """A role's document with a further destination; None where it has it, or is none of ours to change."""
    found = _read_role(engine, name)
    if found is None:
        return None
    with_it = roles.add_destination(found, source, destination)
    return None if with_it == found else with_it


def _write_role(engine: Engine, name: str, document: roles.RoleDocument | None) -> Callable[[], None]:
    """Write a role's file, if there is something to write; what takes that back."""
    if document is None:
        return lambda: None
    path = _role_path(engine, name)
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(mode=0o755, exist_ok=True)
    with _open_directory(engine.fs, path.parent) as at:
        write_document(engine.fs, at, path.name.encode(), document, mode=0o644)

    def undo() -> None:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(before)

    return undo


def create_role(engine: Engine, name: str, source: str, destinations: Iterable[str]) -> dict[str, object]:
    """A role with the generated policy, under a name of the user's choice."""
    wanted = list(destinations)
    for address in (source, *wanted):
        engine.site.bucket(address)
    document = roles.generate(name, source, wanted)
    roles.parse_role(document, name)
    found = _read_role(engine, name)
    if found is not None and found != document:
        raise Refused("EntityAlreadyExists", f"role {name} exists already with another policy; remove it first")
    _write_role(engine, name, document if found is None else None)
    return {"RoleName": name, "Arn": arn.role_arn(name)}


def remove_role(engine: Engine, name: str) -> dict[str, object]:
    path = _role_path(engine, name)
    if not path.exists():
        raise Refused("NoSuchEntity", f"there is no role {name!r}")
    path.unlink()
    return {"RoleName": name}
