"""Replication configurations by command: the console's five steps, and S3's documents."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from fsrepl.commands.roles import generated_role, role_with, write_role
from fsrepl.commands.versioning import versioning_of
from fsrepl.daemon.engine import Engine
from fsrepl.daemon.requests import EnableReplication, PutReplication
from fsrepl.errors import BucketMissing, FsreplError, Refused, Unavailable, Usage
from fsrepl.model import keys
from fsrepl.model.address import Address, region_of
from fsrepl.model.rule import Replication
from fsrepl.model.version import Versioning
from fsrepl.remote.elsewhere import Elsewhere
from fsrepl.s3 import arn, replication, roles
from fsrepl.storage.documents import remove_document, write_document
from fsrepl.storage.site import Site
from fsrepl.views import hardlinks


class _Buckets:
    """The site's buckets, as validation reads them: each once, however many rules name it.

    configured: destinations that were accepted before. A configured destination that is away cannot be read, and is
    accepted again, so that other rules can be changed or disabled during an outage.
    """

    def __init__(self, site: Site, configured: Collection[str] = ()) -> None:
        self._site, self._configured = site, configured
        self._found: dict[str, Versioning | None] = {}

    def named(self, name: str) -> list[str]:
        return self._site.named(name)

    def versioning(self, address: str) -> Versioning | None:
        """The state of a bucket's versioning. Raises Unavailable for a bucket that is away and was never read."""
        if address not in self._found:
            self._found[address] = self._read(address)
        return self._found[address]

    def _read(self, address: str) -> Versioning | None:
        service = self._site.destinations.get(region_of(address))
        if service is not None:
            return self._there(service, address)
        if address not in self._site.buckets:
            return None
        try:
            return versioning_of(self._site, address)
        except BucketMissing:
            return None
        except Unavailable:
            if address in self._configured:
                return Versioning.ENABLED
            last_seen = self._site.buckets[address].versioning
            if last_seen is Versioning.OFF:
                raise
            return last_seen

    def _there(self, service: Elsewhere, address: str) -> Versioning | None:
        """The state of versioning in a bucket that is no tree here. Raises Unavailable."""
        try:
            return service.versioning(address)
        except Unavailable:
            if address in self._configured:
                return Versioning.ENABLED
            raise

    def account(self, address: str) -> str:
        return "000000000000"


def candidates(site: Site, source: Address) -> list[str]:
    """Buckets that a source can be replicated to: versioned, online, in another region."""
    buckets = _Buckets(site)
    there: list[str] = []
    for service in site.destinations.values():
        with contextlib.suppress(FsreplError):
            there += service.buckets()
    return [
        address
        for address in [*sorted(site.buckets), *there]
        if region_of(address) != source.region and _is_enabled(buckets, address)
    ]


def unsuitable(site: Site, source: Address) -> dict[str, str]:
    """The buckets of other regions that are not offered, and why."""
    buckets, found = _Buckets(site), {}
    for address in sorted(site.buckets):
        if region_of(address) == source.region:
            continue
        try:
            state = buckets.versioning(address)
        except Unavailable as error:
            found[address] = str(error)
            continue
        if state is None:
            found[address] = "its folder is missing"
        elif state is not Versioning.ENABLED:
            found[address] = "versioning is suspended" if state is Versioning.SUSPENDED else "versioning is not enabled"
    return found


def _is_enabled(buckets: _Buckets, address: str) -> bool:
    try:
        return buckets.versioning(address) is Versioning.ENABLED
    except Unavailable:
        return False


def enable_replication(engine: Engine, request: EnableReplication) -> dict[str, object]:
    """Write what the console's five steps write, completely or not at all: after a failure a new role is removed."""
    site, source, dry_run = engine.site, engine.site.bucket(str(request.source)).address, request.dry_run
    existing = _configuration(site, source)
    if request.destination is None:
        if existing is None:
            raise Refused("ReplicationConfigurationNotFoundError", f"{source} has no replication configuration yet")
        document = replication.set_status(existing.document, "Enabled")
        return {**_finish(engine, source, document, dry_run=dry_run), "Created": False, "Extended": False}
    if existing is not None and not (request.add or request.replace):
        raise Refused(
            "InvalidRequest", f"{source} has a replication configuration; --add adds to it, --replace replaces it"
        )
    destination, role = str(request.destination), request.role
    _check_pair(site, request.source, request.destination)
    if role:
        role = arn.parse_role_arn(role if role.startswith("arn:") else arn.role_arn(role))
    rules = replication.enable_document(
        destination, role=role or "any", prefixes=list(request.prefixes), storage_class=request.storage_class,
        storage_classes=request.storage_classes, rule_id=request.id, delete_markers=request.delete_markers,
    )  # fmt: skip
    made: roles.RoleDocument | None = None
    extended = False
    if request.add and existing is not None:
        role = role or existing.role
        if role == existing.role:
            made = role_with(engine, role, source, destination)
            extended = made is not None
        document = replication.add_rules(existing.document, rules["Rules"])
    else:
        if not role:
            role, made = generated_role(engine, source, destination)
        document = rules
    document["Role"] = arn.role_arn(role)
    answer = _finish(engine, source, document, dry_run=True)
    if not dry_run:
        undo = write_role(engine, role, made)
        try:
            answer = _finish(engine, source, document, dry_run=False)
        except BaseException:
            undo()
            raise
    return {**answer, "Role": role, "Created": made is not None and not extended, "Extended": extended}


