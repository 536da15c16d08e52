"""Buckets: created, adopted, removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from fsrepl.commands import requirements
from fsrepl.commands.heal import REMOVED_IDENTITY, has_folder, heal, make_folder, open_folder, what_is_missing
from fsrepl.commands.versioning import Adopted, Room, enable_versioning, measure, versioning_of
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import CreateBucket, RemoveBucket
from fsrepl.errors import BucketMissing, FsreplError, Refused, Unavailable, Usage, reason
from fsrepl.model.address import Address
from fsrepl.model.version import Versioning
from fsrepl.s3 import arn, replication
from fsrepl.storage import remembered, versions
from fsrepl.storage.bucket import FOLDERS, META, Bucket, OpenBucket
from fsrepl.storage.documents import disowned, read_document, remove_document, write_document
from fsrepl.storage.journal.rows import read_tier
from fsrepl.storage.site import Site, ignore_in_git, new_identity
from fsrepl.storage.walk import directories, leave_out, remove_below


def create_bucket(engine: Engine, request: CreateBucket) -> dict[str, object]:
    site, address = engine.site, str(request.bucket)
    region, name = request.bucket.region, request.bucket.name
    arn.check_bucket_name(name)
    if region not in site.settings.regions:
        raise Usage(f"there is no region {region!r} in {site.settings.path}; it names {site.region_names()}")
    with site.open_region(region) as at:
        try:
            fd = site.fs.open_dir(at, name.encode(), cross=True)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Refused("InvalidBucketName", f"{address} cannot be created: {reason(error)}") from error
        else:
            try:
                if address in site.buckets:
                    raise Refused("BucketAlreadyOwnedByYou", f"{address} exists already")
                _require_no_copy(site, address, fd)
                if any(name != META for name, _ in site.fs.entries(fd)):
                    raise Refused(
                        "BucketAlreadyExists",
                        f"{address} is a folder with files; `fsrepl bucket adopt` turns it into a bucket",
                    )
                requirements.require(site.fs, fd, f"folder {address}")
            finally:
                site.fs.close(fd)
    with contextlib.ExitStack() as undo:
        make_bucket(
            site, request.bucket, Versioning.ENABLED if request.versioning else Versioning.OFF, undo, request.umask,
            trees=request.trees,
        )  # fmt: skip
        site.save_identities()
        undo.pop_all()
    return {"Bucket": address, "Versioning": "Enabled" if request.versioning else "", "Trees": request.trees}


def make_bucket(
    site: Site, address: Address, versioning: Versioning, undo: contextlib.ExitStack, umask: int | None = None, *,
    trees: bool = False,
) -> None:  # fmt: skip
    """Create a bucket's folder and its .fsrepl, the identity last. Existing files stay; undo removes what was created.

    umask: the caller's, where the caller is another process: the daemon's would lock users out of the folder. trees:
    a tree bucket; an existing identity may say so itself.
    This function's caller saves the site's identities.
    """
    region, name = address.region, address.name
    fs = site.fs
    made = False
    with contextlib.ExitStack() as closing:
        at = closing.enter_context(site.open_region(region))
        with contextlib.suppress(FileExistsError):
            fs.make_dir(at, name.encode(), 0o755)
            undo.callback(_unmake, site, address)
            made = True
        fd = fs.open_dir(at, name.encode(), cross=True)
        closing.callback(fs.close, fd)
        if made and umask is not None:
            fs.chmod(fd, 0o755 & ~umask)
        with contextlib.suppress(FileExistsError):
            fs.make_dir(fd, META, 0o700)
            undo.callback(_unmake, site, address, META)
        meta = fs.open_dir(fd, META)
        closing.callback(fs.close, meta)
        if why := disowned(fs, fs.stat_fd(meta)):  # a store that another user prepared is not used
            raise Refused("AccessDenied", f"{address} cannot be created: its .fsrepl {why}; move that .fsrepl away")
        for folder in FOLDERS if versioning is not Versioning.OFF else FOLDERS[:-1]:
            with contextlib.suppress(FileExistsError):
                fs.make_dir(meta, folder)
        ignore_in_git(fs, meta)
        if versioning is not Versioning.OFF:
            write_document(fs, meta, b"versioning.json", replication.versioning_document(versioning))
        known = read_document(fs, meta, b"bucket.json")
        identity: dict[str, object] = dict(known or new_identity(name, site.now()))
        if trees:
            identity["trees"] = True
        if known is None and (lost := site.identities.buckets.get(str(address))):
            identity["replaces"] = [lost]  # on a new disk; its content in tiers is still there
        identity |= {"name": name, "region": region}  # of a store that was moved here: those that it has now
        if identity != known:
            write_document(fs, meta, b"bucket.json", identity)
        fs.sync_file(fd)
        fs.sync_file(at)
    undo.callback(_save_again, site)
    undo.callback(site.identities.buckets.pop, str(address), None)
    site.identities.buckets[str(address)] = str(identity["uuid"])


def _save_again(site: Site) -> None:
    """Save the identities without a bucket that was not made: the first try may have failed in its last step."""
    with contextlib.suppress(OSError, FsreplError):
        site.save_identities()


def _unmake(site: Site, address: Address, folder: bytes = b"") -> None:
    """Remove a bucket's folder that was just created, or a folder in it. Files that a user has added stay."""
    name = address.name
    with contextlib.suppress(OSError, FsreplError), site.open_region(address.region) as at:
        if not folder:
            site.fs.remove_dir(at, name.encode())
            return
        fd = site.fs.open_dir(at, name.encode(), cross=True)
        try:
            below = site.fs.open_dir(fd, folder)
            try:
                remove_below(site.fs, below)
            finally:
                site.fs.close(below)
            site.fs.remove_dir(fd, folder)
        finally:
            site.fs.close(fd)


