"""Rights to a file, and modes that give no user access whom the object excluded."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrepl.model import access
from fsrepl.model.access import EXECUTE, READ, WRITE
from fsrepl.model.version import Posix

OWNER, GROUP, OTHER = 0x01, 0x04, 0x20
USER, NAMED_GROUP, MASK = 0x02, 0x08, 0x10
NONE = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def minimal(user: int, group: int, other: int, *more: tuple[int, int, int], mask: int = 7) -> Posix:
    """An object of uid 1, gid 1 with an ACL, and the mode that such a file has: its group bits are the mask."""
    entries = [(OWNER, user, NONE), *more, (GROUP, group, NONE), (MASK, mask, NONE), (OTHER, other, NONE)]
    return Posix(user << 6 | mask << 3 | other, 1, 1, 0, acl(*sorted(entries)))


@pytest.mark.parametrize(
    ("mode", "uid", "groups", "wanted", "expected"),
    [
        (0o600, 1, [], READ | WRITE, True),
        (0o600, 2, [1], READ, False),
        (0o640, 2, [1], READ, True),
        (0o640, 2, [1], WRITE, False),
        (0o604, 2, [1], READ, False),  # the group has no access, others have
        (0o604, 2, [2], READ, True),
        (0o044, 1, [1], READ, False),  # the owner has none either
        (0o000, 0, [], READ | WRITE, True),
        (0o711, 2, [], EXECUTE, True),
    ],
)
def test_modes(mode: int, uid: int, groups: list[int], wanted: int, expected: bool) -> None:
    """s3-semantics 6.3: plain modes bind the role's user as they bind every user, but not root."""
    assert access.allows(Posix(mode, 1, 1, 0), uid, groups, wanted) is expected


def test_acls() -> None:
    """acl(5): first the owner, then named users within the mask, then any group that grants the right, then others."""
    object_ = minimal(6, 0, 4, (USER, 4, 7), (USER, 0, 8), (NAMED_GROUP, 6, 9), mask=4)
    for uid, groups, wanted, expected in [
        (7, [], READ, True),
        (8, [], READ, False),
        (8, [9], READ, False),
        (2, [9], READ, True),
        (2, [9], WRITE, False),  # the mask
        (2, [1], READ, False),  # the owning group may nothing
        (2, [1, 9], READ, True),
        (2, [], READ, True),
        (1, [], WRITE, True),
    ]:
        assert access.allows(object_, uid, groups, wanted) is expected, (uid, groups, wanted)


@pytest.mark.parametrize("raw", [b"", b"\1\0\0\0", acl((USER, 7, 5))[:-1], struct.pack("<I", 3)])
def test_an_acl_that_cannot_be_read_permits_its_owner_alone(raw: bytes) -> None:
    """An ACL that cannot be parsed permits nothing."""
    object_ = Posix(0o660, 1, 1, 0, raw)
    assert access.allows(object_, 1, [], READ | WRITE)
    assert not access.allows(object_, 2, [1], READ)
    assert access.without_acl(object_) & 0o070 == 0


bits = st.integers(0, 7)
named = st.lists(st.tuples(st.sampled_from([USER, NAMED_GROUP]), bits, st.integers(5, 8)), max_size=4)


@given(user=bits, group=bits, other=bits, more=named, mask=bits, special=st.sampled_from([0, 0o4000, 0o2000, 0o1000]))
def test_without_an_acl_no_user_gains_access(
    user: int, group: int, other: int, more: list[tuple[int, int, int]], mask: int, special: int
) -> None:
    """Section 2: never readable by more users than its source, where an ACL cannot be set."""
    unique = list({(tag, number): (tag, permissions, number) for tag, permissions, number in more}.values())
    before = minimal(user, group, other, *unique, mask=mask)
    before = Posix(before.mode | special, 1, 1, 0, before.acl)
    after = Posix(access.without_acl(before), 1, 1, 0)
    assert after.mode & 0o7700 == before.mode & 0o7700
    _nobody_new(before, after)


@given(mode=st.integers(0, 0o7777))
def test_without_its_owner_no_user_gains_access(mode: int) -> None:
    """Section 2: no setuid, no setgid, the group gets the others' bits, and excluded users stay excluded."""
    before = Posix(mode, 1, 1, 0)
    after = Posix(access.without_owner(before), 20, 20, 0)
    assert after.mode & 0o6000 == 0
    assert after.mode >> 3 & 0o7 == after.mode & 0o7
    assert after.mode & 0o1700 == mode & 0o1700
    _nobody_new(before, after)


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o640, 0o600), (0o644, 0o644), (0o664, 0o644), (0o4755, 0o755), (0o604, 0o600)]
)
def test_usual_modes_without_their_owner(mode: int, expected: int) -> None:
    """Section 2."""
    assert access.without_owner(Posix(mode, 1, 1, 0)) == expected


def _nobody_new(before: Posix, after: Posix) -> None:
    for uid, size in itertools.product((1, 2, 5, 6, 7, 8), (0, 1, 2)):
        for groups in itertools.combinations((1, 3, 5, 6, 7, 8), size):
            for wanted in (READ, WRITE, EXECUTE):
                assert not access.allows(after, uid, groups, wanted) or access.allows(before, uid, groups, wanted), (
                    uid, groups, wanted, oct(before.mode), oct(after.mode),
                )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes others")
@given(user=bits, group=bits, other=bits, more=named, mask=bits)
def test_the_kernel_says_the_same(
    tmp_path_factory: pytest.TempPathFactory, user: int, group: int, other: int, more: list[tuple[int, int, int]],
    mask: int,
) -> None:  # fmt: skip
    """acl(5), compared with the kernel: access.allows gives the rights that a thread of that user has."""
    from fsrepl.storage.fs import Fs

    unique = list({(tag, number): (tag, permissions, number) for tag, permissions, number in more}.values())
    posix = minimal(user, group, other, *unique, mask=mask)
    path = Path(tmp_path_factory.mktemp("kernel")) / "file"
    path.touch()
    os.chown(path, 1, 1)
    assert posix.acl is not None
    os.setxattr(path, "system.posix_acl_access", posix.acl)
    assert path.stat().st_mode & 0o777 == posix.mode
    fs = Fs()
    fd = os.open(path, os.O_PATH)
    try:
        for uid, gid in itertools.product((1, 2, 5, 6), (1, 3, 5, 6)):
            with fs.acting_as(uid, gid):
                found = [fs.may(fd, wanted) for wanted in (os.R_OK, os.W_OK, os.X_OK)]
            assert found == [access.allows(posix, uid, [gid], wanted) for wanted in (READ, WRITE, EXECUTE)], (uid, gid)
    finally:
        os.close(fd)
