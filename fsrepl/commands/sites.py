"""Sites and their regions: created, attached, replaced, forgotten. A command that fails undoes its changes."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Collection
from pathlib import Path

from msgspec.structs import replace

from fsrepl import settings
from fsrepl.commands import heal, requirements, settings_text
from fsrepl.commands.buckets import make_bucket
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.lock import is_locked
from fsrepl.daemon.requests import AddRegion
from fsrepl.errors import FsreplError, StoreDamaged, Usage, reason
from fsrepl.model import keys
from fsrepl.model.address import Address
from fsrepl.model.rule import Rule
from fsrepl.model.version import DeliveryRecord, Origin, Version, Versioning
from fsrepl.region import deliveries
from fsrepl.s3 import arn, replication
from fsrepl.s3.rules import new_record, renewed, winners
from fsrepl.settings import reading
from fsrepl.storage import remembered, versions
from fsrepl.storage.bucket import META
from fsrepl.storage.documents import open_directory, read_document, remove_document, write_bytes, write_document
from fsrepl.storage.fs import FileType, Fs
from fsrepl.storage.root import REGION_IDENTITY
from fsrepl.storage.site import Site, new_identity

DEFAULT_REGIONS = ("us-east-1", "eu-west-1")


def init(directory: Path, regions: dict[str, str | None], *, fs: Fs | None = None) -> dict[str, object]:
    """Create a site: its settings, and an identity in each region. A region with an identity is attached unchanged."""
    directory = Path(os.path.abspath(directory))
    path = directory / settings.FILE
    if path.exists():
        raise Usage(f"{path} exists already; `fsrepl region add` adds regions to it")
    for name, given in regions.items():
        if given and "://" in given:
            raise Usage(f"{given} is no directory; make the site first, then `fsrepl region add {name}={given}`")
    wanted = {name: given or name for name, given in (regions or dict.fromkeys(DEFAULT_REGIONS)).items()}
    wanted = {n: p if p == n else os.path.abspath(p) for n, p in wanted.items()}
    text = settings_text.render(wanted)
    parsed = reading.parse(text, path, os.path.realpath)
    with contextlib.ExitStack() as undo:
        make_directory(directory, "the site", undo)
        site = Site(parsed, fs)
        found = {name: attach_region(site, name, undo) for name in wanted}
        site.save_identities()
        write_settings(site.fs, path, text)
        undo.pop_all()
    attached = [{"Name": n, "Path": str(r.path), "Buckets": found[n]} for n, r in parsed.regions.items()]
    return {"Site": str(directory), "Regions": attached}


def make_directory(path: Path, what: str, undo: contextlib.ExitStack, umask: int | None = None) -> None:
    """Create a directory and its missing parents; undo removes them again. Raises Usage.

    umask: the caller's, where the caller is another process.
    """
    try:
        for each in reversed([p for p in (path, *path.parents) if not os.path.lexists(p)]):
            each.mkdir(exist_ok=True)
            undo.callback(_remove_if_empty, each)
            if umask is not None:
                each.chmod(0o777 & ~umask)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise Usage(f"{what} cannot be created at {path}: {reason(error)}") from error


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def write_settings(fs: Fs, path: Path, text: str) -> None:
    """Replace fsrepl.toml in one step. An existing file, also behind a symlink, keeps its owner and mode."""
    path = Path(os.path.realpath(path))
    with open_directory(fs, path.parent) as at:
        name = path.name.encode()
        try:
            like = fs.stat(at, name)
        except FileNotFoundError:
            like = None
        write_bytes(fs, at, name, text.encode(), mode=0o644, like=like)


def attach_region(
    site: Site, name: str, undo: contextlib.ExitStack, *, replace: bool = False, umask: int | None = None,
    uuid: str = "",
) -> list[str]:  # fmt: skip
    """Attach a directory as the region of this name, new or with its identity; the buckets found in it.

    Raises Usage where the directory is another region, not the known one, or in use by another site. replace: the
    directory replaces a lost region. uuid: for a new region. undo removes what was created.
    """
    path = site.settings.regions[name].path
    make_directory(path, f"region {name}", undo, umask)
    with open_directory(site.fs, path) as at:
        try:
            identity = read_document(site.fs, at, REGION_IDENTITY)
        except (OSError, ValueError) as error:
            raise Usage(f"the identity of region {name} at {path} cannot be read: {error}") from error
        known = site.identities.regions.get(name)
        if identity is None:
            if known is not None and not replace:
                raise Usage(
                    f"{path} is not the region {name} that this site knows (no {REGION_IDENTITY.decode()}); mount it, "
                    "or if its disk is lost, name the new directory with --replace"
                )
            requirements.require(site.fs, at, f"region {name} at {path}")
            undo.callback(_remove_identity, site.fs, path)
            identity = dict(new_identity(name, site.now(), **({"uuid": uuid} if uuid else {})))
        elif identity.get("name") != name:
            raise Usage(f"{path} is the region {identity.get('name')!r}; use that name")
        elif known is not None and identity.get("uuid") != known and not replace:
            raise Usage(f"{path} is another region named {name} than this site knows; --replace uses it instead")
        _claim(site, name, at, identity)
        site.identities.regions[name] = str(identity["uuid"])
        stores: list[tuple[bool, str, str]] = []
        for folder, kind in site.fs.entries(at):
            if kind is not FileType.DIRECTORY:
                continue
            with contextlib.suppress(OSError, ValueError, FsreplError):
                fd = site.fs.open_dir(at, folder + b"/" + META, cross=True)
                try:
                    bucket = read_document(site.fs, fd, b"bucket.json")
                finally:
                    site.fs.close(fd)
                if bucket is not None:
                    called = os.fsdecode(folder)
                    arn.check_bucket_name(called)
                    stores.append((bucket.get("name") != called, f"{name}/{called}", str(bucket["uuid"])))
    found = []
    for other_name, address, uuid_there in sorted(stores):
        if other_name and any(u == uuid_there and a != address for a, u in site.identities.buckets.items()):
            continue  # a copy of another bucket's folder
        site.identities.buckets[address] = uuid_there
        found.append(address)
    return sorted(found)


def _remove_identity(fs: Fs, path: Path) -> None:
    with open_directory(fs, path) as at:
        remove_document(fs, at, REGION_IDENTITY)


def _claim(site: Site, name: str, at: int, identity: dict[str, object]) -> None:
    """Write the site's claim into a region: two daemons in one region would make two versions of each file.

    A site whose folder was lost leaves its claim behind, so a claim counts only while its daemon runs. Raises Usage.
    """
    mine = {"uuid": site.uuid, "state": site.state}
    claim = identity.get("site")
    if claim == mine:
        return
    of_another = isinstance(claim, dict) and claim.get("uuid") != site.uuid and claim.get("state") != site.state
    if isinstance(claim, dict) and of_another and is_locked(str(claim.get("state"))):
        raise Usage(
            f"region {name} at {site.settings.regions[name].path} belongs to a site that is running, with its state in "
            f"{claim.get('state')}; remove it from that site with `fsrepl region forget {identity.get('name')}`"
        )
    write_document(site.fs, at, REGION_IDENTITY, {**identity, "site": mine})


def add_region(engine: Engine, request: AddRegion) -> dict[str, object]:
    """Attach a region, or create one; with replace, a new directory whose buckets will be filled again."""
    name, replace, umask = request.name, request.replace, request.umask
    file = engine.settings.path
    old = engine.settings.regions.get(name)
    text = file.read_text()
    absolute = os.path.abspath(os.path.join(file.parent, request.path))
    if old is None:
        text = settings_text.add_region(text, name, absolute)
    elif os.path.realpath(old.path) != os.path.realpath(absolute):
        if not replace and name in engine.site.identities.regions and not _is_region(absolute, name, engine.site):
            raise Usage(f"region {name} is at {old.path}; --replace moves it to another disk")
        text = settings_text.move_region(text, name, absolute)
    parsed = reading.parse(text, file, os.path.realpath)
    site = Site(parsed, engine.fs, engine.site.now)
    lost = [a for a in site.identities.buckets if a.startswith(name + "/")] if replace else []
    with contextlib.ExitStack() as undo:
        found = attach_region(site, name, undo, replace=replace, umask=umask)
        for address in lost:
            if address not in found:
                bucket = Address.parse_bucket(address)
                make_bucket(site, bucket, Versioning.ENABLED, undo, umask, trees=remembered.was_tree(site, address))
                _put_back_settings(site, bucket)
        site.save_identities()
        write_settings(engine.fs, file, text)
        undo.pop_all()
    engine.reload(parsed)
    answer: dict[str, object] = {"Name": name, "Path": absolute, "Buckets": sorted({*found, *lost})}
    if not replace:
        return answer
    from_afar = [a for a in lost if a not in found and heal.far_destinations(engine.site, a)]
    filled = [_bring_back(engine, address) for address in from_afar]
    fetched = sum(number for number, _ in filled)
    filled += [fill_again(engine, address) for address in lost if address not in from_afar]
    away = sorted({why for _, whys in filled for why in whys})
    return answer | {"Refilled": sum(number for number, _ in filled), "Fetched": fetched, "NotAsked": away}


def _bring_back(engine: Engine, address: str) -> tuple[int, list[str]]:
    """Fill a lost bucket with all that others have of it, S3 services and other machines among them; as fill_again."""
    healed = heal.heal(engine, address)
    return healed.brought.fetched, list(healed.brought.away)


def _put_back_settings(site: Site, address: Address) -> None:
    """Restore a bucket's settings on a new disk, as the lost bucket had them."""
    with site.open_region(address.region) as at:
        meta = site.fs.open_dir(at, os.fsencode(address.name) + b"/" + META, cross=True)
        try:
            remove_document(site.fs, meta, remembered.VERSIONING)
            put = remembered.put_back(site, str(address), meta, remembered.SETTINGS)
            if remembered.VERSIONING not in put:
                write_document(
                    site.fs, meta, remembered.VERSIONING, replication.versioning_document(Versioning.ENABLED)
                )
        finally:
            site.fs.close(meta)


