"""The abilities that a filesystem needs for a region or a bucket, tested by use.

The tests run in a separate folder, on files that have names: mergerfs and NFS answer differently for files without
names. An error names the missing ability and its purpose. Optional abilities are not tested here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from msgspec import Struct

from fsrepl.errors import Usage, reason
from fsrepl.storage.fs import Fs

_NAME_MAX = 255
_FOLDER = b".fsrepl-probe"
_LONG, _ATTRIBUTES, _NEW, _RENAMED, _ONE, _OTHER, _SPELLED = _NAMES = (
    b"n" * _NAME_MAX, b"attributes", b"new", b"renamed", b"one", b"other", "caf\u00e9".encode(),
)  # fmt: skip
_OTHER_CASE, _DECOMPOSED = _SPELLED.upper(), "cafe\u0301".encode()
_GOOD = "use ext4, xfs, btrfs or a tmpfs of Linux 6.6"


class Requirement(Struct, frozen=True):
    """One needed ability. check raises OSError where it is missing; lacks continues "this filesystem ..."."""

    lacks: str
    check: Callable[[Fs, int], None]
    remedy: str = _GOOD


def require(fs: Fs, at: int, what: str) -> None:
    """Test a directory's filesystem, and leave no file. Raises Usage, naming what is missing, if unfit for buckets."""
    with _folder(fs, at, what) as folder:
        for requirement in REQUIREMENTS:
            try:
                requirement.check(fs, folder)
            except OSError as error:
                raise Usage(
                    f"{what}: this filesystem {requirement.lacks} ({reason(error)}); {requirement.remedy}"
                ) from error


@contextlib.contextmanager
def _folder(fs: Fs, at: int, what: str) -> Iterator[int]:
    """A new folder for the tests, removed afterwards with its contents. Raises Usage.

    A folder that a crash left is removed first. A folder of the same name from another program is left alone.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            _clear(fs, at)
        fs.make_dir(at, _FOLDER)
    except OSError as error:
        raise Usage(f"{what}: cannot write there: {reason(error)}") from error
    try:
        folder = fs.open_dir(at, _FOLDER)
    except OSError as error:
        with contextlib.suppress(OSError):
            fs.remove_dir(at, _FOLDER)
        raise Usage(f"{what}: cannot open a folder there with openat2(2) (Linux 5.6): {reason(error)}") from error
    try:
        if fs.stat_fd(folder).st_uid != fs.uid or next(iter(fs.entries(folder)), None) is not None:
            raise Usage(f"{what}: another program uses {_FOLDER.decode()} there; try again")
        yield folder
    except BaseException:
        with contextlib.suppress(OSError):
            _clear(fs, at)
        raise
    finally:
        fs.close(folder)
    try:
        _clear(fs, at)
    except OSError as error:  # else its files would become objects of the bucket
        raise Usage(f"{what}: cannot remove {_FOLDER.decode()} there: {reason(error)}; try again") from error


def _clear(fs: Fs, at: int) -> None:
    """Remove the folder and the tests' files, which are empty and this user's; other files stay."""
    folder = fs.open_dir(at, _FOLDER)
    try:
        for name in _NAMES:
            with contextlib.suppress(FileNotFoundError):
                found = fs.stat(folder, name)
                if fs.is_regular(found) and not found.st_size and found.st_uid == fs.uid:
                    fs.unlink(folder, name)
    finally:
        fs.close(folder)
    fs.remove_dir(at, _FOLDER)


def _make(fs: Fs, at: int, name: bytes) -> None:
    fs.close(fs.create(at, name))


def _names(fs: Fs, at: int) -> None:
    _make(fs, at, _LONG)


def _spelling(fs: Fs, at: int) -> None:
    """To S3 these are three keys. Where they are one file, one object would be written over another."""
    _make(fs, at, _SPELLED)
    for name, what in ((_OTHER_CASE, "upper and lower case"), (_DECOMPOSED, "two ways to write an accent")):
        with contextlib.suppress(FileNotFoundError):
            fs.stat(at, name)
            raise OSError(f"to it {what} are one name")


def _attributes(fs: Fs, at: int) -> None:
    fd = fs.create(at, _ATTRIBUTES)
    try:
        fs.set_attribute(fd, "user.fsrepl.probe", b"1")
        if fs.attribute(fd, "user.fsrepl.probe") != b"1":
            raise OSError("an attribute that was set is missing")
    finally:
        fs.close(fd)


def _rename_new(fs: Fs, at: int) -> None:
    _make(fs, at, _NEW)
    fs.rename_new(at, _NEW, at, _RENAMED)


def _exchange(fs: Fs, at: int) -> None:
    _make(fs, at, _ONE)
    _make(fs, at, _OTHER)
    ino = fs.stat(at, _ONE).st_ino
    fs.exchange(at, _ONE, at, _OTHER)
    if fs.stat(at, _OTHER).st_ino != ino:
        raise OSError("the two names were not exchanged")


def _sync(fs: Fs, at: int) -> None:
    fs.sync_file(at)


REQUIREMENTS = (
    Requirement(f"has no names of {_NAME_MAX} bytes, which stored versions need", _names),
    Requirement(
        "does not keep names as they are, byte for byte, as keys must be",
        _spelling,
        "use a directory without case folding (chattr -F on an empty one), or another filesystem",
    ),
    Requirement(
        "has no user attributes, which hold the record of each version",
        _attributes,
        f"{_GOOD}, or mount it with user_xattr, on mergerfs with xattr=passthrough",
    ),
    Requirement("cannot rename without replacing (RENAME_NOREPLACE), which keeps users' files safe", _rename_new),
    Requirement("cannot exchange two names (RENAME_EXCHANGE), which keeps readers from seeing a gap", _exchange),
    Requirement("cannot make a directory durable (fsync), without which a power cut loses files", _sync),
)
