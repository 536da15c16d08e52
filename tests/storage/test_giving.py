"""Files are given to their owners; what is done where that is impossible."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fsrepl.storage import documents
from tests.doubles import UnsyncedFs


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
def test_a_document_whose_owner_cannot_be_set_is_written(tmp_path: Path, number: int) -> None:
    """Section 2: also where its owner has no id in this user namespace, and nothing half-made is left."""

    class Bound(UnsyncedFs):
        def chown(self, fd: int, uid: int, gid: int) -> None:
            raise OSError(number, os.strerror(number))

    (tmp_path / "d").write_text("before")
    at = os.open(tmp_path, os.O_RDONLY)
    documents.write_bytes(Bound(), at, b"d", b"after", like=(tmp_path / "d").stat())
    os.close(at)
    assert (tmp_path / "d").read_text() == "after"
    assert os.listdir(tmp_path) == ["d"]


@pytest.mark.parametrize(("number", "given"), [(0, True), (errno.EPERM, False), (errno.EINVAL, False)])
def test_an_owner_that_cannot_be_set_is_not_taken_for_a_fault(tmp_path: Path, number: int, given: bool) -> None:
    """Section 2: one rule for files, directories and documents; a fault of the disk is another case."""

    class Answering(UnsyncedFs):
        answer = number

        def chown(self, fd: int, uid: int, gid: int) -> None:
            if self.answer:
                raise OSError(self.answer, os.strerror(self.answer))

    fs = Answering()
    with (tmp_path / "f").open("wb") as file:
        assert fs.give(file.fileno(), 1, 1) is given
        fs.answer = errno.EIO
        with pytest.raises(OSError, match="Input/output"):
            fs.give(file.fileno(), 1, 1)
