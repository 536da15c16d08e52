"""Permissions of directories: a replica's directory never admits more people than its source's.

Outside tree buckets directories are no objects, so their permissions do not travel with versions. They are recorded in
each bucket, on the directory of the version store with the same path, where only the daemon writes:

    user.fsrepl.directory   the directory's permissions when last seen, for when it is gone
    user.fsrepl.replicated  its permissions when last seen at each source that has delivered into it, the
                            inode that replication made for it here, and that inode's resulting permissions

A directory that replication made has the permissions that all of its sources share. One that a person made, or
put in its place, has another inode: it is left alone. Source: design.md, section 2.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from fsrepl.model import access, attributes, json_text, keys
from fsrepl.model.version import Rights
from fsrepl.model.view import View
from fsrepl.storage import staging
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.fs import DOES_NOT_FIT, GONE, UNSUPPORTED
from fsrepl.views import crossing

# -- the record


class Replicated(Struct, frozen=True):
    """A bucket's record of a directory that sources deliver into.

    made: the inode that replication made for it, 0 where none; since_ns: its ctime then, 0 where it was adopted, or an
    earlier build made it; given: its permissions afterwards. home: the inode of the directory that the record was
    written on: in a copy of the tree it differs, as do all others.
    """

    sources: Mapping[str, Rights] = field(default_factory=dict)
    made: int = 0
    given: Rights | None = None
    home: int = 0
    since_ns: int = 0


def with_parents(paths: Iterable[bytes]) -> list[bytes]:
    """Directories and all their parents, without the bucket's folder, from the top down."""
    found: set[bytes] = set()
    for path in paths:
        while path and path not in found:
            found.add(path)
            path = keys.split(path)[0]
    return sorted(found)


def remember(bucket: OpenBucket, path: bytes, rights: Rights | None = None) -> bool:
    """Record the permissions of a directory that people made; whether others were on record. Raises OSError.

    rights: its permissions, where they were just read, and replication did not make it.
    """
    at = bucket.stored_directory(path)
    if rights is None:
        if _made(bucket, at, path, _read(bucket, at)) is not None:
            return False  # its permissions are those of its sources
        rights = rights_of(bucket, bucket.views.get(path))
    before = bucket.fs.attribute(at, attributes.DIRECTORY)
    if before == _encode(rights):
        return False
    try:
        bucket.fs.set_attribute(at, attributes.DIRECTORY, _encode(rights))
    except OSError as error:
        if error.errno not in DOES_NOT_FIT:
            raise
        bucket.fs.set_attribute(at, attributes.DIRECTORY, _encode(_without_acls(rights)))
    return before is not None


def replicated(bucket: OpenBucket, path: bytes) -> Replicated:
    """The record of a directory that replication may have made. Raises OSError."""
    return _read(bucket, bucket.stored_directory(path))


def _read(bucket: OpenBucket, at: int) -> Replicated:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        if raw := bucket.fs.attribute(at, attributes.REPLICATED):
            stored = json_text.loads(raw)
            return Replicated(
                {address: _decode(each) for address, each in stored["sources"].items()},
                int(stored["made"]), _decode(stored["given"]) if stored["given"] else None, int(stored["home"]),
                int(stored.get("since", 0)),
            )  # fmt: skip
    return Replicated()


def _write(bucket: OpenBucket, at: int, known: Replicated) -> None:
    known = replace(known, home=bucket.fs.stat_fd(at).st_ino)
    try:
        bucket.fs.set_attribute(at, attributes.REPLICATED, _document(known))
    except OSError as error:
        if error.errno not in DOES_NOT_FIT:
            raise
        without_acls = {address: _without_acls(rights) for address, rights in known.sources.items()}
        bucket.fs.set_attribute(at, attributes.REPLICATED, _document(replace(known, sources=without_acls, given=None)))


def _document(known: Replicated) -> bytes:
    sources = {address: _rights_document(rights) for address, rights in known.sources.items()}
    given = _rights_document(known.given) if known.given else None
    document = {"home": known.home, "made": known.made, "since": known.since_ns, "given": given, "sources": sources}
    return json.dumps(document).encode()


