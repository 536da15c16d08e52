"""Regions as JSON: `region ls`."""

from __future__ import annotations

from fsrepl.errors import FsreplError
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
    return {
        "Name": name,
        "Path": str(site.settings.regions[name].path),
        "Online": not trouble,
        "Buckets": sorted(bucket.name for bucket in site.buckets.values() if bucket.region == name),
        "UUID": site.identities.regions.get(name),
        **({"Trouble": trouble} if trouble else {}),
    }
