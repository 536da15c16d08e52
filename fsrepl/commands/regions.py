"""Regions of a site: added, replaced and filled again, forgotten. A command that fails undoes its changes."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Collection
from pathlib import Path

from msgspec.structs import replace

from fsrepl.commands import heal, settings_text
from fsrepl.commands.buckets import make_bucket
from fsrepl.commands.sites import attach_region, write_settings
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import AddRegion
from fsrepl.errors import FsreplError, StoreDamaged, Usage, reason
from fsrepl.model import keys
from fsrepl.model.address import Address
from fsrepl.model.rule import Rule
from fsrepl.model.version import DeliveryRecord, Origin, Version, Versioning
from fsrepl.region import deliveries
from fsrepl.s3 import replication
from fsrepl.s3.rules import new_record, renewed, winners
from fsrepl.settings import reading
from fsrepl.storage import remembered, versions
from fsrepl.storage.bucket import META
from fsrepl.storage.documents import open_directory, read_document, remove_document, write_document
from fsrepl.storage.root import REGION_IDENTITY
from fsrepl.storage.site import Site


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
