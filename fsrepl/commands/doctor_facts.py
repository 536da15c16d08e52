"""The facts of `fsrepl doctor` on the machine, the regions, the buckets and the journal, without a judgement.

All values have types of JSON. Where a daemon runs, it reads rights and mounts and sends them, since it may be another
user with another view of the mounts. Nothing is changed, except for test files in .fsrepl/tmp, which are created and
removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypedDict

from fsrepl.commands import services
from fsrepl.commands.documents.tiers import Held, held
from fsrepl.commands.services import ServiceFacts
from fsrepl.errors import Disowned, FsreplError, reason
from fsrepl.model import keys
from fsrepl.model.rule import Role, Rule
from fsrepl.model.version import Versioning
from fsrepl.s3 import permissions
from fsrepl.storage import privacy, probe, sharing, staging
from fsrepl.storage import tiers as tiers_
from fsrepl.storage.bucket import META, OpenBucket
from fsrepl.storage.fs import UNSUPPORTED, FileType
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.journal.rows import read_tier
from fsrepl.storage.site import Site
from fsrepl.storage.walk import directories, leave_out

CAPABILITIES = {0: "CAP_CHOWN", 1: "CAP_DAC_OVERRIDE", 3: "CAP_FOWNER", 4: "CAP_FSETID", 28: "CAP_LEASE"}
"""The capabilities that fsrepl uses, by number. Source: capabilities(7), linux/capability.h."""
LIMITS = ("max_user_watches", "max_user_instances", "max_queued_events")
_FRESH_S = 60


class Machine(TypedDict):
    """The process that does the work, and the kernel's limits; None for a limit that cannot be read."""

    uid: int
    gid: int
    capabilities: list[str]
    limits: dict[str, int | None]


