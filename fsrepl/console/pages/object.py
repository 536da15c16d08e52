"""One object: the chosen version's record, why it is replicated or not, its tags, and all versions."""

from __future__ import annotations

from collections.abc import Sequence

from fsrepl.commands.reader import Document
from fsrepl.commands.why import Answer
from fsrepl.console.pages.rendering import Frame, render, shown, url
from fsrepl.model import clock, keys
from fsrepl.model.address import Address
from fsrepl.model.amounts import counted


def page(
    frame: Frame, address: Address, versions: Sequence[Document], versions_number: int, *, chosen: str,
    record: Document | None, tags: Sequence[Document], why: Answer | None, is_versioned: bool,
) -> str:  # fmt: skip
    """versions: the newest of them, versions_number of all. record: that of `head`, None of a delete marker."""
    folder = keys.split(address.key)[0]
    return render(
        "object.html", frame,
        bucket=address.bucket,
        key_bytes=address.key,
        key=keys.shown(address.key),
        folder=folder,
        folder_url=url("/bucket", bucket=address.bucket, folder=folder or None),
        versions=versions,
        more=versions_number - len(versions),
        chosen=chosen,
        is_latest=versions[0]["VersionId"] == chosen if versions else False,
        record=_record(record) if record is not None else None,
        tags=tags,
        sentences=[shown(sentence) for sentence in why.sentences] if why is not None else [],
        deliveries=why.document["Deliveries"] if why is not None else [],
        is_versioned=is_versioned,
    )  # fmt: skip


def _record(record: Document) -> list[tuple[str, str]]:
    """The lines of a record, nested values with their own names."""
    lines = []
    for name, value in record.items():
        if name in ("Key", "KeyBase64", "Deliveries"):
            continue
        if name == "Posix":
            lines += [(f"{name}: {inner}", shown(_of_posix(inner, each))) for inner, each in value.items()]
        elif isinstance(value, dict):
            lines += [(f"{name}: {shown(str(inner))}", shown(_plain(each))) for inner, each in value.items()]
        elif name == "ContentLength" and isinstance(value, int):
            lines.append((name, counted(value, "byte")))
        else:
            lines.append((name, shown(_plain(value))))
    return lines


def _of_posix(name: str, value: object) -> str:
    return clock.stamp(clock.within(value)) if name == "mtime_ns" and isinstance(value, int) else _plain(value)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)
