"""Text is UTF-8, whatever the locale says.

Keys are bytes, settings and JSON are UTF-8, and names of files come as they are on disk. In another locale Python would
take arguments, names and what it prints for text of that locale: `--prefix ä/` would be other bytes than the folder
`ä`, and a name that the locale lacks would end a command that has done its work.
"""

from __future__ import annotations

import codecs
import os
import sys

_ERRORS = "fsrepl"


def use() -> None:
    """Have arguments, names of files and standard streams in UTF-8. May begin the program anew, as the same process."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode and sys.executable:
        # Python has settled on its codec by now, and changes it only at its start. Source: PEP 540.
        arguments = [os.fsencode(argument) for argument in sys.orig_argv[1:]]
        os.execv(sys.executable, [os.fsencode(sys.executable), b"-X", b"utf8", *arguments])
    codecs.register_error(_ERRORS, _escaped)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, _ERRORS), (sys.stderr, _ERRORS)):
        if hasattr(stream, "reconfigure"):  # names may be any bytes: none of them ends a command
            stream.reconfigure(encoding="utf-8", errors=errors)


def encoded(text: str) -> bytes:
    """The bytes of a name, as Python has it. A surrogate that stands for no byte, as only JSON has them: `\\uNNNN`."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _is_byte(character: str) -> bool:
    """Whether a surrogate stands for a byte that is not UTF-8. Source: PEP 383."""
    return "\udc80" <= character <= "\udcff"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """What has no place in UTF-8: bytes of a name as `\\xNN`, other surrogates as `\\uNNNN`."""
    assert isinstance(error, UnicodeEncodeError)
    odd = error.object[error.start : error.end]
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if _is_byte(c) else f"\\u{ord(c):04x}" for c in odd), error.end
