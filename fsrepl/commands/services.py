"""Regions that are S3 services: looked at, added, and their buckets made and set."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from typing import TypedDict

from msgspec.structs import replace

from fsrepl.commands import settings_text, versioning
from fsrepl.commands.sites import write_settings
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import AddRegion, CreateBucket, Repair, SetVersioning
from fsrepl.daemon.service_bucket import describe_refusal
from fsrepl.daemon.worker import Worker
from fsrepl.errors import BucketMissing, FsreplError, Refused, StoreDamaged, Usage
from fsrepl.model import digests, keys
from fsrepl.model.address import region_of
from fsrepl.model.version import Version, Versioning
from fsrepl.region import deliveries
from fsrepl.remote import client, puts
from fsrepl.remote.bucket import RemoteBucket
from fsrepl.remote.elsewhere import Elsewhere
from fsrepl.remote.failures import Absent, ServiceRefused
from fsrepl.remote.service import Service
from fsrepl.s3 import arn
from fsrepl.s3.rules import renewed
from fsrepl.settings import reading
from fsrepl.storage import versions
from fsrepl.storage.journal.rows import delivery_of
from fsrepl.storage.remote_key import RemoteKey
from fsrepl.storage.site import Site

_REPAIR_S = 60.0
"""How long a repair waits for its delivery."""
_LOOK_S = 0.2


class BucketFacts(TypedDict):
    """A bucket that some bucket is replicated to, or of a region on another machine. trouble: why it cannot take
    replicas that a rule has for it."""

    address: str
    versioning: str
    trouble: str
    place: str


class ServiceFacts(TypedDict):
    """A region that only takes replicas, as one process sees it. slowed: why small objects cost more than they could,
    empty where they do not."""

    name: str
    url: str
    trouble: str
    slowed: str
    buckets: list[BucketFacts]


def look(site: Site) -> list[ServiceFacts]:
    """All regions that only take replicas, and their buckets: of an S3 service those that rules name."""
    return [_look_at(site, service) for service in site.destinations.values()]


def _look_at(site: Site, service: Elsewhere) -> ServiceFacts:
    trouble = service.trouble()
    buckets: list[BucketFacts] = []
    named = site.destinations_in(service.name)
    own: list[str] = []
    if not trouble:
        with contextlib.suppress(FsreplError):
            own = service.own_buckets()
    for address in sorted({*named, *own}):
        versioning, why = "", trouble
        if not trouble:
            try:
                found = service.versioning(address)
                versioning = str(found or "")
                is_fine = found is Versioning.ENABLED or (found is not None and address not in named)
                why = "" if is_fine else describe_refusal(address, found)
            except FsreplError as error:
                why = str(error)
        place = service.place_of(address)
        buckets.append({"address": address, "versioning": versioning, "trouble": why, "place": place})
    slowed = puts.lacking() if service.name in site.services else ""
    return {"name": service.name, "url": service.url, "trouble": trouble, "slowed": slowed, "buckets": buckets}


# -- what a command changes


def repair(engine: Engine, request: Repair) -> None:
    """Have a version sent again to a bucket there, by each bucket that delivered it, and wait for that.

    An object whose content is damaged is removed first; what is there otherwise is brought into line. An agent replaces
    what is damaged there itself.
    """
    address = str(request.bucket)
    service = engine.site.services.get(request.bucket.region)
    for source in engine.site.sources_of(address):
        region = engine.region_of(source)
        version = region.ask(functools.partial(_read, engine, source, request))
        if version is None or address not in version.deliveries:
            continue
        if service is not None:
            _remove_if_damaged(engine, service.bucket(address), version)
        region.ask(functools.partial(_send_again, region, source, address, version))
        _await_delivery(engine, source, address, version)


def _read(engine: Engine, source: str, request: Repair) -> Version | None:
    """The version of a source that a repair names by its stored path."""
    directory, last = keys.split(request.path)
    stored = keys.StoredName(last, request.version_id, request.marker, False)
    name = last + b";" + request.version_id.encode() + (keys.MARKER if request.marker else b"")
    with engine.site.bucket(source).open() as bucket:
        try:
            return versions.read_stored(bucket, bucket.store.get(directory), request.path, stored, name)
        except (OSError, StoreDamaged):
            return None


def _remove_if_damaged(engine: Engine, remote: RemoteBucket, version: Version) -> None:
    journal = engine.journal
    key = RemoteKey(remote, version.key, journal.remote.of_keys(remote.address, [version.key]).get(version.key, []))
    key.look()
    row = key.get(version)
    if row is not None and not version.marker:
        try:
            if digests.of_chunks(remote.content(key.name, row.remote)) != version.digest:
                remote.remove(key.name, row.remote)
                key.forget(version)
        except Absent:
            key.forget(version)
    with journal.transaction():
        journal.bucket_id(remote.address)
        journal.remote.remove(remote.address, key.gone)
        journal.remote.put(remote.address, key.rows.values())


def _send_again(region: Worker, source: str, address: str, version: Version) -> None:
    with region.ready(source).bucket.open() as bucket:
        recorded = version.deliveries[address]
        if recorded.settled:
            again = replace(renewed(recorded), edit=False)
            deliveries.redeliver(region, bucket, version, {**version.deliveries, address: again})


def _await_delivery(engine: Engine, source: str, address: str, version: Version) -> None:
    until_s = time.monotonic() + _REPAIR_S
    delivery = delivery_of(source, version, address, version.deliveries[address])
    while engine.journal.deliveries.is_pending(delivery) and time.monotonic() < until_s:
        if engine.threaded:
            with engine.changed:
                engine.changed.wait(_LOOK_S)
        else:
            engine.receivers[region_of(address)].turn()
            engine.region_of(source).turn()


def create_bucket(engine: Engine, request: CreateBucket) -> dict[str, object]:
    """Create a bucket there, with versioning where that is asked for. Raises Refused with the service's words."""
    address = str(request.bucket)
    arn.check_bucket_name(request.bucket.name)
    service = engine.site.services[request.bucket.region]
    bucket = service.bucket(address)
    try:
        service.ask(bucket.create)
    except ServiceRefused as error:
        raise Refused(*_code_and_words(error)) from error
    if request.versioning:
        _set_versioning(service, address, Versioning.ENABLED)
    return {"Bucket": address, "Versioning": "Enabled" if request.versioning else ""}


