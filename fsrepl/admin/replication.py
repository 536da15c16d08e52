"""Replication configurations: the console's five steps, S3's documents, and since when each rule is in effect."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fsrepl import arn, clock, commit, config, keys, records, roles, store, transfer
from fsrepl.admin.role_files import generated_role, role_with, write_role
from fsrepl.admin.versioning import versioning_of
from fsrepl.errors import BucketMissing, Refused, Unavailable, Usage
from fsrepl.model import EMPTY, NO_SHORTFALL, Replication, Versioning
from fsrepl.site import (
    OpenBucket,
    Site,
    remove_document,
    write_document,
)

if TYPE_CHECKING:
    from fsrepl.engine import Engine


class _Buckets:
    """What validation asks of the site's buckets: config.Buckets.

    configured: destinations that were accepted before. One of them that is away can't be looked at, and is
    accepted again, so that an outage keeps nobody from changing or disabling other rules.
    """

    def __init__(self, site: Site, configured: Collection[str] = ()) -> None:
        self._site, self._configured = site, configured

    def named(self, name: str) -> list[str]:
        return self._site.named(name)

    def versioning(self, address: str) -> Versioning | None:
        """Raises Unavailable for a bucket that is away, and was not seen before that."""
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

    def account(self, address: str) -> str:
        return "000000000000"


def candidates(site: Site, source: str) -> list[str]:
    """Buckets that a source can be replicated to: versioned, there, in another region."""
    buckets = _Buckets(site)
    return [
        address
        for address in sorted(site.buckets)
        if address.partition("/")[0] != source.partition("/")[0] and _is_enabled(buckets, address)
    ]


def _is_enabled(buckets: _Buckets, address: str) -> bool:
    try:
        return buckets.versioning(address) is Versioning.ENABLED
    except Unavailable:
        return False


def enable_replication(
    engine: Engine, source: str, destination: str | None, *, prefixes: Sequence[str] = (), storage_class: str = "",
    storage_classes: Mapping[str, str] = EMPTY, role: str = "", rule_id: str = "", delete_markers: bool = True,
    add: bool = False, replace_all: bool = False, dry_run: bool = False,
) -> dict[str, object]:  # fmt: skip
    """What the console's five steps write. All of it or nothing: a role that was made goes again if the rest fails."""
    site = engine.site
    existing = _configuration(site, source)
    if destination is None:
        if existing is None:
            raise Refused("ReplicationConfigurationNotFoundError", f"{source} has no replication configuration yet")
        document = config.set_status(existing.document, "Enabled")
        return {**_finish(engine, source, document, dry_run=dry_run), "Created": False, "Extended": False}
    if existing is not None and not (add or replace_all):
        raise Refused(
            "InvalidRequest", f"{source} has a replication configuration; --add adds to it, --replace replaces it"
        )
    _check_pair(site, source, destination)
    if role:
        role = arn.parse_role_arn(role if role.startswith("arn:") else arn.role_arn(role))
    rules = config.enable_document(
        destination, role=role or "any", prefixes=list(prefixes), storage_class=storage_class,
        storage_classes=storage_classes, rule_id=rule_id, delete_markers=delete_markers,
    )  # fmt: skip
    made: roles.RoleDocument | None = None
    extended = False
    if add and existing is not None:
        role = role or existing.role
        if role == existing.role:
            made = role_with(engine, role, source, destination)
            extended = made is not None
        document = config.add_rules(existing.document, rules["Rules"])
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


def _check_pair(site: Site, source: str, destination: str) -> None:
    """S6, S11: both sides, each named, with what could be chosen instead."""
    buckets = _Buckets(site)
    site.bucket(source)
    offered = ", ".join(candidates(site, source)) or "none yet"
    region, _name = arn.split_address(destination)
    if region not in site.settings.regions:
        raise Usage(f"there is no region {region!r} in {site.settings.path}; it names {site.region_names()}")
    if buckets.versioning(source) is not Versioning.ENABLED:
        raise Refused(
            "InvalidRequest",
            f"versioning must be Enabled on the source {source} first: `fsrepl versioning enable {source}`",
        )
    if source == destination:
        raise Refused("InvalidRequest", f"destination {destination} is the source; choose one of: {offered}")
    there = buckets.versioning(destination)
    if there is None:
        raise Refused("InvalidRequest", f"destination {destination} must exist, and does not; choose one of: {offered}")
    if region == source.partition("/")[0]:
        raise Refused(
            "InvalidRequest",
            f"destination {destination} must be in another region than {source}; choose one of: {offered}",
        )
    if there is not Versioning.ENABLED:
        raise Refused(
            "InvalidRequest",
            f"versioning must be Enabled on the destination {destination}: `fsrepl versioning enable {destination}`; "
            f"or choose one of: {offered}",
        )


