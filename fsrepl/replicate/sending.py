"""The sending side of deliveries from one source to one destination: its versions, rules and role."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from fsrepl.errors import Failed
from fsrepl.model import metadata
from fsrepl.model.rule import Replication, Role
from fsrepl.model.version import ARCHIVED_CLASSES, Version
from fsrepl.region.runtime import Runtime
from fsrepl.replicate import decide, run_as
from fsrepl.s3 import permissions
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.rows import Delivery

log = logging.getLogger("fsrepl")


class Sending:
    """See the module. to_tree: the destination, where it is a tree. Used by one thread, for one batch."""

    def __init__(self, engine: Runtime, source: OpenBucket, to_tree: OpenBucket | None = None) -> None:
        self._engine, self._source, self._to_tree = engine, source, to_tree
        self.replication: Replication | None = source.bucket.replication
        self.rules = {rule.id: rule for rule in self.replication.rules} if self.replication else {}
        self.role: Role | None = engine.role(self.replication.role) if self.replication else None
        self._run_as_check: run_as.RunAsCheck | None = None

    def version(self, delivery: Delivery) -> Version | None:
        """The version of a delivery, as its record says. Raises StoreDamaged."""
        version = self._engine.recent.version(delivery.source, delivery.key, delivery.id)
        if version is None:
            version = versions.read(self._source, delivery.key, delivery.id, marker=delivery.marker)
        return versions.ensure_whole(version) if version else None

    def facts(
        self, delivery: Delivery, version: Version | None, there: Callable[[Version], dict[str, Any]]
    ) -> decide.Facts:
        """What decides about a delivery. there: the facts of the destination, asked where the version is there."""
        rule = self.rules.get(delivery.rule)
        recorded = version.deliveries.get(delivery.destination) if version else None
        if version is None or recorded is None:
            key_there = self._engine.journal.versions.object(delivery.source, delivery.key) is not None
            return decide.Facts(source_configured=self.replication is not None, source_there=False,
                                key_there=key_there, rule_enabled=rule is not None and rule.enabled)  # fmt: skip
        permission = permissions.permission_to_send(
            self.role,
            source=delivery.source,
            destination=delivery.destination,
            key=delivery.key.decode("utf-8", "surrogateescape"),
            marker=version.marker,
            tags=bool(version.tags) or (recorded.edit and metadata.TAGS in version.edited),
            acl=bool(version.posix and version.posix.acl) or (recorded.edit and metadata.ACL in version.edited),
            owner_override=bool(recorded.owner),
            batch=bool(recorded.job),
            large=not recorded.edit and version.size >= self._engine.settings.replication.large_file_bytes,
        )
        refusal = permission.reason or self._run_as_refusal(version)
        return decide.Facts(
            source_configured=self.replication is not None,
            rule_enabled=rule is not None and rule.enabled and rule.destination == delivery.destination,
            permission=refusal,
            with_tags=permission.with_tags,
            archived=version.storage_class in ARCHIVED_CLASSES,
            edit=recorded.edit,
            **there(version),
        )

    def _run_as_refusal(self, version: Version) -> str:
        """S3's reason where the filesystem refuses the version to the user of the role; empty where it does not."""
        try:
            if self.role is None or (user := run_as.run_as(self.role)) is None:
                return ""
            if self._run_as_check is None:
                self._run_as_check = run_as.RunAsCheck(user, self._source, self._to_tree)
            return self._run_as_check.refusal(version)
        except Failed as error:
            log.warning("role refused bucket=%s: %s", self._source.address, error)
            return error.reason
