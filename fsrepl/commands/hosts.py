"""Regions on other machines: added, filled again, and asked to carry out what concerns their buckets."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from fsrepl.commands import agents, settings_text, versioning
from fsrepl.commands.regions import fill_again
from fsrepl.commands.sites import attach_region, write_settings
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import (
    AddRegion,
    CreateBucket,
    Examine,
    LookAtHost,
    OnBucket,
    RecallVersions,
    RemoveBucket,
    Request,
    SetTrees,
    SetVersioning,
)
from fsrepl.errors import Usage
from fsrepl.link.host import ANSWER_S, Host
from fsrepl.model.address import Address
from fsrepl.model.version import Versioning
from fsrepl.repair import from_hosts, verify_host
from fsrepl.s3 import arn
from fsrepl.settings import Settings, reading
from fsrepl.storage.site import Site


def attach(settings: Settings, replaces: bool, uuid: str) -> None:
    """Attach the one region of an agent's site, at the agent's side. replaces: any region of that name will do. uuid:
    the identity of a new one."""
    site = Site(settings)
    with contextlib.ExitStack() as undo:
        for name in settings.regions:
            attach_region(site, name, undo, replace=replaces, uuid=uuid)
        site.save_identities()
        undo.pop_all()


def add(engine: Engine, request: AddRegion) -> dict[str, object]:
    """Attach a region on another machine; with replace, in the place of a lost one, whose buckets are filled again.

    Raises Usage where the name has another place, Unavailable where the agent there cannot be reached or refuses.
    """
    name, file, site = request.name, engine.settings.path, engine.site
    known = engine.settings.hosts.get(name)
    text = file.read_text()
    if known is None:
        if name in {*engine.settings.regions, *engine.settings.endpoints}:
            raise Usage(f"region {name} has another place in {file}; change it there, or choose another name")
        text = settings_text.add_host(text, name, request.path)
    elif reading.parse(settings_text.add_host("", name, request.path), file).hosts[name].place != known.place:
        raise Usage(f"region {name} is at {known.url}; change its path in {file}, then add it again")
    parsed = reading.parse(text, file, os.path.realpath)
    host = site.hosts.get(name) or Host(parsed.hosts[name], site.introduce)
    expected = site.identities.regions.get(name, "")
    connection = host.connect(takes=True, replaces=request.replace)
    found, buckets = connection.uuid, sorted(connection.buckets)
    if expected not in ("", found) and not request.replace:
        host.close()
        raise Usage(f"{host.url} holds another region named {name} than this site knows; --replace uses it instead")
    if name not in site.hosts:
        host.close()  # the site has its own
    site.identities.regions[name] = found
    site.save_identities()
    if known is None:
        write_settings(engine.fs, file, text)
    engine.reload(parsed)
    answer: dict[str, object] = {"Name": name, "Path": host.url, "Buckets": buckets}
    return answer | _fill(engine, name) if request.replace else answer


def _fill(engine: Engine, name: str) -> dict[str, object]:
    """Make the buckets that rules lead to, and queue again what they had."""
    host, number, away = engine.site.hosts[name], 0, list[str]()
    for address in engine.site.destinations_in(name):
        if host.versioning(address) is None:
            agents.perform(host, CreateBucket(Address.parse_bucket(address), versioning=True))
        filled, whys = fill_again(engine, address)
        number, away = number + filled, away + whys
    return {"Refilled": number, "Fetched": 0, "NotAsked": sorted(set(away))}


# -- requests about its buckets


def perform(engine: Engine, request: Request) -> dict[str, object] | None:
    """Have the agent carry out a request about a bucket of such a region; None where the request is about none."""
    if not isinstance(request, OnBucket) or request.region not in engine.site.hosts or type(request) not in _CHECKS:
        return None
    _CHECKS[type(request)](engine, request)
    within_s = None if isinstance(request, Examine) else ANSWER_S  # it reads content; the connection's end ends it
    answer = agents.perform(engine.site.hosts[request.region], request, within_s)
    if isinstance(request, SetVersioning):
        answer |= versioning.cut_off(engine.site, str(request.bucket), Versioning(request.status))
    return answer


def examine(engine: Engine, request: Examine) -> dict[str, object]:
    """At the agent's side: see repair/verify_host.py."""
    found = verify_host.examine(engine.site.bucket(str(request.bucket)), request.versions)
    return {"Found": base64.b64encode(found).decode()}


def recall(engine: Engine, request: RecallVersions) -> dict[str, object]:
    """At the agent's side: see repair/from_hosts.py."""
    found = from_hosts.recall(engine.site.bucket(str(request.bucket)), request.wanted)
    return {"Found": base64.b64encode(found).decode()}


def look(engine: Engine, request: LookAtHost) -> dict[str, object]:
    """The buckets of such a region, by address with their versioning. Raises Unavailable, Usage."""
    host = engine.site.hosts.get(request.name)
    if host is None:
        raise Usage(engine.site.no_region(request.name))
    return {"Buckets": host.all_buckets()}


def _check_new(engine: Engine, request: CreateBucket) -> None:
    arn.check_bucket_name(request.bucket.name)


_CHECKS: Mapping[type[Request], Callable[[Engine, Any], None]] = {
    CreateBucket: _check_new,
    SetVersioning: lambda engine, request: None,
    SetTrees: lambda engine, request: None,
    RemoveBucket: lambda engine, request: None,
    Examine: lambda engine, request: None,
}
"""The requests that an agent carries out, and what is checked here before."""