def set_versioning(engine: Engine, request: SetVersioning) -> dict[str, object]:
    """Set the versioning of a bucket there. Raises Refused; also where the service takes it and does nothing."""
    address = str(request.bucket)
    if request.status not in (Versioning.ENABLED, Versioning.SUSPENDED):
        raise Refused("MalformedXML", f"versioning is Enabled or Suspended, not {request.status!r}")
    wanted = Versioning(request.status)
    _set_versioning(engine.site.services[request.bucket.region], address, wanted)
    return {"Bucket": address, "Status": str(wanted)} | versioning.cut_off(engine.site, address, wanted)


def _set_versioning(service: Service, address: str, wanted: Versioning) -> None:
    bucket = service.bucket(address)
    try:
        found = service.ask(lambda: bucket.set_versioning(wanted))
    except BucketMissing as error:
        raise Refused("NoSuchBucket", f"{address} does not exist: {error}") from error
    except ServiceRefused as error:
        raise Refused(*_code_and_words(error)) from error
    if found is not wanted:
        raise Refused(
            "NotImplemented",
            f"{service.settings.url} accepted versioning {wanted} for {address}, and says that it is "
            f"{found or 'never enabled'}: the service does not support it",
        )


def _code_and_words(error: ServiceRefused) -> tuple[str, str]:
    code, _, words = error.words.partition(": ")
    return code, words


def add(engine: Engine, request: AddRegion) -> dict[str, object]:
    """Add a service to the site's settings. Raises Usage where it is known already, or is none."""
    name, url = request.name, request.path
    known = engine.settings.destinations.get(name)
    if known is not None or name in engine.settings.regions:
        where = known.url if known is not None else engine.settings.regions[name].path
        raise Usage(f"region {name} is at {where}; change it in {engine.settings.path}, or choose another name")
    if request.replace:
        raise Usage(f"{url} is an S3 service, and --replace gives a region a new directory")
    client.check_installed(name)
    file = engine.settings.path
    text = settings_text.add_service(file.read_text(), name, url)
    parsed = reading.parse(text, file, os.path.realpath)
    write_settings(engine.fs, file, text)
    engine.reload(parsed)
    return {"Name": name, "Path": url, "Buckets": [], "Trouble": engine.site.services[name].trouble()}
