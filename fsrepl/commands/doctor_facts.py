"""What `fsrepl doctor` finds out of the machine, the regions, the buckets and the journal. It judges nothing.

Everything is made of what JSON has, for rights and mounts are looked at where the work is done: by the
daemon, where one runs, which may be another user with another view of the mounts. Nothing is changed but
for files of ours in .fsrepl/tmp, made and removed to see whether that can be done.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from fsrepl.errors import Disowned, FsreplError, reason
from fsrepl.model import keys
from fsrepl.model.rule import Role, Rule
from fsrepl.model.version import Versioning
from fsrepl.s3 import permissions
from fsrepl.storage import privacy, probe, sharing, staging
from fsrepl.storage.bucket import META, OpenBucket
from fsrepl.storage.fs import UNSUPPORTED
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site

CAPABILITIES = {0: "CAP_CHOWN", 1: "CAP_DAC_OVERRIDE", 3: "CAP_FOWNER", 4: "CAP_FSETID", 28: "CAP_LEASE"}
"""Those that we have a use for, by number. Source: capabilities(7), linux/capability.h."""
LIMITS = ("max_user_watches", "max_user_instances", "max_queued_events")
_FRESH_S = 60


class Machine(TypedDict):
    """The process that does the work, and the kernel's limits; None where they cannot be read."""

    uid: int
    gid: int
    capabilities: list[str]
    limits: dict[str, int | None]


class Region(TypedDict):
    """A region as a process sees it. errno: of a file that could not be made there, 0 where it could.

    needed: the bytes that keep_free leaves to the user. reflinks: None where that was not tried. silent: it gave no
    answer in time, and nothing else is known of it.
    """

    name: str
    path: str
    sharing: str
    trouble: str
    silent: bool
    errno: int
    mount: str
    fstype: str
    read_only: bool
    attributes: bool
    reflinks: bool | None
    free: int
    total: int
    needed: int
    inodes_free: int
    inodes: int
    block_bytes: int


class Bucket(TypedDict):
    """A bucket's tree. directories: those that want a watch; fresh displaced files are being looked at right now."""

    address: str
    trouble: str
    versioning: str
    uid: int
    source: bool
    directories: int
    unreadable: list[str]
    sidecars: int
    displaced: int
    halted: bool
    ahead_s: float
    current_bytes: int
    unshown: int
    roles: list[str]
    path: str
    disowned: bool
    """What is the daemon's own in it is not, or others may write there."""
    open: bool
    """Others may look into its `.fsrepl`."""
    wider_than: dict[str, str]
    """Buckets that it has replicas of and whose folder keeps out people that its own lets in, and with what mode."""


class Facts(TypedDict):
    """All of it. said: what the daemon says of itself; regions: as it sees them, or this process where there is none.

    mounted_rw: the regions that are on a writable mount for this process, or for the first one of the system.
    state_free: the bytes left to the state folder, of which the journal is most; None where it is not there.
    """

    said: dict[str, object]
    machine: Machine
    regions: list[Region]
    mounted_rw: list[str]
    buckets: list[Bucket]
    journal: str
    state: str
    state_free: int | None
    rescan_s: float


# -- the machine


def machine() -> Machine:
    limits = {name: _limit(name) for name in LIMITS}
    return {"uid": os.geteuid(), "gid": os.getegid(), "capabilities": _capabilities(), "limits": limits}


def _capabilities() -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        status = Path("/proc/self/status").read_text()
        if match := re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE):
            bits = int(match[1], 16)
            return [name for number, name in CAPABILITIES.items() if bits >> number & 1]
    return list(CAPABILITIES.values()) if os.geteuid() == 0 else []


def _limit(name: str) -> int | None:
    try:
        return int(Path(f"/proc/sys/fs/inotify/{name}").read_text())
    except (OSError, ValueError):
        return None


class _Mount(TypedDict):
    at: str
    fstype: str
    read_only: bool


def _mount_of(path: str, table: str = "/proc/self/mountinfo") -> _Mount | None:
    """The mount that a path lies on, in the namespace of a process. Source: proc_pid_mountinfo(5)."""
    try:
        lines = Path(table).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    best: _Mount | None = None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        at = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields.split(" ")[4])
        if (path == at or path.startswith(at.rstrip("/") + "/")) and (best is None or len(at) >= len(best["at"])):
            fstype, _, options = [*rest.split(" ", 2), "", ""][:3]
            read_only = "ro" in fields.split(" ")[5].split(",") or "ro" in options.split(",")
            best = {"at": at, "fstype": fstype, "read_only": read_only}
    return best


def is_mounted_rw(path: str) -> bool:
    """Whether a path is on a writable mount for this process, or for the first one of the system."""
    real = os.path.realpath(path)
    mounts = [_mount_of(real, f"/proc/{who}/mountinfo") for who in ("self", "1")]
    return any(mount is not None and not mount["read_only"] for mount in mounts)


