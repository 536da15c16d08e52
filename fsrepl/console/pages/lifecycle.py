"""The lifecycle of a bucket."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fsrepl.commands.reader import Document
from fsrepl.console.pages.rendering import Frame, render

EXAMPLE = {
    "Rules": [
        {
            "ID": "old-versions",
            "Filter": {},
            "Status": "Enabled",
            "Expiration": {"ExpiredObjectDeleteMarker": True},
            "NoncurrentVersionExpiration": {"NoncurrentDays": 30, "NewerNoncurrentVersions": 3},
        }
    ]
}
"""Where a bucket has no lifecycle, the form begins with this."""


def buckets(frame: Frame, found: Sequence[Document]) -> str:
    """found: the documents of `bucket ls`."""
    return render("lifecycle_buckets.html", frame, buckets=found)


def page(
    frame: Frame, bucket: str, saved: Document | None, *, text: str | None, at: str, items: Sequence[Document] | None,
    more: bool, trouble: str,
) -> str:  # fmt: skip
    """saved: the document in force, None without one; text: as it is being edited. items: what is due then, of which
    there may be more."""
    return render(
        "lifecycle.html", frame,
        bucket=bucket,
        is_saved=saved is not None,
        text=text if text is not None else json.dumps(saved if saved is not None else EXAMPLE, indent=2),
        at=at,
        items=items,
        more=more,
        trouble=trouble,
    )  # fmt: skip