def _encode(rights: Rights) -> bytes:
    return json.dumps(_rights_document(rights)).encode()


def _rights_document(rights: Rights) -> dict[str, object]:
    out: dict[str, object] = {"mode": f"{rights.mode:04o}", "uid": rights.uid, "gid": rights.gid}
    for name, acl in (("acl", rights.acl), ("default", rights.default_acl)):
        if acl is not None:
            out[name] = base64.b64encode(acl).decode()
    return out


def _decode(stored: Mapping[str, Any]) -> Rights:
    acl, default = (base64.b64decode(stored[name]) if name in stored else None for name in ("acl", "default"))
    return Rights(int(stored["mode"], 8), stored["uid"], stored["gid"], acl, default)


def _without_acls(rights: Rights) -> Rights:
    return Rights(access.without_acl(rights), rights.uid, rights.gid)


# -- the permissions of a directory


def _wanted(bucket: OpenBucket, at: int, sources: Mapping[str, Rights]) -> Rights | None:
    """Permissions for a directory: those its sources share; without a source, those last seen here."""
    return _common(sources) or _last_seen(bucket, at)


def _common(sources: Mapping[str, Rights]) -> Rights | None:
    every = [rights for _, rights in sorted(sources.items())]
    return functools.reduce(access.common, every) if every else None


def _last_seen(bucket: OpenBucket, at: int) -> Rights | None:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        if raw := bucket.fs.attribute(at, attributes.DIRECTORY):
            return _decode(json_text.loads(raw))
    return None


def rights_at(source: OpenBucket, path: bytes) -> Rights | None:
    """A directory's permissions at a source, those on record where it is gone, None where nothing is known."""
    with contextlib.suppress(OSError):
        return rights_of(source, source.views.get(path))
    with contextlib.suppress(OSError):
        at = source.stored_directory(path)
        delivered, own = _common(_read(source, at).sources), _last_seen(source, at)
        return access.common(delivered, own) if delivered and own else delivered or own
    return None


def _daemon_only() -> Rights:
    """Permissions for a directory of which nothing is known: only the daemon has access."""
    return Rights(0o700, os.geteuid(), os.getegid())


RightsAt = Callable[[bytes], Rights | None]
"""Tells the permissions of a directory at a source, None where nothing is known of them: rights_at of a bucket here."""


def readers(sources: Mapping[str, OpenBucket]) -> dict[str, RightsAt]:
    return {address: functools.partial(rights_at, source) for address, source in sources.items()}


# -- directories of replica trees


class Follower:
    """Gives directories of a bucket the permissions of their sources, each directory once.

    sources: those that can be read now. Recorded permissions of other sources still count. A directory that is an
    object has the permissions of its version instead; narrow: called for each that may have one, with the permissions
    at each source now.
    """

    def __init__(
        self, bucket: OpenBucket, sources: Mapping[str, RightsAt],
        narrow: Callable[[bytes, Mapping[str, Rights]], None] | None = None,
    ) -> None:  # fmt: skip
        self._bucket, self._sources, self._narrow = bucket, sources, narrow
        self._done: set[bytes] = set()

    def before_showing(self, path: bytes) -> None:
        """Before new content is shown: make the directory and its parents admit no more people than at its source.

        Also records permissions for a directory that does not exist yet. Raises OSError.
        """
        if path in self._done:
            return  # and its parents
        for each in with_parents([path]):
            if each not in self._done:
                self._follow(each, self._sources)
                self._done.add(each)

    def follow(self, path: bytes, *, anew: bool = False) -> None:
        """Update a directory that may have changed at a source. anew: or that was changed here. Raises OSError."""
        known = replicated(self._bucket, path)
        if known.made and known.sources:  # else it was adopted where no source delivers into it, and is its users'
            there = {address: self._sources[address] for address in known.sources if address in self._sources}
            self._follow(path, there, anew=anew)

    def _follow(self, path: bytes, there: Mapping[str, RightsAt], *, anew: bool = False) -> None:
        bucket = self._bucket
        at = bucket.stored_directory(path)
        known = _read(bucket, at)
        now = replace(known, sources={**known.sources, **_looked_up(known, there, path)})
        fd = _made(bucket, at, path, known)
        if fd is not None:
            inode, has = bucket.fs.stat_fd(fd).st_ino, rights_of(bucket, fd)
            is_news = anew or now.sources != known.sources
            if is_news or has != known.given:
                wanted = _wanted(bucket, at, now.sources) or _daemon_only()
                if not is_news and known.given and has.mode != known.given.mode:
                    # Its users may reduce the permissions of others, until the source's change again.
                    wanted = replace(wanted, mode=wanted.mode & has.mode)
                now = replace(now, made=inode, given=give(bucket, fd, has, wanted))
        elif self._narrow is not None and bucket.bucket.trees:
            self._narrow(path, {address: now.sources[address] for address in there})
        if now != known:
            _write(bucket, at, now)