def adopt_bucket(engine: Engine, bucket: Address, *, dry_run: bool, trees: bool = False) -> dict[str, object]:
    """Turn a folder with files into a versioned bucket: each file becomes its key's null version.

    A folder that came with its store, moved here from another name or site, keeps its versions and its versioning.

    trees: into a tree bucket, where each symlink does so too, and each directory. A store that is one stays one.
    """
    site, address = engine.site, str(bucket)
    region, name = bucket.region, bucket.name
    arn.check_bucket_name(name)
    if region not in site.settings.regions:
        raise Usage(f"there is no region {region!r} in {site.settings.path}; it names {site.region_names()}")
    if address in site.buckets and versioning_of(site, address) is not Versioning.OFF:
        turn = f"; `fsrepl bucket trees {address} on` makes it a tree bucket" if trees else ""
        raise Refused("BucketAlreadyOwnedByYou", f"{address} is a versioned bucket already{turn}")
    with site.open_region(region) as at:
        try:
            fd = site.fs.open_dir(at, name.encode(), cross=True)
        except OSError as error:
            raise Refused("NoSuchBucket", f"{address}: the folder cannot be opened: {reason(error)}") from error
        try:
            _require_no_copy(site, address, fd)
            room = measure(site.fs, fd, engine.settings, region, trees=trees)
            room.check(address)
            answer = {"Bucket": address, **room.document()}
            if dry_run:
                return answer
            requirements.require(site.fs, fd, f"folder {address}")
        finally:
            site.fs.close(fd)
    with contextlib.ExitStack() as undo:
        make_bucket(site, bucket, Versioning.OFF, undo, trees=trees)
        site.save_identities()
        undo.pop_all()
    state = versioning_of(site, address)
    if state is not Versioning.OFF:
        engine.region_of(address).follow(address)
        return {**answer, **Adopted().document(), "Versioning": str(state)}
    return {**answer, **enable_versioning(engine, address, Versioning.ENABLED).document(), "Versioning": "Enabled"}


def _require_no_copy(site: Site, address: str, at: int) -> None:
    """Raises Refused where an open folder holds the store of another bucket of the site: two buckets of one identity
    would be taken for each other, and a copied rule would send the files of both to one place."""
    try:
        found = read_document(site.fs, at, META + b"/bucket.json")
    except NotADirectoryError:
        return
    except (OSError, ValueError) as error:
        raise Refused(
            "InvalidRequest",
            f"{address} has a .fsrepl already, and its bucket.json cannot be read: {reason(error)}; "
            "move that .fsrepl away, and the files become new objects",
        ) from error
    uuid = str(found.get("uuid")) if found else ""
    for other, known in site.identities.buckets.items():
        if known == uuid and other != address:
            raise Refused(
                "BucketAlreadyOwnedByYou",
                f"the .fsrepl in {address} is that of {other}, a bucket of this site; if the folder is a copy, remove "
                f"the .fsrepl in it; if it is {other} itself, move it back, or `fsrepl bucket rm {other}` first",
            )