def _configuration(site: Site, source: str) -> Replication | None:
    bucket = site.bucket(source)
    with bucket.open():
        return bucket.replication


def configuration(site: Site, source: str) -> Replication:
    """Raises Refused(ReplicationConfigurationNotFoundError)."""
    found = _configuration(site, source)
    if found is None:
        raise Refused("ReplicationConfigurationNotFoundError", f"{source} has no replication configuration")
    return found


def has_configuration(site: Site, source: str) -> bool:
    return _configuration(site, source) is not None


def put_replication(
    engine: Engine, source: str, document: object, *, size_bytes: int = 0, dry_run: bool = False
) -> dict[str, object]:
    """Save a configuration as S3 takes it. Raises Refused with S3's codes."""
    return _finish(engine, source, document, dry_run=dry_run, size_bytes=size_bytes)


def _finish(engine: Engine, source: str, document: object, *, dry_run: bool, size_bytes: int = 0) -> dict[str, object]:
    """Validate a configuration, save it, and follow it from now on."""
    site = engine.site
    bucket = site.bucket(source)
    with bucket.open():
        pass
    configured = {rule.destination for rule in bucket.replication.rules} if bucket.replication else set()
    buckets = _Buckets(site, configured)
    parsed = config.parse_replication(document, source=source, buckets=buckets, size_bytes=size_bytes)
    answer: dict[str, object] = {"ReplicationConfiguration": parsed.document}
    if dry_run:
        return answer
    region = engine.region_of(source)
    region.flush(source)  # what was dropped before this call is judged by the rules of its time
    with bucket.open() as opened:
        if bucket.replication is None:
            _break_links(engine, opened)
        write_document(engine.fs, opened.meta, b"replication.json", answer)
        bucket.refresh(opened)
    region.follow(source)
    return answer


def _break_links(engine: Engine, bucket: OpenBucket) -> None:
    """A bucket becomes a source, so users write into it: its views get content of their own first."""
    if bucket.bucket.sharing == "link" or bucket.versions < 0:
        return
    for directory in engine.journal.directories(bucket.address):
        for name, known in engine.journal.objects_in(bucket.address, directory).items():
            if known.marker or known.view is None or known.view.shown != known.id:
                continue
            key = keys.join(directory, name)
            with contextlib.suppress(FileNotFoundError):
                fd = store.open_version(bucket, key, known.id)
                try:
                    linked = engine.fs.stat_fd(fd).st_ino == known.view.ino and store.is_beside(bucket, key)
                    version = store.read(bucket, key, known.id, marker=False) if linked else None
                    staged, shortfall = transfer.stage_view(bucket, version, fd) if version else (b"", NO_SHORTFALL)
                finally:
                    engine.fs.close(fd)
                if version is not None:
                    outcome = commit.show(bucket, version, known.view, staged)
                    if isinstance(outcome, commit.Shown):
                        records.amend(bucket, replace(version, shortfall=shortfall))
                        with engine.journal.transaction():
                            engine.journal.see(bucket.address, key, outcome.view)
    bucket.sync()


def disable_replication(engine: Engine, source: str) -> dict[str, object]:
    found = configuration(engine.site, source)
    return _finish(engine, source, config.set_status(found.document, "Disabled"), dry_run=False)


def remove_replication(engine: Engine, source: str) -> dict[str, object]:
    configuration(engine.site, source)
    bucket = engine.site.bucket(source)
    engine.region_of(source).flush(source)
    with bucket.open() as opened:
        remove_document(engine.fs, opened.meta, b"replication.json")
        bucket.refresh(opened)
    engine.region_of(source).follow(source)
    return {"Bucket": source}


def note_rules(bucket: OpenBucket, now_ns: int) -> bool:
    """Write down since when each rule is in effect, where that changed; whether it did.

    By the clock for people, and as the ctime of the configuration's file, which the ctimes of
    objects found by a scan can be compared with.
    """
    documents = bucket.bucket.documents
    wanted = {}
    if documents.replication is not None:
        ctime_ns = bucket.fs.stat(bucket.meta, b"replication.json").st_ctime_ns
        for rule in documents.replication.rules:
            if rule.enabled:
                content = config.effective_content(rule)
                known = documents.since.get(rule.id)
                if known is not None and known.content == content:
                    wanted[rule.id] = {"content": content, "ctime_ns": known.ctime_ns, "since": known.since}
                else:
                    wanted[rule.id] = {"content": content, "ctime_ns": ctime_ns, "since": clock.stamp(now_ns)}
    known_all = {
        n: {"content": s.content, "ctime_ns": s.ctime_ns, "since": s.since} for n, s in documents.since.items()
    }
    if wanted == known_all:
        return False
    write_document(bucket.fs, bucket.meta, b"rules.json", wanted)
    return True
