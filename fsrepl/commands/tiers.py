"""Tiers of a region: attached, listed, emptied, removed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from fsrepl.commands import requirements, settings_text
from fsrepl.commands.documents import tiers as documents
from fsrepl.commands.sites import make_directory, read_identity, remove_identity, write_settings
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import AddTier, RemoveTier
from fsrepl.errors import FsreplError, Usage
from fsrepl.region.region import Region
from fsrepl.settings import TIERS, ClassSettings, reading
from fsrepl.storage import tiers
from fsrepl.storage.documents import open_directory, write_document
from fsrepl.storage.site import Site
from fsrepl.storage.tiers import TIER_IDENTITY


def add_tier(engine: Engine, request: AddTier) -> dict[str, object]:
    """Give a storage class of a region its own directory, new or with the identity of this tier.

    Content of that class that still lies in the region is moved there afterwards.
    """
    region, name = _named(engine.site, request.tier)
    file = engine.settings.path
    text, known = file.read_text(), engine.settings.regions[region].classes.get(name)
    path = os.path.abspath(os.path.join(file.parent, request.path))
    compress = request.compress or (known.compress if known is not None else "none")
    values: Mapping[str, object] = {"path": path} | ({"compress": compress} if compress != "none" else {})
    is_other = known is None or known.drain or known.compress != compress
    if is_other or known is None or os.path.realpath(known.path) != os.path.realpath(path):
        text = settings_text.put_class(text, region, name, values)
    parsed = reading.parse(text, file, os.path.realpath)
    site = Site(parsed, engine.fs, engine.site.now)
    with contextlib.ExitStack() as undo:
        _attach(site, region, name, undo, umask=request.umask)
        site.save_identities()
        write_settings(engine.fs, file, text)
        undo.pop_all()
    engine.reload(parsed)
    return {"Tier": request.tier, "Path": path}


def _named(site: Site, tier: str) -> tuple[str, str]:
    region, _, name = tier.partition("/")
    if region not in site.settings.regions:
        raise Usage(site.no_region(region))
    if name not in TIERS:
        raise Usage(f"{tier!r} is not REGION/CLASS: the storage classes with a tier are {', '.join(TIERS)}")
    if region not in site.identities.regions:
        raise Usage(site.roots[region].not_attached)
    return region, name


def _attach(site: Site, region: str, name: str, undo: contextlib.ExitStack, *, umask: int | None) -> None:
    """Attach a directory as a tier. Raises Usage where it is another tier, or is not the tier that this site knows."""
    address = tiers.tier_address(region, name)
    path, known = site.settings.regions[region].classes[name].path, site.identities.tiers.get(address)
    make_directory(path, f"tier {address}", undo, umask)
    with open_directory(site.fs, path) as at:
        identity = read_identity(site, at, TIER_IDENTITY, f"tier {address} at {path}")
        if identity is None:
            if known is not None:
                raise Usage(
                    f"{path} is not the tier {address} that this site knows (no {TIER_IDENTITY.decode()}); mount it, "
                    f"or name the path that it has now"
                )
            requirements.require(site.fs, at, f"tier {address} at {path}")
            undo.callback(remove_identity, site.fs, path, TIER_IDENTITY)
            region_uuid = site.identities.regions[region]
            identity = dict(tiers.new_tier_identity(region, region_uuid, name, site.now()))
            write_document(site.fs, at, TIER_IDENTITY, identity)
        elif (identity.get("region_uuid"), identity.get("class")) != (site.identities.regions[region], name):
            raise Usage(f"{path} is the tier {identity.get('region')}/{identity.get('class')}, and not one of {region}")
        elif known is not None and identity.get("uuid") != known:
            raise Usage(f"{path} is another tier {address} than this site knows")
    site.identities.tiers[address] = str(identity["uuid"])


def _values(known: ClassSettings) -> Mapping[str, object]:
    return {"path": str(known.path)} | ({"compress": known.compress} if known.compress != "none" else {})


def remove_tier(engine: Engine, request: RemoveTier) -> dict[str, object]:
    """Remove a tier that holds nothing; else have its content moved back into the region first."""
    site, address = engine.site, request.tier
    region, name = _named(site, address)
    known = site.settings.regions[region].classes.get(name)
    if known is None:
        raise Usage(f"{address} has no directory in {site.settings.path}: the class is a label there")
    file, held = engine.settings.path, documents.held(site, engine.journal).get(address)
    if held is not None and held.versions:
        if not known.drain:
            tier = site.roots[region].tier(name)
            assert tier is not None
            with tier.open():
                pass  # one that is away cannot be emptied
            text = settings_text.put_class(file.read_text(), region, name, {**_values(known), "drain": True})
            write_settings(engine.fs, file, text)
            engine.reload(reading.parse(text, file, os.path.realpath))
        return {"Tier": address, "Removed": False, "Versions": held.versions, "Bytes": held.bytes}
    if left := _left(site, region, name):  # by a crash, and at the start still shown: a sweep now removes it
        engine.regions[region].ask(lambda: _sweep_now(engine.regions[region]))
        return {"Tier": address, "Removed": False, "Versions": left, "Bytes": 0}
    text = settings_text.remove_class(file.read_text(), region, name)
    parsed = reading.parse(text, file, os.path.realpath)
    with contextlib.suppress(FsreplError, OSError):
        remove_identity(engine.fs, known.path, TIER_IDENTITY)
    site.identities.tiers.pop(address, None)
    site.save_identities()
    write_settings(engine.fs, file, text)
    engine.reload(parsed)
    return {"Tier": address, "Removed": True, "Versions": 0, "Bytes": 0}


def _left(site: Site, region: str, name: str) -> int:
    """The number of contents of a region's buckets in a tier that no version names any more. 0 where it is away."""
    tier, number = site.roots[region].tier(name), 0
    for address in site.buckets_of(region) if tier is not None else ():
        bucket = site.buckets[address]
        with contextlib.suppress(FsreplError, OSError):
            assert tier is not None
            opened = tier.open_bucket(bucket.name)
            try:
                found = [opened.read(entry) for entry in opened.entries()]
            finally:
                opened.close()
            number += sum(each is not None and bucket.owns(each[0]) for each in found)
    return number


def _sweep_now(region: Region) -> None:
    for state in region.states.values():
        state.lifecycle.placing.sweep_again()
