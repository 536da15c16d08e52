"""Edits of metadata: which group was edited, and which edit wins. Pure.

Metadata has four groups: tags, ACL, other attributes, and the remaining inode fields (posix). Each group has a stamp of
its last edit, the time and the bucket. The later stamp wins, wherever the edit was made, so that two regions that
received each other's edits agree. An applied edit keeps its original stamp and counts as remote, so it is not sent
back. Removing a value is an edit as well. Source: s3-semantics, 2.2.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from fsrepl.model import access, attributes
from fsrepl.model.version import EMPTY, NO_SHORTFALL, Posix, Shortfall, Version

POSIX, ACL, ATTRS, TAGS = "posix", "acl", "attrs", "tags"
GROUPS = frozenset({POSIX, ACL, ATTRS, TAGS})


# -- what was edited


def changed(was: Version, now: Version) -> frozenset[str]:
    """The groups of metadata that differ."""
    a, b = was.posix, now.posix
    groups = set()
    if (a and _without_acls(a)) != (b and _without_acls(b)):
        groups.add(POSIX)
    if (a and (a.acl, a.default_acl)) != (b and (b.acl, b.default_acl)):
        groups.add(ACL)
    if was.attrs != now.attrs:
        groups.add(ATTRS)
    if was.tags != now.tags:
        groups.add(TAGS)
    return frozenset(groups)


def _without_acls(posix: Posix) -> Posix:
    return replace(posix, acl=None, default_acl=None)


def same(a: Version, b: Version) -> bool:
    """Whether two versions have equal metadata and equal edit stamps."""
    return a is b or (not changed(a, b) and a.edited == b.edited)


def seen(
    version: Version, posix: Posix, own: Mapping[str, bytes] | None = None, tags: Mapping[str, str] = EMPTY, *,
    labelled: bool = True,
) -> Version:  # fmt: skip
    """A version with the metadata read from its view.

    own: None where the view can be inspected but not opened. Metadata in the version's shortfall is not read from the
    view. labelled: the view has a version id. A view without the id that it had was replaced by a file without tags,
    and the version's tags are kept.
    """
    short = version.shortfall
    edited = replace(version, posix=_seen_posix(version.posix or posix, short.posix or version.posix or posix, posix))
    if own is not None:
        shown = {*own, *(attributes.TAG + name for name in tags)}
        lacks = short.lacks - shown
        own = {**{n: v for n, v in version.attrs.items() if n in lacks}, **own}
        if labelled or attributes.VERSION_ID in lacks:
            tags = {**{n: v for n, v in version.tags.items() if attributes.TAG + n in lacks}, **tags}
        elif not tags:
            tags = version.tags
        edited = replace(edited, attrs=own, tags=tags, shortfall=replace(short, lacks=lacks))
    return replace(edited, shortfall=replace(edited.shortfall, posix=None if posix == edited.posix else posix))


def _seen_posix(was: Posix, shown: Posix, found: Posix) -> Posix:
    """The object's mode, owner, time and ACL; a value that changed on the view since it was last shown replaces its
    own."""
    return Posix(
        found.mode if found.mode != shown.mode else was.mode,
        found.uid if found.uid != shown.uid else was.uid,
        found.gid if found.gid != shown.gid else was.gid,
        found.mtime_ns if found.mtime_ns != shown.mtime_ns else was.mtime_ns,
        found.acl if found.acl != shown.acl else was.acl,
        found.default_acl if found.default_acl != shown.default_acl else was.default_acl,
    )


def shortfall(version: Version, posix: Posix | None, refused: Collection[str]) -> Shortfall:
    """The shortfall of a view after its version's metadata was applied. refused: the attributes that the view did not
    take."""
    if not refused and posix == version.posix:
        return NO_SHORTFALL
    lacks = frozenset(n for n in refused if n == attributes.VERSION_ID or not attributes.is_ours(n))
    return Shortfall(None if posix == version.posix else posix, lacks)


# -- which edit wins


def stamped(edited: Version, groups: Collection[str], now_ns: int, place: str) -> Version:
    """A version with these groups stamped as edited now in `place`. The stamp is later than the one it replaces, even
    when the clock stepped back."""
    latest_ns = max((stamp_of(edited, group)[0] for group in groups), default=0)
    stamp = f"{max(now_ns, latest_ns + 1)} {place}"
    return replace(edited, edited={**edited.edited, **dict.fromkeys(groups, stamp)})


def merged(there: Version, sent: Version, groups: Collection[str] = GROUPS) -> Version:
    """The version `there` with the groups from `sent`, except groups edited later in `there`.

    A group edited on neither side is taken from `sent`. An edit that `there` already has is not applied twice.
    """
    taken = {
        group
        for group in groups
        if stamp_of(sent, group) > stamp_of(there, group) or group not in {**sent.edited, **there.edited}
    }
    stamps = {group: stamp for group, stamp in sent.edited.items() if group in taken}
    return _with(there, sent, taken, stamps)


def _with(there: Version, sent: Version, taken: Collection[str], stamps: Mapping[str, str]) -> Version:
    """The version `there` with some groups of another one, and their stamps."""
    posix = there.posix
    if sent.posix is not None and posix is not None:
        if POSIX in taken:
            posix = replace(sent.posix, acl=posix.acl, default_acl=posix.default_acl)
        if ACL in taken:
            posix = replace(posix, acl=sent.posix.acl, default_acl=sent.posix.default_acl)
    return replace(
        there,
        posix=posix,
        attrs=sent.attrs if ATTRS in taken else there.attrs,
        tags=sent.tags if TAGS in taken else there.tags,
        edited={**there.edited, **stamps},
    )


def of_one_file(version: Version, other: Version, home: str) -> Version:
    """A version with the later edits that another name of its file has, and with their stamps.

    An edit of a file is one edit, by any of its names. Tags are the key's own. home: the bucket of both.
    """
    later = {
        group: since(other, group, home)
        for group in changed(version, other) - {TAGS}
        if since(other, group, home) > since(version, group, home)
    }
    return _with(version, other, later, {group: f"{ns} {place}" for group, (ns, place) in later.items()})


def stamps_of_one_file(was: Version, now: Version, others: Iterable[Version], home: str) -> dict[str, str]:
    """The stamps of those edited groups of a version that other names of its file have on record with the same values:
    the edit was made through one of these, or applied to it. Source: of_one_file."""
    found: dict[str, tuple[int, str]] = {}
    for other in others:
        after = of_one_file(was, other, home)
        for group in changed(was, after) - changed(after, now):
            found[group] = max(found.get(group, (0, "")), stamp_of(after, group))
    return {group: f"{ns} {place}" for group, (ns, place) in found.items()}


def since(version: Version, group: str, home: str) -> tuple[int, str]:
    """The time from which a version has a group's values, and the bucket where it got them: of its last edit, else of
    its creation. home: the bucket that has it."""
    return stamp_of(version, group) if group in version.edited else (version.created_ns, version.source or home)


def stamp_of(version: Version, group: str) -> tuple[int, str]:
    """The time and bucket of a group's last edit; unedited metadata is older than any edit."""
    edited_ns, _, place = version.edited.get(group, "0").partition(" ")
    return int(edited_ns), place


# -- what is sent


def without(version: Version, group: str) -> Version:
    """A version as sent without one group of its metadata."""
    if group == TAGS:
        version = replace(version, tags={})
    elif group == ACL and version.posix is not None:
        posix = replace(_without_acls(version.posix), mode=access.without_acl(version.posix))
        version = replace(version, posix=posix)
    return replace(version, edited={name: stamp for name, stamp in version.edited.items() if name != group})
