"""Lifecycle actions as JSON: `lifecycle preview`, and those of one version in `why`."""

from __future__ import annotations

from fsrepl.lifecycle.judge import Due
from fsrepl.model import clock, keys
from fsrepl.model.keys import Document


def due(each: Due) -> Document:
    """An action that is due, or will be."""
    action = each.action
    return keys.key_document(each.key) | {
        "VersionId": action.version_id,
        "Action": str(action.kind),
        "StorageClass": action.storage_class or None,
        "Due": clock.stamp(action.due_ns),
        "Rule": action.rule,
        "BlockedBy": action.blocked_by or None,
    }
