"""The replication of one source."""

from __future__ import annotations

import json
from collections.abc import Collection

from fsrepl.commands.reader import Document
from fsrepl.console.pages.rendering import Frame, render


def page(
    frame: Frame, bucket: str, document: Document | None, status: Document | None, role: Document | None,
    role_trouble: str, *, known: Collection[str], text: str | None, trouble: str,
) -> str:  # fmt: skip
    """document None: it is not replicated. known: the buckets that have a page of their own. text: the document as it
    is being edited; trouble: why it was refused."""
    rules = document["ReplicationConfiguration"]["Rules"] if document is not None else []
    return render(
        "replication.html", frame,
        bucket=bucket,
        known=known,
        has_rules=document is not None,
        are_disabled=bool(rules) and all(rule["Status"] == "Disabled" for rule in rules),
        rules=status["rules"] if status is not None else [],
        text=text if text is not None else json.dumps(document, indent=2) if document is not None else "",
        trouble=trouble,
        role=json.dumps(role, indent=2) if role is not None else "",
        role_trouble=role_trouble,
    )  # fmt: skip
