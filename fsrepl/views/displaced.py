"""Files that an exchange took out of a view, and that a crash or a fault kept from being inspected.

They lie in .fsrepl/displaced, and may hold a user's last write: they are never swept, but
compared with the recorded versions. Recorded content is removed. Unrecorded content is moved back into the tree, to
become a version, where its place has what the daemon put there. Where a user saved or removed the file since then, that
is the later change and stays: the displaced file is overtaken, and becomes a version before that change does
(capture/overtaken.py). A writer that still has the file open delays all of that. Where writers cannot be detected, the
file stays until it was unchanged for a while.
Source: design.md, sections 2 and 7.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from msgspec import Struct

from fsrepl.errors import StoreDamaged, Unavailable, reason
from fsrepl.model import digests, keys
from fsrepl.model.version import Kind, Origin, Version
from fsrepl.storage import intents, records, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import Entry, FileType
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.view_file import ViewFile, open_entry, open_view
from fsrepl.views import crossing, directories

log = logging.getLogger("fsrepl")


class Overtaken(Struct, frozen=True):
    """A file in .fsrepl/displaced that a later change of its view overtook: it becomes a version, and is removed."""

    key: bytes
    aside: bytes


def clear(
    bucket: OpenBucket, journal: Journal, quiet_s: float, written: Callable[[bytes, str], None],
    intents: Collection[intents.Intent] | None = None,
) -> list[Overtaken]:  # fmt: skip
    """Remove recorded content, put unrecorded content back, and leave the rest for the next look; what was overtaken.

    written: receives the key and id of a version whose file was written into, before that file goes anywhere: its user
    may remove it before anybody looks at it again.
    quiet_s: how long a file must be unchanged where writers cannot be detected.
    intents: at a start, those of the crash that may have left these files. The file that an intent expected was
    recorded when the intent was written, though its version may have been removed for good since.
    """
    level = logging.DEBUG if intents is None else logging.WARNING
    names = bucket.fs.names(bucket.displaced)
    owners = _owners(bucket, journal, names, intents or ())
    overtaken: list[Overtaken] = []
    for aside in names:
        try:
            left = _clear(bucket, journal, quiet_s, written, aside, owners.get(aside), intents or ())
        except (OSError, Unavailable) as error:
            left = reason(error)
        if isinstance(left, Overtaken):
            overtaken.append(left)
        elif left:
            shown = keys.shown(aside)
            log.log(level, "displaced bucket=%s file=%s: left in place: %s", bucket.address, shown, left)
    return overtaken


def _clear(
    bucket: OpenBucket,
    journal: Journal,
    quiet_s: float,
    written: Callable[[bytes, str], None],
    aside: bytes,
    key: bytes | None,
    intents: Collection[intents.Intent],
) -> str | Overtaken:
    """Handle one file; the reason why it stays, empty where it does not."""
    if key is None:
        return "its key is unknown"
    with _opened(bucket, bucket.displaced, aside) as entry:
        if entry.target is not None:  # the daemon's own symlink: the content is in its tier
            bucket.fs.unlink(bucket.displaced, aside)
            return ""
        is_written, looks = entry.is_written(), entry.found
        if is_written is True:
            return "a program still has it open for writing"
        if is_written is None and time.time_ns() - looks.st_ctime_ns < (quiet_s + bucket.coarse_ns / 1e9) * 1e9:
            return "a program may still have it open for writing"
        digest, kind = entry.digest(), entry.kind
        owner = records.owner(bucket, entry.fd) if looks.st_nlink > 1 and entry.is_regular else None
    expected = any(
        i.key == key and i.was is not None and not i.was.racy and i.was.has_content_of(looks) for i in intents
    )
    if expected or _is_recorded(bucket, journal, key, digest, kind):
        bucket.fs.unlink(bucket.displaced, aside)
        if owner is not None:
            versions.make_private(bucket, *owner)
        return ""
    if owner is not None and versions.is_stored_file(bucket, *owner, looks):
        written(*owner)
    planned = {i.version for i in intents if i.key == key}
    return _put_back(bucket, journal, aside, key, planned, looks.st_ctime_ns)


def clear_beside(bucket: OpenBucket, journal: Journal, intents: Collection[intents.Intent]) -> None:
    """At a start: clear the files that a crash left beside views that rename cannot reach (crossing.py)."""
    whose = {digests.short(intent.key).encode(): intent.key for intent in intents}
    parents = directories.with_parents({keys.split(intent.key)[0] for intent in intents})
    for directory in [b"", *parents] if intents else ():
        found: list[Entry] = []
        with contextlib.suppress(OSError):
            at = bucket.views.get(directory)
            found = list(bucket.fs.entries(at))
        for name, kind in found:
            digest, is_whole = crossing.owner(name)
            with contextlib.suppress(OSError):  # a file that cannot be cleared now is captured like any other
                if digest and kind is FileType.DIRECTORY:
                    bucket.fs.remove_dir(at, name)
                elif key := whose.get(digest):
                    _clear_beside(bucket, journal, at, name, key, is_whole=is_whole)


def _clear_beside(bucket: OpenBucket, journal: Journal, at: int, name: bytes, key: bytes, *, is_whole: bool) -> None:
    """Remove recorded content, and move unrecorded content to its view's place, if that is free.

    A partial copy is the daemon's in any case. A file with a writer stays, and is a file like any other.
    """
    with _opened(bucket, at, name) as entry:
        if entry.is_written():
            return
        is_whole &= entry.target is None
        digest, kind = (entry.digest(), entry.kind) if is_whole else (b"", None)
    directory, own_name = keys.split(key)
    bucket.views.changed.add(directory)
    if not is_whole or _is_recorded(bucket, journal, key, digest, kind):
        bucket.fs.unlink(at, name)
    else:
        with contextlib.suppress(FileExistsError):
            bucket.fs.rename_new(at, name, at, own_name)


def _owners(
    bucket: OpenBucket, journal: Journal, names: Sequence[bytes], intents: Collection[intents.Intent]
) -> dict[bytes, bytes]:
    """By name in .fsrepl/displaced, the key whose file it was, where that is known.

    The keys of the bucket are read once, and only where a name holds a digest instead of a long key.
    """
    owners: dict[bytes, bytes] = {}
    hidden: dict[str, list[bytes]] = {}
    for name in names:
        key, digest = keys.displaced_key(name)
        if key is not None:
            owners[name] = key
        else:
            hidden.setdefault(digest, []).append(name)
    candidates = itertools.chain((i.key for i in intents), (key for key, _ in journal.versions.objects(bucket.address)))
    while hidden and (candidate := next(candidates, None)) is not None:
        for name in hidden.pop(digests.short(candidate), ()):
            owners[name] = candidate
    return owners


@contextlib.contextmanager
def _opened(bucket: OpenBucket, at: int, name: bytes) -> Iterator[ViewFile]:
    """A file or symlink that was taken out of a view; also a file whose mode denies the daemon, its owner."""
    try:
        with open_entry(bucket, at, name) as entry:
            yield entry
            return
    except PermissionError:
        fd = records.open_file(bucket, at, name)
    try:
        yield ViewFile(bucket, fd, bucket.fs.stat_fd(fd), Kind.FILE)
    finally:
        bucket.fs.close(fd)


def _is_recorded(bucket: OpenBucket, journal: Journal, key: bytes, digest: bytes, kind: Kind | None) -> bool:
    """Whether a version of a key is of this kind and has this content."""
    return _recorded(bucket, journal, key, digest, kind) is not None


def _recorded(bucket: OpenBucket, journal: Journal, key: bytes, digest: bytes, kind: Kind | None) -> Version | None:
    """The newest version of a key that is of this kind and has this content."""
    for version_id, _, marker in journal.versions.versions_of(bucket.address, key):
        with contextlib.suppress(StoreDamaged):
            version = None if marker else versions.read(bucket, key, version_id, marker=False)
            if version is not None and version.digest == digest and version.kind is kind:
                return version
    return None


def _put_back(
    bucket: OpenBucket, journal: Journal, aside: bytes, key: bytes, planned: Collection[str], changed_ns: int
) -> str | Overtaken:
    """Put an unrecorded file back, over the version that was exchanged for it; the reason where it stays.

    planned: the versions that intents of the crash show. changed_ns: the file's ctime, which the exchange set.
    """
    directory, name = keys.split(key)
    known = journal.versions.object(bucket.address, key)
    at = directories.get_or_make(bucket, directory)
    if known is None or known.marker or known.id not in planned or _is_taken(bucket, at, name):
        try:
            bucket.fs.rename_new(bucket.displaced, aside, at, name)
            bucket.views.changed.add(directory)
            return ""
        except FileExistsError:
            pass
    else:
        return Overtaken(key, aside)  # its user removed the file that was exchanged for it
    with open_view(bucket, key) as view:  # its mode belongs to the user
        found = view.found
        if view.kind is None:
            return "its place is taken"
        shown = _recorded(bucket, journal, key, view.digest(), view.kind)
        if shown is None or _is_later_save(shown, planned, changed_ns):
            return Overtaken(key, aside)
        if view.is_written() is True:
            return "its place is taken"
    bucket.fs.exchange(bucket.displaced, aside, at, name)
    bucket.views.changed.add(directory)
    out = bucket.fs.stat(bucket.displaced, aside)
    if (out.st_ino, out.st_size, out.st_mtime_ns) != (found.st_ino, found.st_size, found.st_mtime_ns):
        return "the file in its place has just changed"  # and is inspected next
    bucket.fs.unlink(bucket.displaced, aside)
    return ""


def _is_taken(bucket: OpenBucket, at: int, name: bytes) -> bool:
    try:
        bucket.fs.stat(at, name)
    except FileNotFoundError:
        return False
    return True


def _is_later_save(shown: Version, planned: Collection[str], changed_ns: int) -> bool:
    """Whether a view shows what a user saved after the exchange, and not what the daemon exchanged."""
    return shown.id not in planned and shown.origin is not Origin.REPLICA and shown.created_ns > changed_ns