def _check_pair(site: Site, source: Address, destination: Address) -> None:
    """Check both buckets (S6, S11). Raises Refused, naming the bucket and the possible destinations; Usage."""
    buckets = _Buckets(site)
    region = destination.region
    if region not in site.settings.regions and region not in site.destinations:
        raise Usage(f"there is no region {region!r} in {site.settings.path}; it names {site.region_names()}")
    if buckets.versioning(str(source)) is not Versioning.ENABLED:
        raise Refused(
            "InvalidRequest",
            f"versioning must be Enabled on the source {source} first: `fsrepl versioning enable {source}`",
        )

    def choose() -> str:
        return f"choose one of: {', '.join(candidates(site, source)) or 'none yet'}"

    if source == destination:
        raise Refused("InvalidRequest", f"destination {destination} is the source; {choose()}")
    there = buckets.versioning(str(destination))
    if there is None:
        raise Refused("InvalidRequest", f"destination {destination} does not exist; {choose()}")
    if region == source.region:
        raise Refused(
            "InvalidRequest",
            f"destination {destination} must be in another region than {source}; {choose()}",
        )
    if there is not Versioning.ENABLED:
        raise Refused(
            "InvalidRequest",
            f"versioning must be Enabled on the destination {destination}: `fsrepl versioning enable {destination}`; "
            f"or {choose()}",
        )


def _configuration(site: Site, source: str) -> Replication | None:
    bucket = site.bucket(source)
    with bucket.open():
        return bucket.replication


def configuration(site: Site, source: str) -> Replication:
    """The replication of a bucket. Raises Refused(ReplicationConfigurationNotFoundError)."""
    found = _configuration(site, source)
    if found is None:
        raise Refused("ReplicationConfigurationNotFoundError", f"{source} has no replication configuration")
    return found


def has_configuration(site: Site, source: str) -> bool:
    return _configuration(site, source) is not None


def put_replication(engine: Engine, request: PutReplication) -> dict[str, object]:
    """Validate and save a configuration. Raises Refused with S3's codes."""
    return _finish(
        engine, str(request.source), request.document, dry_run=request.dry_run, size_bytes=request.size_bytes
    )


def _finish(engine: Engine, source: str, document: object, *, dry_run: bool, size_bytes: int = 0) -> dict[str, object]:
    """Validate a configuration, save it, and apply it from now on."""
    site = engine.site
    bucket = site.bucket(source)
    with bucket.open():
        pass
    configured = {rule.destination for rule in bucket.replication.rules} if bucket.replication else set()
    buckets = _Buckets(site, configured)
    parsed = replication.parse_replication(document, source=source, buckets=buckets, size_bytes=size_bytes)
    answer: dict[str, object] = {"ReplicationConfiguration": parsed.document}
    if dry_run:
        return answer
    region = engine.region_of(source)
    region.flush(source)  # files from before this call get the rules of their time
    with bucket.open() as opened:
        if bucket.replication is None:
            hardlinks.break_links(engine, opened)
        write_document(engine.fs, opened.meta, b"replication.json", answer)
        bucket.refresh(opened)
    region.follow(source)
    return answer | _unmatched(engine, source, parsed)


def _unmatched(engine: Engine, source: str, configuration: Replication) -> dict[str, object]:
    """The prefixes of rules that no object begins with, where there are objects: a prefix may be mistyped."""
    versions = engine.journal.versions
    prefixes = dict.fromkeys(rule.prefix for rule in configuration.rules if rule.enabled and rule.prefix)
    missed = [keys.shown(prefix) for prefix in prefixes if not versions.has_object(source, prefix)]
    return {"Unmatched": missed} if missed and versions.has_object(source, b"") else {}


def disable_replication(engine: Engine, source: str) -> dict[str, object]:
    found = configuration(engine.site, source)
    return _finish(engine, source, replication.set_status(found.document, "Disabled"), dry_run=False)


def remove_replication(engine: Engine, source: str) -> dict[str, object]:
    """Remove a configuration; as in S3, that there was none is no error. Source: s3-semantics, section 1."""
    bucket = engine.site.bucket(source)
    if _configuration(engine.site, source) is None:
        return {"Bucket": source, "Removed": False}
    engine.region_of(source).flush(source)
    with bucket.open() as opened:
        remove_document(engine.fs, opened.meta, b"replication.json")
        bucket.refresh(opened)
    engine.region_of(source).follow(source)
    return {"Bucket": source, "Removed": True}
