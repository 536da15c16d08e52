"""What can go wrong, sorted by what happens next.

An OSError becomes one of these in the module that knows whose file it was: the errno alone
does not say (on ext4, setxattr answers ENOSPC for a value that does not fit, with the disk
half empty). Only the daemon's loop and the command line catch them.
"""

from __future__ import annotations

import errno
import os

UNFORESEEN = "an unforeseen fault; the log has it, and it is tried again"
"""Why something waits that nobody thought of. One key is set aside for it, or one bucket, and all else goes on."""


def reason(error: Exception) -> str:
    """An error in words. Of an OSError without the names in it, which may be anybody's."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ELOOP:  # what openat2 answers for any link on the way, and open for one at its end
        return "a symbolic link is in the way"
    return (os.strerror(error.errno) if error.errno else str(error)).lower()


class FsreplError(Exception):
    """The message names the verb, the place and the reason, and what to do where that is known."""

    exit_code = 1


class Refused(FsreplError):
    """A request or a document that is not accepted. code is S3's: it is the first word of the message."""

    exit_code = 3

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Usage(FsreplError):
    """Settings or arguments that make no sense: a bad fsrepl.toml, an unknown region, no site."""

    exit_code = 2


class NotRunning(FsreplError):
    """A command that needs the daemon, and there is none."""

    exit_code = 5


class TimedOut(FsreplError):
    """A wait that ended before what it waited for."""

    exit_code = 4


class Unavailable(FsreplError):
    """A passing fault: region offline, disk full, I/O error. Stays PENDING and is tried again."""


class Away(Unavailable):
    """A region is not there, or not attached: nothing that is dropped in its place belongs to the site."""


class Disowned(Unavailable):
    """What is the daemon's own belongs to somebody else, or others may write in it: it is not believed."""


class DocumentInvalid(Unavailable):
    """A bucket's document cannot be read, or is not what it should be: offline until a person mends it."""


class BucketMissing(FsreplError):
    """The region is there and the bucket's folder is not."""


class Failed(FsreplError):
    """A person must act first. reason is one of S3's (s3-semantics, 3.3): FAILED, not tried again."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class SourceMoved(FsreplError):
    """The file changed under the copy: drop the copy, look again."""


class StoreDamaged(FsreplError):
    """Our own records contradict each other: stop here, say so, touch nothing."""


class RecordLost(StoreDamaged):
    """A stored version has lost its record, its content may be good. It can be rebuilt."""


class ContentDamaged(StoreDamaged):
    """The content of a stored version is not what its BLAKE3 says. Another bucket may have a good copy."""

    def __init__(self, message: str, version_id: str) -> None:
        super().__init__(message)
        self.version_id = version_id
