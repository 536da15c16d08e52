"""Regions as JSON: `region ls`."""

from __future__ import annotations

from fsrepl.commands.services import ServiceFacts
from fsrepl.errors import FsreplError
from fsrepl.model.address import name_of
from fsrepl.model.keys import Document
from fsrepl.storage.site import Site


def regions(site: Site) -> list[Document]:
    """Each region of the settings, and whether it is online."""
    return [_region(site, name) for name in site.settings.regions]


def _region(site: Site, name: str) -> Document:
    trouble = ""
    try:
        with site.open_region(name):
            pass
    except FsreplError as error:
        trouble = str(error)
    buckets = sorted(bucket.name for bucket in site.buckets.values() if bucket.region == name)
    return _document(name, str(site.settings.regions[name].path), buckets, site.identities.regions.get(name), trouble)


def of_service(found: ServiceFacts) -> Document:
    """A region that only takes replicas."""
    buckets = [name_of(each["address"]) for each in found["buckets"]]
    return _document(found["name"], found["url"], buckets, None, found["trouble"])


def _document(name: str, path: str, buckets: list[str], uuid: str | None, trouble: str) -> Document:
    return {
        "Name": name,
        "Path": path,
        "Online": not trouble,
        "Buckets": buckets,
        "UUID": uuid,
        **({"Trouble": trouble} if trouble else {}),
    }