def _looked_up(known: Replicated, there: Mapping[str, RightsAt], path: bytes) -> dict[str, Rights]:
    return {address: rights(path) or known.sources.get(address) or _daemon_only() for address, rights in there.items()}


def _made(bucket: OpenBucket, at: int, path: bytes, known: Replicated) -> int | None:
    """The directory that replication made, and no other that replaced it; None where there is none.

    In a copy of a tree every inode differs: there the copied attribute is sufficient.
    """
    if not known.made:
        return None
    try:
        fd = bucket.views.get(path)
        is_copied = bucket.fs.stat_fd(at).st_ino != known.home
        is_made = is_copied or bucket.fs.stat_fd(fd).st_ino == known.made
        return fd if is_made and bucket.fs.attribute(fd, attributes.MADE) is not None else None
    except OSError:
        return None


def is_made(bucket: OpenBucket, path: bytes) -> bool:
    """Whether replication made a directory for the files below it, so that it is no object."""
    try:
        at = bucket.stored_directory(path)
        return _made(bucket, at, path, _read(bucket, at)) is not None
    except OSError:
        return False


def is_made_since(bucket: OpenBucket, path: bytes, view: View) -> bool:
    """Whether replication made a directory for the files below it where the recorded one was gone. That may have been
    another directory of the same inode number."""
    try:
        at = bucket.stored_directory(path)
        known = _read(bucket, at)
        fd = _made(bucket, at, path, known)
        return fd is not None and (not view.has_content_of(bucket.fs.stat_fd(fd)) or view.ctime_ns < known.since_ns)
    except OSError:
        return False


def is_changing(bucket: OpenBucket, path: bytes) -> bool:
    """After a crash: whether a directory that replication made may be half changed to show a version of its own.

    It is no longer marked as made then, and has no more rights yet than it was given when it was.
    """
    try:
        known, fd = replicated(bucket, path), bucket.views.get(path)
        is_same = known.made == bucket.fs.stat_fd(fd).st_ino
        return is_same and known.given is not None and not rights_of(bucket, fd).mode & ~known.given.mode
    except OSError:
        return False


def adopt(bucket: OpenBucket, path: bytes) -> None:
    """Count a directory as made for the files below it, with its present permissions. Raises OSError."""
    at, fd = bucket.stored_directory(path), bucket.views.get(path)
    remember(bucket, path)
    bucket.fs.set_attribute(fd, attributes.MADE, b"1")
    known = replace(_read(bucket, at), made=bucket.fs.stat_fd(fd).st_ino, since_ns=0, given=rights_of(bucket, fd))
    _write(bucket, at, known)


def is_edited(bucket: OpenBucket, path: bytes) -> bool:
    """Whether a directory that was adopted here has other permissions than it was given. A directory that sources
    deliver into gets their permissions instead."""
    at = bucket.stored_directory(path)
    known = _read(bucket, at)
    fd = _made(bucket, at, path, known)
    return fd is not None and not known.sources and known.given is not None and rights_of(bucket, fd) != known.given