def _is_region(path: str, name: str, site: Site) -> bool:
    with contextlib.suppress(OSError, ValueError), open_directory(site.fs, Path(path)) as at:
        identity = read_document(site.fs, at, REGION_IDENTITY) or {}
        return identity.get("uuid") == site.identities.regions.get(name)
    return False


def fill_again(engine: Engine, lost: str) -> tuple[int, list[str]]:
    """Queue deliveries to a lost bucket of all versions that others have; how many, and why some were not read."""
    number, away = 0, []
    for address in sorted(engine.site.buckets.keys() - {lost}):
        try:
            number += engine.region_of(address).ask(functools.partial(_redeliver_what_it_had, engine, address, lost))
        except (FsreplError, OSError) as error:
            away.append(f"{address}: {reason(error)}")
    return number, away


def _redeliver_what_it_had(engine: Engine, address: str, lost: str) -> int:
    """Queue again what this bucket had delivered to the lost one, and replicas from it where a rule leads back.

    Runs in the thread of this bucket's region.
    """
    region, number = engine.region_of(address), 0
    with engine.site.bucket(address).open() as bucket:
        replication = bucket.bucket.replication
        rules = [rule for rule in replication.rules if rule.destination == lost] if replication else []
        had_some = rules or any(delivery.destination == lost for delivery in engine.journal.deliveries.select(address))
        if bucket.versions < 0 or not had_some:
            return 0
        for path, fd, found in versions.walk(bucket):
            for name, stored in found:
                with contextlib.suppress(FileNotFoundError, StoreDamaged):
                    version = versions.read_stored(bucket, fd, keys.join(path, stored.name), stored, name)
                    recorded = _renewed(version, lost, rules)
                    if recorded is not None:
                        deliveries.redeliver(region, bucket, version, {**version.deliveries, lost: recorded})
                        number += 1
    return number


