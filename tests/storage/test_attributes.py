"""Attributes of files, as the filesystem gives them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fsrepl.storage.fs import Fs


@pytest.mark.parametrize("size", [0, 1, 128, 129, 511, 512, 513, 2000])
@pytest.mark.parametrize("name", ["user.a", "user.gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n", "user.\udcff"])
def test_an_attribute_is_read_whole_whatever_its_size(tmp_path: Path, size: int, name: str) -> None:
    (tmp_path / "k").touch()
    fd = os.open(tmp_path / "k", os.O_RDONLY)
    try:
        assert Fs().attribute(fd, name) is None
        os.setxattr(fd, name, (b"\0" + b"x" * size)[:size])
        assert Fs().attribute(fd, name) == (b"\0" + b"x" * size)[:size]
        assert Fs().attributes(fd) == {name: (b"\0" + b"x" * size)[:size]}
    finally:
        os.close(fd)


def test_an_attribute_that_cannot_be_asked_for_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "k").touch()
    fd = os.open(tmp_path / "k", os.O_PATH)
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            Fs().attribute(fd, "user.a")
        assert Fs().acl(fd) is None
    finally:
        os.close(fd)