# -- regions


def _unknown(site: Site, name: str) -> Region:
    """A region of which nothing is known but what the settings say."""
    settings = site.settings.regions[name]
    return {
        "name": name, "path": str(settings.path), "sharing": settings.sharing, "trouble": "", "silent": False,
        "errno": 0, "mount": "", "fstype": "", "read_only": False, "attributes": True, "reflinks": None,
        "free": 0, "total": 0, "needed": 0, "inodes_free": 0, "inodes": 0, "block_bytes": 0,
    }  # fmt: skip


def region(site: Site, name: str) -> Region:
    """A region as this process sees it. Makes a file there: it hangs where the filesystem does."""
    found = _unknown(site, name)
    path = found["path"]
    if mount := _mount_of(os.path.realpath(path)):
        found["mount"], found["fstype"], found["read_only"] = mount["at"], mount["fstype"], mount["read_only"]
    try:
        with site.open_region(name) as at:
            space = os.fstatvfs(at)
            found["free"], found["total"] = site.fs.space(at)
            found["needed"] = site.settings.capture.keep_free.needed(found["total"])
            found["inodes_free"], found["inodes"] = space.f_favail, space.f_files
            found["block_bytes"] = space.f_bsize
            found["attributes"] = _takes_attributes(path)
            _try(site, name, found)
    except FsreplError as error:
        found["trouble"] = str(error)
    return found


def _takes_attributes(path: str) -> bool:
    """Whether a filesystem has user attributes. One that has not says so even of one that is not there."""
    try:
        os.getxattr(path, "user.fsrepl.probe")
    except OSError as error:
        return error.errno not in UNSUPPORTED
    return True


def _try(site: Site, name: str, found: Region) -> None:
    """Make and remove a file, in a bucket if there is one, and try a reflink."""
    for bucket in site.buckets.values():
        if bucket.region != name:
            continue
        with contextlib.suppress(FsreplError), bucket.open() as opened:
            found["errno"] = _make(opened)
            if not found["errno"]:
                with contextlib.suppress(OSError):
                    found["reflinks"] = sharing.can_reflink(opened)
            return
    found["errno"] = 0 if os.access(found["path"], os.W_OK) else errno.EROFS if found["read_only"] else errno.EACCES


def _make(bucket: OpenBucket) -> int:
    name = staging.token()
    try:
        bucket.fs.close(bucket.fs.create(bucket.tmp, name))
        bucket.fs.unlink(bucket.tmp, name)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


# -- buckets


def bucket(site: Site, address: str, journal: Journal | None, now_s: float) -> Bucket:
    found: Bucket = {
        "address": address, "trouble": "", "versioning": "", "uid": -1, "source": False, "directories": 0,
        "unreadable": [], "sidecars": 0, "displaced": 0, "halted": False, "ahead_s": 0.0, "current_bytes": 0,
        "unshown": 0, "roles": [], "path": "", "disowned": False, "open": False,
        "wider_than": {},
    }  # fmt: skip
    this = site.buckets[address]
    found["path"] = str(this.path)
    try:
        with this.open() as opened:
            found["versioning"] = str(this.versioning)
            found["uid"] = opened.fs.stat_fd(opened.fd).st_uid
            found["open"] = privacy.is_open(opened.fs, opened.meta)
            found["wider_than"] = _wider_than(site, opened)
            found["source"] = this.replication is not None
            if this.versioning is not Versioning.OFF:
                _count(opened, found)
                found["displaced"] = _displaced(opened, now_s)
                found["halted"] = _exists(opened, b"halt.json")
    except FsreplError as error:
        found["trouble"], found["disowned"] = str(error), isinstance(error, Disowned)
    except OSError as error:
        found["trouble"] = f"bucket {address}: {reason(error)}"
    if this.replication is not None:
        role = _role(site, this.replication.role)
        if isinstance(role, str):
            found["roles"] = [role]
        else:
            found["roles"] = [why for rule in this.replication.rules if (why := _refusal(role, address, rule))]
    if journal is not None:
        with contextlib.suppress(sqlite3.Error):
            found["ahead_s"] = max(0.0, (journal.versions.newest(address)[1] - site.now()) / 1e9)
            found["current_bytes"] = journal.versions.current_bytes(address)
            found["unshown"] = journal.versions.count_unshown(address)
    return found


def _wider_than(site: Site, bucket: OpenBucket) -> dict[str, str]:
    mode = bucket.fs.stat_fd(bucket.fd).st_mode
    found = {}
    for source in site.sources_of(bucket.address):
        with contextlib.suppress(OSError):
            other = os.stat(site.buckets[source].path).st_mode
            if mode & ~other & 0o077:
                found[source] = f"{stat.S_IMODE(other):o}"
    return found


