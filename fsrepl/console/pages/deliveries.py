"""Deliveries: failures by kind, lists of them; and the question after a mass deletion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fsrepl.commands.folder import key_of
from fsrepl.commands.reader import Document
from fsrepl.console.pages.rendering import Frame, render, url
from fsrepl.model import keys


def failures(frame: Frame, found: Sequence[Document]) -> str:
    return render("failures.html", frame, failures=found)


def deliveries(
    frame: Frame, bucket: str, status: str, only: Mapping[str, str], found: Sequence[Document],
    skip_next: int | None,
) -> str:  # fmt: skip
    return render(
        "deliveries.html", frame, bucket=bucket, status=status, only=only, deliveries=found,
        retry_url=url("/retry", bucket=bucket, **only),
        following=url("/deliveries", bucket=bucket, status=status, **only, skip=skip_next) if skip_next else "",
    )  # fmt: skip


def acknowledge(frame: Frame, bucket: str) -> str:
    return render("acknowledge.html", frame, bucket=bucket)


def undelete(frame: Frame, bucket: str, since: str, found: Document) -> str:
    """found: {"Keys", "Bytes", "First"}: the number and size of what would come back, and the first names."""
    names = [keys.shown(key_of(each)) for each in found["First"]]
    return render("undelete.html", frame, bucket=bucket, since=since, found=found, names=names)