def heal_bucket(
    engine: Engine, address: str, *, dry_run: bool, umask: int | None = None, trees: bool = False
) -> dict[str, object]:
    """Restore a bucket that has lost its .fsrepl or its folder. See heal.py. umask: see make_bucket.

    trees: as a tree bucket; one that was a tree bucket is one again.
    """
    bucket = engine.site.bucket(address)
    if not has_folder(bucket):
        if dry_run:
            with engine.site.open_region(bucket.region) as at:
                room = Room(0, 0, 0, engine.fs.space(at)[0], 0)
            missing = what_is_missing(engine, bucket, None)
            return {"Bucket": address, **room.document(), **missing.document(), "Healed": False}
        make_folder(bucket, umask)
    with open_folder(bucket) as (_, fd):
        is_tree = trees or remembered.was_tree(engine.site, address)
        room = measure(engine.fs, fd, engine.settings, bucket.region, trees=is_tree)
        room.check(address)
        answer = {"Bucket": address, **room.document()}
        if dry_run:
            return answer | what_is_missing(engine, bucket, fd).document() | {"Healed": False}
        requirements.require(engine.fs, fd, f"folder {address}")
    return answer | heal(engine, address, trees=trees).document()


def remove_bucket(engine: Engine, request: RemoveBucket) -> dict[str, object]:
    """Remove a bucket; with purge also its contents.

    The identity is removed first, so that a crash never leaves an apparent deletion of objects. The same command
    continues an interrupted removal.
    """
    site = engine.site
    bucket = site.bucket(str(request.bucket))
    address = bucket.address
    try:
        if not _is_half_removed(bucket):
            with bucket.open() as opened:
                if not request.purge and next(_contents(opened), None) is not None:
                    raise Refused(
                        "BucketNotEmpty",
                        f"{address} holds objects or versions; --yes removes the bucket with its contents",
                    )
                _require_tiers(engine, opened)
                engine.region_of(address).drop_bucket(address)
                site.fs.rename(opened.meta, b"bucket.json", opened.meta, REMOVED_IDENTITY)
                site.fs.sync_file(opened.meta)
        known = engine.journal.totals
        with engine.tasks.begin(str(request), known.versions(address) + known.counts(address).objects) as task:
            _empty_tiers(bucket)
            _remove_tree(bucket, task.add)
    except BucketMissing:
        pass
    del site.identities.buckets[address]
    site.save_identities()
    remembered.forget(site, address)
    engine.recent.forget(address)
    with engine.journal.transaction():
        engine.journal.forget_bucket(address)
    return {"Bucket": address}


def _require_tiers(engine: Engine, bucket: OpenBucket) -> None:
    """Raises Unavailable where a tier is away that has content of a bucket: it would stay there for ever."""
    held = {read_tier(traits) for traits, _, _, _ in engine.journal.totals.classed(bucket.address)}
    for name in sorted(held - {""}):
        bucket.tier(name)


def _empty_tiers(bucket: Bucket) -> None:
    """Remove a bucket's content from the tiers of its region."""
    for name in bucket.root.settings.classes:
        tier = bucket.root.tier(name)
        with contextlib.suppress(Unavailable):
            if tier is not None:
                tier.remove_bucket(bucket.name)


def _is_half_removed(bucket: Bucket) -> bool:
    """Whether a removal of this bucket was interrupted: its identity says so, or the folder is empty."""
    fs = bucket.fs
    with open_folder(bucket) as (_, fd):
        others = any(name != META for name, _ in fs.entries(fd))
        try:
            meta = fs.open_dir(fd, META)
        except OSError:
            return not others
        try:
            removed = read_document(fs, meta, REMOVED_IDENTITY)
            if removed is None:
                return not others and not any(fs.entries(meta))
            return removed.get("uuid") == bucket.uuid
        except (OSError, ValueError):
            return False
        finally:
            fs.close(meta)


def _remove_tree(bucket: Bucket, removed: Callable[[int], None]) -> None:
    """Remove a bucket's contents, then its folder. The file that records the removal is removed last. removed: see
    remove_below."""
    fs = bucket.fs
    with open_folder(bucket) as (at, fd):
        remove_below(fs, fd, but=META, removed=removed)
        with contextlib.suppress(FileNotFoundError):
            meta = fs.open_dir(fd, META)
            try:
                remove_below(fs, meta, but=REMOVED_IDENTITY, removed=removed)
                remove_document(fs, meta, REMOVED_IDENTITY)
            finally:
                fs.close(meta)
            fs.remove_dir(fd, META)
        with contextlib.suppress(OSError):
            fs.remove_dir(at, bucket.name.encode())
        fs.sync_file(at)


def _contents(bucket: OpenBucket) -> Iterator[bytes]:
    for directory in directories(bucket.fs, bucket.fd, but=META, failed=leave_out):
        yield from directory.files()
    if bucket.versions >= 0:
        for _, _, found in versions.walk(bucket):
            yield from (name for name, _ in found)