def disown(bucket: OpenBucket, path: bytes) -> None:
    """Count a directory as an object, whatever it was made for: it stays when it is empty. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):  # nothing is stored below it, so that it was not made here
        at = bucket.stored_directory(path)
        if (known := _read(bucket, at)).made:
            _write(bucket, at, replace(known, made=0, since_ns=0, given=None))
    with contextlib.suppress(PermissionError):  # without the record the attribute says nothing
        if bucket.fs.attribute(fd := bucket.views.get(path), attributes.MADE) is not None:
            bucket.fs.remove_attribute(fd, attributes.MADE)


def difference(bucket: OpenBucket, sources: Mapping[str, RightsAt], path: bytes) -> str:
    """The differences of a directory that replication made from its sources, for people; empty where none."""
    try:
        at = bucket.stored_directory(path)
        known = _read(bucket, at)
        fd = _made(bucket, at, path, known)
        has = rights_of(bucket, fd) if fd is not None else None
    except OSError:
        return ""
    if has is None:
        return ""
    there = {address: sources[address] for address in known.sources if address in sources}
    wanted = _wanted(bucket, at, {**known.sources, **_looked_up(known, there, path)})
    if wanted is None or has in (wanted, *_lesser(wanted, known.given, asked=_wanted(bucket, at, known.sources))):
        return ""
    what = [
        name
        for name, here, other in (
            ("mode", has.mode, wanted.mode),
            ("owner", _owner(has), _owner(wanted)),
            ("ACL", (has.acl, has.default_acl), (wanted.acl, wanted.default_acl)),
        )
        if here != other
    ]
    return f"the directory's {' and '.join(what)} differ from those of the source"


def _lesser(wanted: Rights, given: Rights | None, *, asked: Rights | None) -> Iterator[Rights]:
    """The permissions that a directory has instead where its owner or ACLs cannot be set.

    given: the result of giving it the rights asked. An owner that was refused then is out of reach.
    """
    if given and asked and _owner(given) != _owner(asked) == _owner(wanted):
        yield Rights(access.without_owner(wanted) | 0o700, given.uid, given.gid)
    yield _without_acls(wanted)


def _owner(rights: Rights) -> tuple[int, int]:
    return rights.uid, rights.gid


# -- system calls


def get_or_make(bucket: OpenBucket, path: bytes) -> int:
    """A directory of the views. Missing directories are made with their sources' permissions. Raises OSError."""
    return bucket.views.get_or_make(path, functools.partial(_make, bucket))


def _make(bucket: OpenBucket, above: int, path: bytes, name: bytes) -> None:
    """Make a missing directory with the permissions of its sources' directories, or, where nothing is known of them,
    with its parent's for the owner alone."""
    fs = bucket.fs
    at, known = _on_record(bucket, path)
    wanted = _wanted(bucket, at, known.sources) if at is not None else None
    if wanted is None:
        parent = fs.stat_fd(above)
        wanted = Rights(parent.st_mode & 0o700, parent.st_uid, parent.st_gid)

    def prepare(fd: int) -> Rights:
        with contextlib.suppress(OSError):  # first, since only a directory that may be written to takes any
            fs.set_attribute(fd, attributes.MADE, b"1")
        given = give(bucket, fd, rights_of(bucket, fd), wanted)
        if at is not None and known.sources:
            found = fs.stat_fd(fd)
            _write(bucket, at, replace(known, made=found.st_ino, since_ns=found.st_ctime_ns, given=given))
        return given

    make(bucket, above, path, name, prepare)
    if at is not None and known.sources and _last_seen(bucket, at):
        fs.remove_attribute(at, attributes.DIRECTORY)  # the directory that people here had is gone


def make(bucket: OpenBucket, above: int, path: bytes, name: bytes, prepare: Callable[[int], Rights]) -> None:
    """Make a directory, hidden until its permissions are set, and rename it to where none is.

    So no directory is changed by a name that a user may have given to another one. prepare: sets the permissions on the
    open directory; the result. Raises OSError, FileExistsError where the name is taken meanwhile.
    """
    try:
        _make_hidden(bucket, bucket.tmp, staging.token(), above, name, prepare)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _make_hidden(bucket, above, crossing.beside(path), above, name, prepare)


