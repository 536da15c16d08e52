"""Regions that are S3 services: looked at, added, and their buckets made and set."""

from __future__ import annotations

import os
from typing import TypedDict

from fsrepl.commands import settings_text
from fsrepl.commands.sites import write_settings
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import AddRegion, CreateBucket, SetVersioning
from fsrepl.daemon.uplink import describe_refusal
from fsrepl.errors import BucketMissing, FsreplError, Refused, Usage
from fsrepl.model.keys import Document
from fsrepl.model.version import Versioning
from fsrepl.remote import client
from fsrepl.remote.failures import ServiceRefused
from fsrepl.remote.service import Service, versioning_there
from fsrepl.s3 import arn
from fsrepl.settings import reading
from fsrepl.storage.site import Site


class BucketFacts(TypedDict):
    """A bucket that some bucket is replicated to. trouble: why it cannot take replicas now."""

    address: str
    versioning: str
    trouble: str
    place: str


class ServiceFacts(TypedDict):
    """A service as one process sees it."""

    name: str
    url: str
    trouble: str
    buckets: list[BucketFacts]


def look(site: Site) -> list[ServiceFacts]:
    """All services, and their buckets that rules name."""
    return [_look_at(site, service) for service in site.services.values()]


def _look_at(site: Site, service: Service) -> ServiceFacts:
    trouble = service.trouble()
    buckets: list[BucketFacts] = []
    for address in site.destinations_in(service.name):
        bucket = service.bucket(address)
        versioning, why = "", trouble
        if not trouble:
            try:
                found = service.ask(lambda bucket=bucket: versioning_there(bucket))  # type: ignore[misc]
                versioning = str(found or "")
                why = "" if found is Versioning.ENABLED else describe_refusal(address, found)
            except FsreplError as error:
                why = str(error)
        place = f"{service.settings.url}/{bucket.name}/{bucket.prefix}"
        buckets.append({"address": address, "versioning": versioning, "trouble": why, "place": place})
    return {"name": service.name, "url": service.settings.url, "trouble": trouble, "buckets": buckets}


def region_document(found: ServiceFacts) -> Document:
    """A service for `region ls`."""
    return {
        "Name": found["name"],
        "Path": found["url"],
        "Online": not found["trouble"],
        "Buckets": [each["address"].partition("/")[2] for each in found["buckets"]],
        "UUID": None,
        **({"Trouble": found["trouble"]} if found["trouble"] else {}),
    }


def bucket_document(found: BucketFacts) -> Document:
    """A bucket for `bucket ls`."""
    return {
        "Bucket": found["address"],
        "Online": not found["trouble"],
        "Versioning": found["versioning"],
        "ReplicatesTo": [],
        "LifecycleRules": 0,
        "Path": found["place"],
        **({"Trouble": found["trouble"]} if found["trouble"] else {}),
    }


# -- what a command changes


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
    if wanted is Versioning.SUSPENDED and (sources := engine.site.sources_of(address)):
        raise Refused(
            "InvalidBucketState",
            f"{', '.join(sources)} is replicated to {address}, so its versioning cannot be suspended; "
            f"`fsrepl replication rm {sources[0]}` removes the rules",
        )
    _set_versioning(engine.site.services[request.bucket.region], address, wanted)
    return {"Bucket": address, "Status": str(wanted)}


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
    known = engine.settings.endpoints.get(name)
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