class Region(TypedDict):
    """A region as a process sees it. errno: the error of creating a file there, 0 for success.

    needed: the bytes that keep_free leaves to the user. reflinks: None where not tried. silent: the region gave no
    answer in time, and the other facts are unknown.
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
    """A bucket's tree. directories: how many need a watch. displaced: without those of the last moments, which the
    daemon is inspecting."""

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
    noncurrent_bytes: int
    """Of content in the region itself, not in tiers."""
    unshown: int
    roles: list[str]
    path: str
    disowned: bool
    """Whether `.fsrepl` belongs to another user, or others may write there."""
    open: bool
    """Whether others may read its `.fsrepl`."""
    wider_than: dict[str, str]
    """Its source buckets whose folders admit fewer users than its own folder, with their modes."""
    leaving: list[str]
    """Symlinks of a tree bucket whose absolute targets are outside its region, with their targets."""


class Tier(TypedDict):
    """A tier, as this process sees it. trouble: why it is offline; bytes: of the content of versions in it."""

    address: str
    path: str
    trouble: str
    free: int
    total: int
    versions: int
    bytes: int
    waiting: int


class Facts(TypedDict):
    """All facts. said: the daemon's status; regions: as the daemon sees them, or this process where none runs.

    mounted_rw: the regions that are on a writable mount for this process, or for process 1.
    state_free: the free bytes for the state folder, which holds the journal; None where the folder is missing.
    """

    said: dict[str, object]
    machine: Machine
    regions: list[Region]
    services: list[ServiceFacts]
    mounted_rw: list[str]
    buckets: list[Bucket]
    tiers: list[Tier]
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


def mount_of(path: str, table: str = "/proc/self/mountinfo") -> _Mount | None:
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
    """Whether a path is on a writable mount for this process, or for process 1."""
    real = os.path.realpath(path)
    mounts = [mount_of(real, f"/proc/{who}/mountinfo") for who in ("self", "1")]
    return any(mount is not None and not mount["read_only"] for mount in mounts)


# -- regions


def _unknown(site: Site, name: str) -> Region:
    """The facts of a region from the settings alone."""
    settings = site.settings.regions[name]
    return {
        "name": name, "path": str(settings.path), "sharing": settings.sharing, "trouble": "", "silent": False,
        "errno": 0, "mount": "", "fstype": "", "read_only": False, "attributes": True, "reflinks": None,
        "free": 0, "total": 0, "needed": 0, "inodes_free": 0, "inodes": 0, "block_bytes": 0,
    }  # fmt: skip


def region(site: Site, name: str) -> Region:
    """A region as this process sees it. Creates a file there, so the call hangs where the filesystem does."""
    found = _unknown(site, name)
    path = found["path"]
    if mount := mount_of(os.path.realpath(path)):
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
    """Whether a filesystem has user attributes. One without them refuses even to read a missing attribute."""
    try:
        os.getxattr(path, "user.fsrepl.probe")
    except OSError as error:
        return error.errno not in UNSUPPORTED
    return True


def _try(site: Site, name: str, found: Region) -> None:
    """Create and remove a file, in a bucket if there is one, and try a reflink."""
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
        "noncurrent_bytes": 0,
        "unshown": 0, "roles": [], "path": "", "disowned": False, "open": False,
        "wider_than": {}, "leaving": [],
    }  # fmt: skip
    this = site.buckets[address]
    found["path"] = str(this.path)
    try:
        with this.open() as opened:
            found["versioning"] = str(this.versioning)
            found["uid"] = opened.fs.stat_fd(opened.fd).st_uid
            found["open"] = privacy.is_open(opened.meta_status)
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
            found["current_bytes"], found["noncurrent_bytes"] = journal.totals.held_bytes(address)
            if this.root.settings.classes:
                found["noncurrent_bytes"] = _outside_tiers(journal, address)
            found["unshown"] = journal.totals.unshown(address)
    return found


def _outside_tiers(journal: Journal, address: str) -> int:
    """The bytes of noncurrent versions whose content is not in a tier."""
    return sum(
        size
        for traits, is_current, _, size in journal.totals.by_traits(address)
        if not (is_current or read_tier(traits))
    )


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
    """Count the views' directories, and the sidecars in the store, by their names alone; find symlinks that leave."""
    inside = [os.path.join(each, b"") for each in _names_of(bucket)]

    def unreadable(path: bytes, error: OSError) -> None:
        if error.errno != errno.EXDEV:
            found["unreadable"].append(keys.shown(path))

    for directory in directories(bucket.fs, bucket.fd, but=META, failed=unreadable):
        found["directories"] += 1
        for name in [name for name, kind in directory.entries if kind is FileType.LINK and bucket.bucket.trees]:
            with contextlib.suppress(OSError):
                target = os.readlink(name, dir_fd=directory.fd)
                if leaves(target, inside):
                    found["leaving"].append(f"{keys.shown(keys.join(directory.path, name))} -> {keys.shown(target)}")
    for directory in directories(bucket.fs, bucket.versions, failed=leave_out):
        found["sidecars"] += sum(name.endswith(keys.SIDECAR) for name, _ in directory.entries)


def _names_of(bucket: OpenBucket) -> set[bytes]:
    """The path of a bucket's region as it is named in settings, and without symlinks."""
    path = os.fsencode(bucket.bucket.root.path)
    return {path, os.path.realpath(path)}


def leaves(target: bytes, inside: Collection[bytes]) -> bool:
    """Whether a symlink's target is absolute and in none of these directories, which end in a slash."""
    whole = os.path.join(os.path.normpath(target), b"")
    return target.startswith(b"/") and not any(whole.startswith(each) for each in inside)


def _displaced(bucket: OpenBucket, now_s: float) -> int:
    """How many displaced files were left there."""
    number = 0
    for name in bucket.fs.names(bucket.displaced) if bucket.displaced >= 0 else ():
        with contextlib.suppress(OSError):
            number += bucket.fs.stat(bucket.displaced, name).st_ctime < now_s - _FRESH_S
    return number


def _exists(bucket: OpenBucket, name: bytes) -> bool:
    try:
        return stat.S_ISREG(bucket.fs.stat(bucket.meta, name).st_mode)
    except OSError:
        return False


def _role(site: Site, name: str) -> Role | str:
    """A role, or why no role can be used."""
    try:
        return site.role(name)
    except FileNotFoundError:
        return f"role {name} is missing: it is not in {site.settings.roles}"
    except (OSError, ValueError, FsreplError) as error:
        return f"role {name} cannot be used: {error}"


