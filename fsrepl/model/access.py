"""Access rights to a file from its mode, owner and POSIX ACL, and modes for files that cannot keep these. Pure.

An ACL is the raw value of system.posix_acl_access. An unreadable ACL lets in only the owner. Source: acl(5), ACCESS
CHECK ALGORITHM; linux/posix_acl_xattr.h.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from msgspec import Struct

from fsrepl.model.version import Posix, Rights

READ, WRITE, EXECUTE = 4, 2, 1

_VERSION = 2
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10


class _Acl(Struct, frozen=True):
    """ACL entries that a mode lacks, already limited by the ACL's mask."""

    users: tuple[tuple[int, int], ...]
    """(uid, permissions)"""
    owning_group: int
    groups: tuple[tuple[int, int], ...]


_NOBODY = _Acl((), 0, ())


def allows(posix: Posix, uid: int, groups: Collection[int], wanted: int) -> bool:
    """Whether a process with this uid and these groups may open a file with `wanted` access; uid 0 always may."""
    if uid == 0:
        return True
    if uid == posix.uid:
        return _has(posix.mode >> 6, wanted)
    if posix.acl is None or not posix.mode & 0o070:  # the kernel ignores an ACL whose mask is empty
        return _has(posix.mode >> 3 if posix.gid in groups else posix.mode, wanted)
    acl = _parse(posix.acl)
    for named, permissions in acl.users:
        if named == uid:
            return _has(permissions, wanted)
    mine = [acl.owning_group] if posix.gid in groups else []
    mine += [permissions for named, permissions in acl.groups if named in groups]
    if mine:
        return any(_has(permissions, wanted) for permissions in mine)
    return _has(posix.mode, wanted)


def _has(permissions: int, wanted: int) -> bool:
    return permissions & wanted == wanted


def without_acl(posix: Posix | Rights) -> int:
    """The mode for a file without the object's ACL; no further user gains access.

    The group bits of a mode with an ACL are the mask, not the group's rights. A user named in the ACL then falls under
    the group or the others, so neither gets more than that user had.
    """
    if posix.acl is None:
        return posix.mode
    acl = _parse(posix.acl)
    group, others = acl.owning_group, posix.mode & 0o7
    for _, permissions in acl.users:
        group &= permissions
        others &= permissions
    for _, permissions in acl.groups:
        others &= permissions
    return posix.mode & ~0o77 | group << 3 | others


def without_owner(posix: Posix | Rights) -> int:
    """The mode for a file whose owner cannot be set: no setuid, no setgid, and the group gets the others' bits.

    The former owner and group members may now be among the others, so the others get only rights that all three had.
    Source: design.md, section 2.
    """
    mode = without_acl(posix)
    others = mode & mode >> 3 & mode >> 6 & 0o7
    return mode & 0o1700 | others << 3 | others


def common(a: Rights, b: Rights) -> Rights:
    """Rights that grant only what both of two grant. The owner is the first one's."""
    default_acl = a.default_acl if a.default_acl == b.default_acl else None
    sticky = (a.mode | b.mode) & 0o1000
    if (a.uid, a.gid, a.acl) == (b.uid, b.gid, b.acl):
        return Rights(a.mode & b.mode | sticky, a.uid, a.gid, a.acl, default_acl)
    everybody = without_owner(a) & without_owner(b) & 0o7
    owner = a.mode >> 6 & (b.mode >> 6 if a.uid == b.uid else without_owner(b)) & 0o7
    return Rights(sticky | owner << 6 | everybody << 3 | everybody, a.uid, a.gid)


def _parse(raw: bytes) -> _Acl:
    users, groups, owning_group, mask = [], [], 0, 0o7
    try:
        for tag, permissions, number in _entries(raw):
            if tag == _USER:
                users.append((number, permissions))
            elif tag == _GROUP:
                groups.append((number, permissions))
            elif tag == _GROUP_OBJ:
                owning_group = permissions
            elif tag == _MASK:
                mask = permissions
    except (ValueError, struct.error):
        return _NOBODY
    return _Acl(
        tuple((number, permissions & mask) for number, permissions in users),
        owning_group & mask,
        tuple((number, permissions & mask) for number, permissions in groups),
    )


def _entries(raw: bytes) -> Iterator[tuple[int, int, int]]:
    (version,) = struct.unpack_from("<I", raw)
    if version != _VERSION:
        raise ValueError(f"an ACL of version {version}")
    yield from struct.iter_unpack("<HHI", raw[4:])