def _renewed(version: Version, lost: str, rules: Collection[Rule]) -> DeliveryRecord | None:
    known = version.deliveries.get(lost)
    if known is not None:
        return replace(renewed(known), edit=False) if known.settled else None
    if version.origin is Origin.REPLICA and version.source == lost:
        rule = winners(rules, version.key, version.tags, marker=version.marker).get(lost)
        return new_record(rule) if rule is not None else None
    return None


def forget_region(engine: Engine, name: str) -> dict[str, object]:
    """Remove a region from the site; its directory stays unchanged."""
    if name not in {*engine.settings.regions, *engine.settings.destinations}:
        raise Usage(engine.site.no_region(name))
    if [*engine.settings.regions] == [name]:
        raise Usage(f"{name} is the only region of this site")
    file = engine.settings.path
    text = settings_text.remove_region(file.read_text(), name)
    parsed = reading.parse(text, file, os.path.realpath)
    site = engine.site
    with contextlib.suppress(FsreplError, OSError), site.open_region(name) as at:
        identity = read_document(engine.fs, at, REGION_IDENTITY) or {}
        write_document(engine.fs, at, REGION_IDENTITY, {n: v for n, v in identity.items() if n != "site"})
    site.identities.regions.pop(name, None)
    for address in [a for a in site.identities.buckets if a.startswith(name + "/")]:
        del site.identities.buckets[address]
    site.save_identities()
    write_settings(engine.fs, file, text)
    engine.reload(parsed)
    return {"Name": name}
