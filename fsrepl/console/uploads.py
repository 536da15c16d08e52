"""Files sent by a browser, written as they arrive: a file drop like any other.

A file is written under a temporary name in the folder where it is to be, synced, and renamed into place; then the
daemon captures it. The token of the form comes first in the body, and is checked before the first
file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable

from msgspec import Struct
from python_multipart import multipart
from python_multipart.exceptions import MultipartParseError

from fsrepl.errors import FsreplError, Refused, Unavailable, reason
from fsrepl.model import keys
from fsrepl.model.version import Versioning
from fsrepl.storage.bucket import OpenBucket

_FIELD_MAX_BYTES = 8192
_NAME_MAX_BYTES = 255


class _Part(Struct):
    """One part of the body: a field, or a file."""

    name: str = ""
    filename: str | None = None


class Upload:
    """Receives a form with files, a chunk of its body at a time; `written` are the keys that are in place.

    admit: called with the fields before the first file; raises FsreplError where the form is not genuine.
    """

    def __init__(self, bucket: OpenBucket, folder: bytes, boundary: bytes, admit: Callable[[dict[str, str]], None]):
        self._bucket, self._folder, self._admit = bucket, folder, admit
        self.fields: dict[str, str] = {}
        self.written: list[bytes] = []
        self._part, self._header, self._value = _Part(), b"", b""
        self._field = bytearray()
        self._file: _File | None = None
        self._admitted = False
        self._parser = multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_part_data": self._data,
                "on_part_end": self._end_part,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
            },
            max_header_size=_FIELD_MAX_BYTES,
        )

    def feed(self, data: bytes) -> None:
        """The next chunk. Raises FsreplError; then nothing of the present file is left."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise Refused("MalformedPOSTRequest", f"the form cannot be read: {error}") from error
        except OSError as error:
            name = keys.shown(self._file.key) if self._file else "the file"
            raise Unavailable(f"{name} was not stored: {reason(error)}") from error

    def finish(self) -> None:
        self._parser.finalize()
        if not self._admitted:
            self._admit(self.fields)

    def close(self) -> None:
        """Remove the files that are not complete."""
        if self._file is not None:
            self._file.drop()
            self._file = None

    # -- what the parser calls

    def _begin_part(self) -> None:
        self._part, self._header, self._value = _Part(), b"", b""
        self._field.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = multipart.parse_options_header(self._value)
            self._part.name = options.get(b"name", b"").decode("utf-8", "replace")
            if b"filename" in options:
                self._part.filename = os.fsdecode(options[b"filename"])
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        if self._part.filename is None:
            return
        if not self._admitted:
            self._admit(self.fields)
            self._admitted = True
        if name := os.fsencode(self._part.filename).rpartition(b"/")[2]:
            self._file = _File(self._bucket, _place(self._folder, self.fields.get("below", "")), name)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(data[start:end])
        elif self._part.filename is None:
            self._field += data[start:end]
            if len(self._field) > _FIELD_MAX_BYTES:
                raise Refused("MalformedPOSTRequest", f"a field of the form is longer than {_FIELD_MAX_BYTES:,} bytes")

    def _end_part(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None  # from here on it cleans up by itself
            file.place()
            self.written.append(file.key)
        elif self._part.filename is None:
            self.fields[self._part.name] = self._field.decode("utf-8", "replace")


def _place(folder: bytes, below: str) -> bytes:
    """The folder for the files: below another where the form says so."""
    path = below.strip().strip("/").encode("utf-8", "surrogateescape")
    return keys.join(folder, path) if path else folder


class _File:
    """A file that is being written."""

    def __init__(self, bucket: OpenBucket, folder: bytes, name: bytes) -> None:
        self.key = keys.join(folder, name)
        if not keys.is_key(self.key) or len(name) > _NAME_MAX_BYTES:
            raise Refused("InvalidRequest", f"{keys.shown(self.key)!r} cannot be a key")
        self._bucket, self._name = bucket, name
        fs = bucket.fs
        try:
            self._at = bucket.views.get_or_make(folder, _make_folder(bucket)) if folder else bucket.fd
            self._staged = b".fsrepl-upload." + secrets.token_hex(3).encode()  # as `temporary` in the settings has it
            self._fd = fs.create(self._at, self._staged)
        except OSError as error:
            raise _not_stored(self.key, error) from error

    def write(self, data: bytes) -> None:
        self._bucket.fs.write(self._fd, data)

    def place(self) -> None:
        """Make the complete file the object's. Raises FsreplError; then nothing of it is left. The file is closed."""
        fs, bucket = self._bucket.fs, self._bucket
        try:
            owner = fs.stat_fd(self._at)
            fs.give(self._fd, owner.st_uid, owner.st_gid)
            fs.chmod(
                self._fd, 0o644 if owner.st_mode & stat.S_IROTH else 0o640 if owner.st_mode & stat.S_IRGRP else 0o600
            )
            fs.sync_file(self._fd)
            if bucket.bucket.versioning is Versioning.OFF:  # what was there would be lost
                fs.rename_new(self._at, self._staged, self._at, self._name)
            else:
                fs.rename(self._at, self._staged, self._at, self._name)
            fs.sync_file(self._at)
        except OSError as error:
            self._unlink()
            raise _not_stored(self.key, error) from error
        finally:
            fs.close(self._fd)

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self._bucket.fs.close(self._fd)
        self._unlink()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            self._bucket.fs.unlink(self._at, self._staged)


def _make_folder(bucket: OpenBucket) -> Callable[[int, bytes, bytes], None]:
    """Makes a folder with the owner and the mode of the one above it."""

    def make(at: int, path: bytes, name: bytes) -> None:
        above = bucket.fs.stat_fd(at)
        bucket.fs.make_dir(at, name)
        fd = bucket.fs.open_dir(at, name)
        try:
            bucket.fs.give(fd, above.st_uid, above.st_gid)
            bucket.fs.chmod(fd, stat.S_IMODE(above.st_mode))
        finally:
            bucket.fs.close(fd)

    return make


def _not_stored(key: bytes, error: OSError) -> FsreplError:
    what = keys.shown(key)
    if error.errno == errno.EEXIST:
        return Refused("InvalidRequest", f"{what} exists, and without versioning it would be lost: it was not replaced")
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP, errno.EXDEV, errno.EACCES):
        return Refused("InvalidRequest", f"{what} was not stored: {reason(error)}")
    return Unavailable(f"{what} was not stored: {reason(error)}")
