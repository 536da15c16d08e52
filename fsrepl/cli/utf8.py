"""UTF-8 for all text, whatever the locale.

Keys are bytes, settings and JSON are UTF-8, and file names are the bytes on disk. In another locale Python would
encode arguments, names and output for that locale: `--prefix ä/` would differ in bytes from the folder `ä`, and a
name that the locale lacks would end a command that has done its work.
"""

from __future__ import annotations

import codecs
import os
import sys

_ERRORS = "fsrepl"


def use() -> None:
    """Use UTF-8 for arguments, file names and standard streams. May restart the program, in the same process."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and sys.executable:
        # Python chooses its codec at its start only. Source: PEP 540.
        arguments = [os.fsencode(argument) for argument in sys.orig_argv[1:]]
        os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *arguments])
    codecs.register_error(_ERRORS, _escaped)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, _ERRORS), (sys.stderr, _ERRORS)):
        if hasattr(stream, "reconfigure"):  # names may be any bytes, and must not end a command
            stream.reconfigure(encoding="utf-8", errors=errors)


def encoded(text: str) -> bytes:
    """The bytes of a name that Python decoded. Surrogates without a byte, which only JSON has, become `\\uNNNN`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _is_byte(character: str) -> bool:
    """Whether a surrogate encodes a byte that is not UTF-8. Source: PEP 383."""
    return "\udc80" <= character <= "\udcff"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Characters that UTF-8 cannot encode: bytes of a name as `\\xNN`, other surrogates as `\\uNNNN`."""
    assert isinstance(error, UnicodeEncodeError)
    odd = error.object[error.start : error.end]
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if _is_byte(c) else f"\\u{ord(c):04x}" for c in odd), error.end
