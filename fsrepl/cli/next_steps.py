"""The next step after an error: a command, for errors whose own message names none. Pure.

Nothing is added to a message that names a command itself, in backquotes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from fsrepl.errors import (
    Away,
    BucketMissing,
    DocumentInvalid,
    Failed,
    FsreplError,
    NotRunning,
    Refused,
    StoreDamaged,
    TierAway,
    TimedOut,
    Unavailable,
    Unreachable,
    Usage,
)

_LIST = "`fsrepl ls {bucket} --versions` lists keys and versions"
_BUCKETS = "`fsrepl bucket ls` lists the buckets"
_RULES = "`fsrepl replication show {bucket}` shows the rules"
_EDIT = (
    "correct the document; `fsrepl replication get {bucket}` or `fsrepl lifecycle get {bucket}` prints the present one"
)
_ROLES = "`fsrepl role ls` lists the roles, `fsrepl role show NAME` prints one to start from"
_DOCTOR = "`fsrepl doctor` says what is wrong"

OF_CODES: Mapping[str, str] = {
    "AccessDenied": "run it as the user of the site; `fsrepl doctor` says who that is, and what else it may not do",
    "BadRequest": "`fsrepl tag ls {object}` lists the tags",
    "BucketAlreadyExists": _BUCKETS,
    "BucketAlreadyOwnedByYou": _BUCKETS,
    "BucketNotEmpty": "`fsrepl ls {bucket} --versions` lists what it holds",
    "EntityAlreadyExists": _ROLES,
    "InvalidArgument": _EDIT,
    "InvalidBucketName": "use 3 to 63 of a-z, 0-9, - and .; `fsrepl bucket create REGION/NAME` takes another name",
    "InvalidBucketState": _RULES,
    "InvalidObjectState": "`fsrepl restore {object} --days 7` makes archived content readable",
    "InvalidRequest": "`fsrepl bucket ls` shows what each bucket is set to",
    "InvalidTag": "`fsrepl tag ls {object}` lists the tags",
    "MalformedPOSTRequest": "send the form again",
    "MalformedPolicyDocument": _ROLES,
    "MalformedXML": _EDIT,
    "MethodNotAllowed": _LIST,
    "NoSuchBucket": _BUCKETS,
    "NoSuchEntity": _ROLES,
    "NoSuchJob": "`fsrepl replication jobs` lists the jobs",
    "NoSuchKey": _LIST,
    "NoSuchLifecycleConfiguration": "`fsrepl lifecycle put {bucket} FILE` saves one",
    "NoSuchVersion": _LIST,
    "NotImplemented": "`fsrepl doctor` says what the service supports",
    "OperationAborted": "give the command again; `fsrepl status` shows what is under way",
    "ReplicationConfigurationNotFoundError": "`fsrepl replication enable {bucket} DESTINATION` creates one",
    "SlowDown": "give the command again; `fsrepl status` shows what is under way",
    "ValidationError": _ROLES,
}
"""By S3's code."""

OF_CLASSES: Mapping[type[FsreplError], str] = {
    NotRunning: "`fsrepl daemon` starts it, as a service `systemctl start fsrepl`",
    TimedOut: "`fsrepl status` shows what is left, and what it waits for",
    Unreachable: "give the command again once ssh leads to it; `fsrepl region ls` says how the region is now",
    Away: "bring its disk back; `fsrepl region ls` says where each region is expected",
    TierAway: "bring its disk back; `fsrepl tier ls` says where each tier is expected",
    DocumentInvalid: "correct the file; `fsrepl check` reads it again",
    Unavailable: f"give the command again once that is mended; {_DOCTOR}",
    BucketMissing: "bring the folder back, or restore the bucket with `fsrepl bucket adopt {bucket}`",
    Failed: f"mend the cause; {_DOCTOR}",
    StoreDamaged: "`fsrepl verify {bucket} --repair` looks for a good copy",
    Usage: "`fsrepl {command} --help` describes it",
    FsreplError: _DOCTOR,
}
"""By the class of the error: the first of its classes, from its own upwards."""

_OF_SETTINGS = re.compile(r"\.toml, line \d")
_BUCKET = re.compile(r"([a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9.-]*)(/.*)?")


def said(error: FsreplError, arguments: Sequence[str], commands: Sequence[str]) -> str:
    """An error's message, and after it what to do where it does not say that itself.

    arguments: those of the command line, from which names are taken; commands: the words that name the command.
    """
    text = str(error)
    if "`" in text:
        return text
    step = OF_CODES.get(error.code) if isinstance(error, Refused) else None
    if step is None:
        step = next(OF_CLASSES[each] for each in type(error).__mro__ if each in OF_CLASSES)
    if isinstance(error, Usage) and _OF_SETTINGS.search(text):
        step = "`fsrepl check` reads it again"
    match = next((found for each in arguments if (found := _BUCKET.fullmatch(each))), None)
    bucket = match[1] if match else "REGION/BUCKET"
    key = match[2] if match and match[2] else "/KEY"
    names = {"bucket": bucket, "object": shlex.quote(f"{bucket}{key}"), "command": " ".join(commands)}
    if not (isinstance(error, Refused) and error.code == "NoSuchKey"):  # which ends in a name, that may end in a dot
        text = text.rstrip(".")
    return f"{text}; {_filled(step, names)}"


def _filled(step: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        step = step.replace(f"{{{name}}}", value)
    return step.replace("fsrepl  ", "fsrepl ")
