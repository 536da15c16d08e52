"""Edits of metadata, decided: what was edited, whose edit holds, and to whom it is owed.

Metadata comes in groups: tags, ACL, other attributes, and the rest of what an inode has (posix). Each
carries the stamp of its last edit, the time and the place. A later stamp holds, wherever it comes from,
so that two sides that have heard of each other's edits agree; and an edit that was applied keeps the
stamp it came with, and is none of this side's own, so that nothing echoes. Taking a value away is an
edit like any other. Pure. Source: s3-semantics, 2.2.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fsrepl.model import access, attributes
from fsrepl.model.version import EMPTY, NO_SHORTFALL, Posix, Shortfall, Version

POSIX, ACL, ATTRS, TAGS = "posix", "acl", "attrs", "tags"
GROUPS = frozenset({POSIX, ACL, ATTRS, TAGS})


# -- what was edited


def changed(was: Version, now: Version) -> frozenset[str]:
    """The groups of metadata that differ."""
    a, b = was.posix, now.posix
    groups = set()
    if (a and replace(a, acl=None)) != (b and replace(b, acl=None)):
        groups.add(POSIX)
    if (a and a.acl) != (b and b.acl):
        groups.add(ACL)
    if was.attrs != now.attrs:
        groups.add(ATTRS)
    if was.tags != now.tags:
        groups.add(TAGS)
    return frozenset(groups)


def same(a: Version, b: Version) -> bool:
    """Whether the metadata is equal, and edited equally late."""
    return a is b or (not changed(a, b) and a.edited == b.edited)


def seen(
    version: Version, posix: Posix, own: Mapping[str, bytes] | None = None, tags: Mapping[str, str] = EMPTY, *,
    labelled: bool = True,
) -> Version:  # fmt: skip
    """A version with the metadata that its view has.

    own is None where the view cannot be read, only looked at. In what the view could not be made like its
    version it says nothing of it. marked: it carries a version id; one that should and does not has taken
    the place of the view without its tags, which are kept.
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
    """The object's mode, owner, time and ACL, with those that differ on the view from how it was last shown."""
    return Posix(
        found.mode if found.mode != shown.mode else was.mode,
        found.uid if found.uid != shown.uid else was.uid,
        found.gid if found.gid != shown.gid else was.gid,
        found.mtime_ns if found.mtime_ns != shown.mtime_ns else was.mtime_ns,
        found.acl if found.acl != shown.acl else was.acl,
    )


def shortfall(version: Version, posix: Posix | None, refused: Collection[str]) -> Shortfall:
    """What a view is short of that was given its version's metadata. refused: the attributes that it did not take."""
    if not refused and posix == version.posix:
        return NO_SHORTFALL
    lacks = frozenset(n for n in refused if n == attributes.VERSION_ID or not attributes.is_ours(n))
    return Shortfall(None if posix == version.posix else posix, lacks)


# -- whose edit holds


def stamped(edited: Version, groups: Collection[str], now_ns: int, place: str) -> Version:
    """The same, edited here and now. Later than what it takes the place of, whatever the clock did meanwhile."""
    latest_ns = max((stamp_of(edited, group)[0] for group in groups), default=0)
    stamp = f"{max(now_ns, latest_ns + 1)} {place}"
    return replace(edited, edited={**edited.edited, **dict.fromkeys(groups, stamp)})


def merged(there: Version, sent: Version, groups: Collection[str] = GROUPS) -> Version:
    """What a version becomes that is there: of these groups what was sent, unless it was edited later there.

    Of a group that was edited on neither side what was sent counts; an edit that is there already does not come twice.
    """
    taken = {
        group
        for group in groups
        if stamp_of(sent, group) > stamp_of(there, group) or group not in {**sent.edited, **there.edited}
    }
    posix = there.posix
    if sent.posix is not None and posix is not None:
        if POSIX in taken:
            posix = replace(sent.posix, acl=posix.acl)
        if ACL in taken:
            posix = replace(posix, acl=sent.posix.acl)
    return replace(
        there,
        posix=posix,
        attrs=sent.attrs if ATTRS in taken else there.attrs,
        tags=sent.tags if TAGS in taken else there.tags,
        edited={**there.edited, **{group: stamp for group, stamp in sent.edited.items() if group in taken}},
    )


def stamp_of(version: Version, group: str) -> tuple[int, str]:
    """When and where a group was last edited. As it was made, everything is older than any edit."""
    edited_ns, _, place = version.edited.get(group, "0").partition(" ")
    return int(edited_ns), place


# -- what travels


def without(version: Version, group: str) -> Version:
    """A version as it is sent where a group of its metadata must stay behind."""
    if group == TAGS:
        version = replace(version, tags={})
    elif group == ACL and version.posix is not None:
        version = replace(version, posix=replace(version.posix, acl=None, mode=access.without_acl(version.posix)))
    return replace(version, edited={name: stamp for name, stamp in version.edited.items() if name != group})