def _refusal(role: Role, source: str, rule: Rule) -> str:
    """The versions of a rule that a role does not permit, with S3's reason; empty where it permits all, tags and ACLs
    included."""

    def asked(*, acl: bool) -> permissions.Permission:
        return permissions.permission_to_send(
            role, source=source, destination=rule.destination, marker=False, tags=True, acl=acl, batch=False,
            key=rule.prefix.decode("utf-8", "surrogateescape") + "key", owner_override=bool(rule.owner),
        )  # fmt: skip

    permission = asked(acl=False)
    if permission.reason:
        return f"role {role.name} does not permit rule {rule.id} to {rule.destination}: {permission.reason}"
    if reason := asked(acl=True).reason:
        return f"role {role.name} does not permit files with an ACL for rule {rule.id} to {rule.destination}: {reason}"
    if not permission.with_tags:
        return f"role {role.name} does not permit tags for rule {rule.id} to {rule.destination}"
    return ""


# -- tiers


def tiers(site: Site, journal: Journal | None) -> list[Tier]:
    """All tiers; their content is counted in the journal, where there is one."""
    counts = held(site, journal) if journal is not None else {}
    return [_tier(tier, counts.get(tier.address, Held())) for tier in site.tiers()]


def _tier(tier: tiers_.Tier, counts: Held) -> Tier:
    found: Tier = {
        "address": tier.address, "path": str(tier.settings.path), "trouble": "", "free": 0, "total": 0,
        "versions": counts.versions, "bytes": counts.bytes, "waiting": counts.waiting,
    }  # fmt: skip
    try:
        with tier.open() as at:
            found["free"], found["total"] = tier.fs.space(at)
    except FsreplError as error:
        found["trouble"] = str(error)
    return found


# -- the journal


def journal(site: Site) -> tuple[Journal | None, str]:
    """The journal for reading, and its trouble: "missing", or the reason why it cannot be read."""
    path = os.path.join(site.state, "journal.db")
    if not os.path.exists(path):
        return None, "missing"
    try:
        return Journal(path, read_only=True), ""
    except sqlite3.Error as error:
        return None, str(error)


def state_free(site: Site) -> int | None:
    """The free bytes of the state folder's filesystem, for its user."""
    try:
        found = os.statvfs(site.state)
    except OSError:
        return None
    return (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize


def regions(site: Site, ask: probe.Asker) -> list[Region]:
    """All regions; a region that does not answer is silent."""
    answers = ask({name: lambda name=name: region(site, name) for name in site.settings.regions})  # type: ignore[misc]
    return [answers.get(name) or _silent(site, name) for name in site.settings.regions]


def _silent(site: Site, name: str) -> Region:
    found = _unknown(site, name)
    found["silent"], found["trouble"] = True, f"{found['path']}: {probe.no_answer()}"
    return found


def where_it_works(site: Site, ask: probe.Asker = probe.by_process) -> dict[str, object]:
    """The facts that depend on the process that does the work."""
    return {"machine": machine(), "regions": regions(site, ask), "services": services.look(site)}


def facts(site: Site, said: Mapping[str, object], there: Mapping[str, object] | None) -> Facts:
    """All facts. said: the daemon's status; there: where_it_works as run in the daemon, None without a daemon."""
    found, trouble = journal(site)
    here = where_it_works(site) if there is None else there
    try:
        buckets = [bucket(site, address, found, site.now() / 1e9) for address in sorted(site.buckets)]
        tiers_ = tiers(site, found)
    finally:
        if found is not None:
            found.close()
    return {
        "said": dict(said),
        "machine": here["machine"],  # type: ignore[typeddict-item]
        "regions": here["regions"],  # type: ignore[typeddict-item]
        "services": here.get("services", []),  # type: ignore[typeddict-item]
        "mounted_rw": [
            name
            for name, settings in site.settings.regions.items()
            if name not in site.silent and is_mounted_rw(str(settings.path))
        ],
        "buckets": buckets,
        "tiers": tiers_,
        "journal": trouble,
        "state": str(site.state),
        "state_free": state_free(site),
        "rescan_s": site.settings.capture.rescan_s,
    }