def _make_hidden(
    bucket: OpenBucket, where: int, hidden: bytes, above: int, name: bytes, prepare: Callable[[int], Rights]
) -> None:
    """Make a directory in `where` and rename it into place. Raises OSError, EXDEV where that rename is impossible."""
    fs = bucket.fs
    fs.make_dir(where, hidden)
    try:
        fd = fs.open_dir(where, hidden)
        try:
            if where == above:
                _check_new(bucket, fd)
            given = prepare(fd)
            if not given.mode & 0o200:  # moving a directory writes to it: its `..` entry changes
                fs.chmod(fd, given.mode | 0o200)
            fs.rename_new(where, hidden, above, name)
            if not given.mode & 0o200:
                fs.chmod(fd, given.mode)
        finally:
            fs.close(fd)
    except OSError:
        with contextlib.suppress(OSError):
            fs.remove_dir(where, hidden)
        raise


def _check_new(bucket: OpenBucket, fd: int) -> None:
    """Raises PermissionError where the name of a directory just made in a user's directory leads to another one.

    A user with write access could have put another of the daemon's directories under that name, which would then get
    the new permissions: those are not empty, or lack the mode of a new one.
    """
    found = bucket.fs.stat_fd(fd)
    is_new = found.st_uid == os.geteuid() and found.st_mode & 0o7777 & ~stat.S_ISGID == 0o700
    if not is_new or next(bucket.fs.entries(fd), None) is not None:
        raise PermissionError(errno.EPERM, "another directory was put in the place of one that was just made")


def _on_record(bucket: OpenBucket, path: bytes) -> tuple[int | None, Replicated]:
    """The store's directory that carries the record, None where it is gone; and the record."""
    try:
        at = bucket.stored_directory(path)
    except OSError as error:
        if error.errno in GONE:
            return None, Replicated()
        raise
    return at, _read(bucket, at)


def rights_of(bucket: OpenBucket, fd: int) -> Rights:
    """The permissions of an open directory."""
    found = bucket.fs.stat_fd(fd)
    return Rights(
        found.st_mode & 0o7777, found.st_uid, found.st_gid, bucket.fs.acl(fd), bucket.fs.default_acl(fd)
    )  # fmt: skip


def give(bucket: OpenBucket, fd: int, has: Rights, wanted: Rights) -> Rights:
    """Set the owner, ACLs and mode of an open directory; the result, which may be less.

    In between, only people whom the old rights or the new ones admit have access: before owner or ACL change, only
    the owner keeps it. Where the owner cannot be set, no person gains by that: see access.without_owner.
    """
    fs = bucket.fs
    mode, acl, default = wanted.mode, wanted.acl, wanted.default_acl
    is_owner = _owner(has) == _owner(wanted)
    if not is_owner or (has.acl is not None and acl is None):
        fs.chmod(fd, has.mode & mode & 0o700)
    if not is_owner and not fs.give(fd, wanted.uid, wanted.gid):
        mode, acl, default = access.without_owner(wanted) | 0o700, None, None  # the daemon stays the owner
    if acl is not None and acl != has.acl:
        try:
            fs.set_acl(fd, acl)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            mode, acl, default = access.without_acl(wanted), None, None
    if acl is None and has.acl is not None:
        fs.remove_acl(fd)
    if default is not None and default != has.default_acl:
        fs.set_default_acl(fd, default)
    elif default is None and has.default_acl is not None:
        fs.remove_default_acl(fd)
    if fs.stat_fd(fd).st_mode & 0o7777 != mode:
        fs.chmod(fd, mode)
    if (has.acl, has.default_acl) == (acl, default) == (None, None):  # none was there, and none was given
        found = fs.stat_fd(fd)
        return Rights(found.st_mode & 0o7777, found.st_uid, found.st_gid)
    return rights_of(bucket, fd)
