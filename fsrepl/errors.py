"""Errors, one class for each way to continue.

The module that knows whose file failed turns an OSError into one of these classes. The errno alone is ambiguous (on
ext4, setxattr returns ENOSPC for a value that does not fit, with the disk half empty). Only the daemon's loop and the
command line catch these classes.
"""

from __future__ import annotations

import errno
import os

UNEXPECTED = "an unexpected error; the log has it, and it is tried again"
"""The reason shown for a key or bucket that waits after an unexpected error, while everything else continues."""


def reason(error: Exception) -> str:
    """An error as text. For an OSError without its file names, which users may choose."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ELOOP:  # openat2 returns this for any link on the path, open for one at its end
        return "a symbolic link is in the way"
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


class FsreplError(Exception):
    """Base of all errors; the message names the verb, the path and the reason, and a remedy where one is known."""

    exit_code = 1


class Refused(FsreplError):
    """A request or a document that is not accepted. code is S3's, and the first word of the message."""

    exit_code = 3

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Usage(FsreplError):
    """Invalid settings or arguments: a bad fsrepl.toml, an unknown region, no site."""

    exit_code = 2


class NotRunning(FsreplError):
    """A command needs the daemon, and none is running."""

    exit_code = 5


class TimedOut(FsreplError):
    """A wait that timed out."""

    exit_code = 4


class Unavailable(FsreplError):
    """A temporary fault: region offline, disk full, I/O error. The delivery stays PENDING and is tried again."""


class Away(Unavailable):
    """A region is offline, or not attached: files found in its folder do not belong to the site."""


class Unreachable(Away):
    """A region on another machine cannot be reached, or is not served there."""


class TierAway(Away):
    """A tier of a region is offline, or not attached: content found in its folder does not belong to the site."""


class Disowned(Unavailable):
    """A folder or document of the daemon belongs to another user, or others may write to it: it is not trusted."""


class DocumentInvalid(Unavailable):
    """A bucket's document cannot be read or is invalid: the bucket is offline until a person corrects the file."""


class BucketMissing(FsreplError):
    """The region is online and the bucket's folder is missing."""


class Failed(FsreplError):
    """A person must act first: FAILED, and not tried again. reason is one of S3's (s3-semantics, 3.3)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class SourceMoved(FsreplError):
    """The file changed during the copy: discard the copy and read the file again."""


class StoreDamaged(FsreplError):
    """Stored records contradict each other: stop, report it, and change nothing."""


class RecordUnreadable(StoreDamaged):
    """The disk does not give a record, nor what else its file has, and works otherwise."""


class RecordLost(StoreDamaged):
    """A stored version has lost its record, which can be rebuilt; its content may be intact."""


class ContentDamaged(StoreDamaged):
    """The content of a stored version does not match its BLAKE3. Another bucket may have an intact copy."""

    def __init__(self, message: str, version_id: str) -> None:
        super().__init__(message)
        self.version_id = version_id