def _count(bucket: OpenBucket, found: Bucket) -> None:
    """Directories of the views, and sidecars in the store, by their names alone."""
    todo = [b""]
    while todo:
        path = todo.pop()
        try:
            fd = bucket.fs.open_dir(bucket.fd, path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EXDEV):
                found["unreadable"].append(keys.shown(path))
            continue
        found["directories"] += 1
        try:
            for entry in bucket.fs.entries(fd):
                if entry.is_dir(follow_symlinks=False) and (path or os.fsencode(entry.name) != META):
                    todo.append(keys.join(path, os.fsencode(entry.name)))
        finally:
            bucket.fs.close(fd)
    todo = [b""]
    while todo:
        path = todo.pop()
        with contextlib.suppress(OSError):
            fd = bucket.fs.open_dir(bucket.versions, path)
            try:
                for entry in bucket.fs.entries(fd):
                    name = os.fsencode(entry.name)
                    if name.endswith(keys.SIDECAR):
                        found["sidecars"] += 1
                    elif entry.is_dir(follow_symlinks=False):
                        todo.append(keys.join(path, name))
            finally:
                bucket.fs.close(fd)


def _displaced(bucket: OpenBucket, now_s: float) -> int:
    """Files that an exchange took out of a view, and that were left there."""
    number = 0
    for entry in bucket.fs.entries(bucket.displaced) if bucket.displaced >= 0 else ():
        with contextlib.suppress(OSError):
            number += entry.stat(follow_symlinks=False).st_ctime < now_s - _FRESH_S
    return number


def _exists(bucket: OpenBucket, name: bytes) -> bool:
    try:
        return stat.S_ISREG(bucket.fs.stat(bucket.meta, name).st_mode)
    except OSError:
        return False


def _role(site: Site, name: str) -> Role | str:
    """A role, or why there is none to use."""
    try:
        return site.role(name)
    except FileNotFoundError:
        return f"role {name} is missing: it is not in {site.settings.roles}"
    except (OSError, ValueError, FsreplError) as error:
        return f"role {name} cannot be used: {error}"


def _refusal(role: Role, source: str, rule: Rule) -> str:
    """What a role refuses an ordinary version of a rule, by S3's reason; empty where it lets it pass, tags included."""
    permission = permissions.permission_to_send(
        role, source=source, destination=rule.destination, key=rule.prefix.decode("utf-8", "surrogateescape") + "key",
        marker=False, tags=True, acl=False, owner_override=bool(rule.owner), batch=False,
    )  # fmt: skip
    if permission.reason:
        return f"role {role.name} does not permit rule {rule.id} to {rule.destination}: {permission.reason}"
    if not permission.with_tags:
        return f"role {role.name} does not let tags pass by rule {rule.id} to {rule.destination}"
    return ""


# -- the journal


def journal(site: Site) -> tuple[Journal | None, str]:
    """The journal to read, and what is wrong with it: "missing", or the reason why it cannot be read."""
    path = os.path.join(site.state, "journal.db")
    if not os.path.exists(path):
        return None, "missing"
    try:
        return Journal(path, read_only=True), ""
    except sqlite3.Error as error:
        return None, str(error)


def state_free(site: Site) -> int | None:
    """The bytes that the filesystem of the state folder has left for its user."""
    try:
        found = os.statvfs(site.state)
    except OSError:
        return None
    return (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize


def regions(site: Site, ask: probe.Asker) -> list[Region]:
    """All regions, each as it answers, or silent."""
    answers = ask({name: lambda name=name: region(site, name) for name in site.settings.regions})  # type: ignore[misc]
    return [answers.get(name) or _silent(site, name) for name in site.settings.regions]


def _silent(site: Site, name: str) -> Region:
    found = _unknown(site, name)
    found["silent"], found["trouble"] = True, f"{found['path']}: {probe.no_answer()}"
    return found


def where_it_works(site: Site, ask: probe.Asker = probe.by_process) -> dict[str, object]:
    """What is to be looked at by the process that does the work."""
    return {"machine": machine(), "regions": regions(site, ask)}


def facts(site: Site, said: Mapping[str, object], there: Mapping[str, object] | None) -> Facts:
    """Everything. said: the daemon's status; there: what where_it_works answered in it, None where there is none."""
    found, trouble = journal(site)
    here = where_it_works(site) if there is None else there
    try:
        buckets = [bucket(site, address, found, site.now() / 1e9) for address in sorted(site.buckets)]
    finally:
        if found is not None:
            found.close()
    return {
        "said": dict(said),
        "machine": here["machine"],  # type: ignore[typeddict-item]
        "regions": here["regions"],  # type: ignore[typeddict-item]
        "mounted_rw": [
            name
            for name, settings in site.settings.regions.items()
            if name not in site.silent and is_mounted_rw(str(settings.path))
        ],
        "buckets": buckets,
        "journal": trouble,
        "state": str(site.state),
        "state_free": state_free(site),
        "rescan_s": site.settings.capture.rescan_s,
    }
