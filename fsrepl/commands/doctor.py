"""The findings of `fsrepl doctor`: what the facts mean, and what to do. Pure; commands/doctor_facts.py has the facts.

A finding is an error where something does not work, a warning where something works less well than it could or may
soon fail, and ok otherwise: checks without a problem are reported too. Source: design.md, section 5.
"""

from __future__ import annotations

import enum
import errno
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from fsrepl.commands.doctor_facts import CAPABILITIES, Bucket, Facts, Region, Tier
from fsrepl.commands.services import ServiceFacts
from fsrepl.model.address import region_of
from fsrepl.model.amounts import counted, duration_text, size_text
from fsrepl.storage import privacy
from fsrepl.storage.fs import NO_SPACE

_QUEUE_MIN = 16384
_WATCHES_MIN = 524_288
_NEARLY = 0.7
_INODES_LOW = 0.05
_TIER_LOW = 0.02
_ROOM_BUCKETS = 3
_STATE_FULL_BYTES = 1 << 20
_STATE_LOW_BYTES = 64 << 20
_AHEAD_S = 2.0
_NAMED_MAX = 10
"""Symlinks named in one finding."""

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "glusterfs", "lustre", "fuse"})
"""Filesystems that other hosts, or a server, may change without an event in this kernel."""
ROOM = {
    "xfs": "64 KB for each attribute",
    "btrfs": "about 16 KB for each attribute",
    "tmpfs": "room in memory, counted as inodes",
}
EXT = frozenset({"ext2", "ext3", "ext4"})
"""Attributes that do not fit into a file's inode share one block: 1 KiB on a small filesystem."""
WITHOUT = {
    "CAP_CHOWN": "replicas belong to the daemon's user, not to their source's owner",
    "CAP_FOWNER": "mode, times and ACLs of other users' files cannot be kept up to date",
    "CAP_DAC_OVERRIDE": "files that their owner keeps from the daemon's user are not replicated",
    "CAP_LEASE": "whether other users' files are being written is unknown, so capture waits for quiet",
}


class Level(enum.StrEnum):
    ERROR = "error"
    WARNING = "warning"
    OK = "ok"


class Finding(Struct, frozen=True):
    """The result of one check. do: the remedy, empty where none is needed."""

    level: Level
    area: str
    where: str
    what: str
    do: str = ""

    def document(self) -> dict[str, str]:
        return {
            "Level": str(self.level), "Area": self.area, "Where": self.where, "What": self.what, "Do": self.do,
        }  # fmt: skip


def findings(facts: Facts) -> list[Finding]:
    """All findings, the worst first."""
    found = [
        *_daemon(facts),
        *_watches(facts),
        *_rights(facts),
        *(f for region in facts["regions"] for f in _region(facts, region)),
        *(f for service in facts["services"] for f in _service(service)),
        *_small_objects(facts),
        *(f for tier in facts["tiers"] for f in _tier(tier)),
        *(f for bucket in facts["buckets"] for f in _bucket(facts, bucket)),
        *_journal(facts),
    ]
    order = list(Level)
    return sorted(found, key=lambda finding: order.index(finding.level))


def _buckets_said(facts: Facts) -> Mapping[str, Mapping[str, Any]]:
    said: Any = facts["said"].get("buckets", {})
    return said  # type: ignore[no-any-return]


def _count(said: Mapping[str, Any], name: str) -> int:
    """The length of one of the daemon's lists, which may contain only the first entries."""
    return int(said.get("counts", {}).get(name, len(said.get(name, ()))))


# -- the daemon, and what the kernel gives it


def _daemon(facts: Facts) -> Iterator[Finding]:
    said = facts["said"]
    if not said.get("running"):
        yield Finding(
            Level.WARNING, "daemon", "", "the daemon is not running; nothing is captured or replicated",
            "`fsrepl daemon` runs it here, `systemctl start fsrepl` as a service",
        )  # fmt: skip
        return
    if trouble := said.get("trouble"):
        yield Finding(Level.ERROR, "daemon", "", f"the daemon does not answer: {trouble}", "see the daemon's log")
        return
    stuck: Any = said.get("stuck") or ()
    for region in stuck:
        yield Finding(
            Level.ERROR, "daemon", region, "no progress there: its filesystem hangs",
            "check the disk or the server behind it; the daemon continues by itself",
        )  # fmt: skip
    if not said.get("ready"):
        yield Finding(Level.OK, "daemon", "", f"running, pid {said.get('pid')}; still scanning the buckets")
    elif not stuck:
        yield Finding(Level.OK, "daemon", "", f"running, pid {said.get('pid')}")


def _watches(facts: Facts) -> Iterator[Finding]:
    limits = facts["machine"]["limits"]
    versioned = [b for b in facts["buckets"] if b["versioning"]]
    needed = sum(b["directories"] + 1 for b in versioned)
    polled = {address: _count(said, "polled") for address, said in _buckets_said(facts).items()}
    most = limits.get("max_user_watches")
    if most is not None:
        what = f"{needed} watches are needed, one a directory, and fs.inotify.max_user_watches is {most}"
        more = _sysctl("max_user_watches", max(_WATCHES_MIN, _rounded(2 * needed)))
        if needed > most:
            yield Finding(Level.WARNING, "watches", "", what + "; directories without one are polled", more)
        elif needed > most * _NEARLY:
            yield Finding(Level.WARNING, "watches", "", what + ", which all programs of a user share", more)
        else:
            yield Finding(Level.OK, "watches", "", what)
    for address, number in polled.items():
        if number:
            do = _sysctl("max_user_watches", max(_WATCHES_MIN, _rounded(2 * needed)))
            yield Finding(
                Level.WARNING, "watches", address, f"{number} directories are polled instead of watched",
                f"{do}; then restart the daemon",
            )  # fmt: skip
    instances = limits.get("max_user_instances")
    if instances is not None:
        level = Level.OK if instances >= 1 else Level.ERROR
        do = "" if instances >= 1 else _sysctl("max_user_instances", 128)
        yield Finding(level, "watches", "", f"one inotify instance is used, of {instances} that a user may have", do)
    yield from _queue(facts, limits.get("max_queued_events"))


def _queue(facts: Facts, queue: int | None) -> Iterator[Finding]:
    lost: Any = facts["said"].get("events_lost") or 0
    if queue is None:
        return
    what = f"fs.inotify.max_queued_events is {queue}"
    more = _sysctl("max_queued_events", max(4 * _QUEUE_MIN, 4 * queue))
    if lost:
        what += f", and events were lost {lost} times since the daemon started; scans found the changes"
        yield Finding(Level.WARNING, "queue", "", what, more)
    elif queue < _QUEUE_MIN:
        yield Finding(Level.WARNING, "queue", "", f"{what}: a burst of changes overflows it", more)
    else:
        yield Finding(Level.OK, "queue", "", what)


def _sysctl(name: str, value: int) -> str:
    """A command that sets a kernel limit, and keeps it over a restart of the machine."""
    return f"`echo fs.inotify.{name}={value} | sudo tee /etc/sysctl.d/60-fsrepl-{name}.conf && sudo sysctl --system`"


def _rounded(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()


def _rights(facts: Facts) -> Iterator[Finding]:
    machine = facts["machine"]
    missing = [name for name in CAPABILITIES.values() if name not in machine["capabilities"]]
    whose = f"uid {machine['uid']}"
    lacks = [name for name in missing if name in WITHOUT]
    for name in lacks:
        yield Finding(
            Level.WARNING, "rights", whose, f"{name} is missing: {WITHOUT[name]}",
            f"run the daemon as root, or give its service AmbientCapabilities={' '.join(lacks)}",
        )  # fmt: skip
    if not lacks:
        yield Finding(Level.OK, "rights", whose, "owners, modes and other users' files can be handled")


# -- a region


def _region(facts: Facts, region: Region) -> Iterator[Finding]:
    name = region["name"]
    if region["silent"]:
        yield Finding(
            Level.ERROR, "region", name, region["trouble"],
            "check the disk or the server behind it; `fsfreeze -u` thaws a frozen one; deliveries to it wait",
        )  # fmt: skip
        return
    if region["trouble"]:
        yield Finding(
            Level.ERROR, "region", name, region["trouble"],
            f"mount it, or if its disk is lost, `fsrepl region add {name}=PATH --replace` attaches a new one; "
            "deliveries to it wait",
        )  # fmt: skip
        return
    where = f"{region['path']}, {region['fstype'] or 'of an unknown filesystem'}"
    yield from _writable(facts, region)
    if region["fstype"].split(".")[0] in NETWORK:
        yield Finding(
            Level.WARNING, "region", name,
            f"{where}: changes by other hosts make no events; scans find them, every {facts['rescan_s']:g} s",
            "let programs on this host write there, or set rescan_s in [capture] lower",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "region", name, where)
    yield from _attributes(facts, region)
    yield from _free(facts, region)
    yield from _sharing(facts, region)


def _tier(tier: Tier) -> Iterator[Finding]:
    name, held = tier["address"], f"{tier['versions']} versions ({size_text(tier['bytes'])})"
    if tier["trouble"]:
        yield Finding(
            Level.ERROR if tier["versions"] else Level.WARNING, "tier", name, tier["trouble"],
            f"mount it, or attach it with `fsrepl tier add {name}=PATH`; the content of {held} cannot be read, and "
            f"{tier['waiting']} wait to be moved there",
        )  # fmt: skip
        return
    what = f"{tier['path']}: {held}, {size_text(tier['free'])} of {size_text(tier['total'])} are free"
    if tier["free"] < tier["total"] * _TIER_LOW:
        yield Finding(Level.WARNING, "tier", name, what, "make room there; what does not fit stays in the region")
    else:
        yield Finding(Level.OK, "tier", name, what)


def _service(service: ServiceFacts) -> Iterator[Finding]:
    name = service["name"]
    if service["trouble"]:
        yield Finding(
            Level.ERROR, "region", name, service["trouble"],
            "deliveries to it wait, and are made once it answers",
        )  # fmt: skip
        return
    what = "is served" if service["url"].startswith("ssh://") else "answers, and accepts the credentials"
    yield Finding(Level.OK, "region", name, f"{service['url']} {what}")
    for bucket in service["buckets"]:
        if bucket["trouble"]:
            what, _, do = bucket["trouble"].partition("; ")
            do = f"{do}; then `fsrepl retry --all`" if do else ""
            yield Finding(Level.ERROR, "bucket", bucket["address"], what, do)
        else:
            yield Finding(
                Level.OK, "bucket", bucket["address"], f"{bucket['place']}, versioning {bucket['versioning'] or 'off'}"
            )


def _small_objects(facts: Facts) -> Iterator[Finding]:
    """One finding for all services, since they all lack the same Python package."""
    slowed = {each["name"]: each["slowed"] for each in facts["services"] if each.get("slowed")}  # an older daemon: none
    if slowed:
        why = next(iter(slowed.values()))
        yield Finding(
            Level.WARNING, "region", ", ".join(slowed),
            f"botocore puts small objects too, which takes several times the processor time: {why}",
            "`pip install --upgrade --only-binary pycurl pycurl` with the daemon's pip; then restart the daemon",
        )  # fmt: skip


def _writable(facts: Facts, region: Region) -> Iterator[Finding]:
    name, path = region["name"], region["path"]
    if not region["errno"]:
        return
    if region["errno"] == errno.EROFS and name in facts["mounted_rw"]:
        lines = f"[Service]\nReadWritePaths={path}"
        yield Finding(
            Level.ERROR, "region", name, f"{path} is writable, but not for the daemon: its systemd unit denies it",
            f"`systemctl edit fsrepl`, and write\n{lines}\nthen `systemctl restart fsrepl`",
        )  # fmt: skip
    elif region["errno"] == errno.EROFS:
        yield Finding(
            Level.ERROR, "region", name, f"{path} is on a read-only filesystem ({region['mount']})",
            f"`mount -o remount,rw {region['mount']}`; if that fails, see the kernel's log for errors of the disk",
        )  # fmt: skip
    elif region["errno"] in NO_SPACE:
        yield Finding(
            Level.ERROR, "region", name, f"{path} is full: no file can be created there",
            f"remove files there; deliveries continue by themselves{_room(facts, region)}",
        )  # fmt: skip
    else:
        yield Finding(
            Level.ERROR, "region", name, f"no file can be created in {path}: {os.strerror(region['errno']).lower()}",
            f"give the directory to the daemon's user, uid {facts['machine']['uid']}, or run the daemon as its owner",
        )  # fmt: skip


def _attributes(facts: Facts, region: Region) -> Iterator[Finding]:
    name = region["name"]
    if not region["attributes"]:
        yield Finding(
            Level.ERROR, "attributes", name,
            f"{region['fstype']} at {region['mount']} has no user attributes, which hold the record of each version",
            "use ext4, xfs, btrfs or a tmpfs of Linux 6.6, or mount it with user_xattr",
        )  # fmt: skip
        return
    sidecars = sum(b["sidecars"] for b in facts["buckets"] if b["address"].startswith(name + "/"))
    room = ROOM.get(region["fstype"], "user attributes")
    if region["fstype"] in EXT and (block_bytes := region.get("block_bytes", 0)):  # an older daemon does not report it
        room = f"about {block_bytes >> 10} KiB for all of a file's attributes"
    more = f"; {sidecars} versions have a sidecar" if sidecars else "; no version has a sidecar"
    yield Finding(Level.OK, "attributes", name, f"{room}{more}")


def _room(facts: Facts, region: Region) -> str:
    """The buckets whose noncurrent versions hold most, for people; empty where there are none."""
    held = {b["address"]: b["noncurrent_bytes"] for b in facts["buckets"] if region_of(b["address"]) == region["name"]}
    most = sorted((address for address in held if held[address]), key=lambda address: -held[address])[:_ROOM_BUCKETS]
    if not most:
        return ""
    named = ", ".join(f"{size_text(held[address])} in {address}" for address in most)
    return (
        f"; noncurrent versions hold up to {named}: a lifecycle rule such as examples/lifecycle/old-versions.json "
        f"removes them, `fsrepl lifecycle preview {most[0]}` shows which"
    )


def _free(facts: Facts, region: Region) -> Iterator[Finding]:
    name, free, total, needed = region["name"], region["free"], region["total"], region["needed"]
    if total:
        what = f"{size_text(free)} of {size_text(total)} are free, and keep_free leaves {size_text(needed)} to the user"
        if free < needed:
            yield Finding(
                Level.ERROR, "space", name, f"{what}: capture waits",
                f"make room, or set keep_free in [capture] lower{_room(facts, region)}",
            )  # fmt: skip
        elif free < 2 * needed:
            do = f"make room before capture must wait{_room(facts, region)}"
            yield Finding(Level.WARNING, "space", name, what, do)
        else:
            yield Finding(Level.OK, "space", name, what)
    if region["inodes"]:
        left, all_ = region["inodes_free"], region["inodes"]
        what = f"{left} of {all_} inodes are free"
        if not left:
            yield Finding(Level.ERROR, "space", name, what, "remove files; each version needs an inode")
        elif left < all_ * _INODES_LOW:
            yield Finding(
                Level.WARNING, "space", name, what, "each version takes an inode: remove files, or old versions"
            )
        else:
            yield Finding(Level.OK, "space", name, what)


def _sharing(facts: Facts, region: Region) -> Iterator[Finding]:
    """Findings on the space of versions beside their views. Source: design.md, section 7, View and store."""
    name, sharing = region["name"], region["sharing"]
    mine = [b for b in facts["buckets"] if b["address"].startswith(name + "/") and b["versioning"]]
    if not mine:
        return
    size = size_text(sum(b["current_bytes"] for b in mine))
    written = sum(b["current_bytes"] for b in mine if b["source"])
    mode = f'sharing = "{sharing}"'
    if sharing == "link":
        what = f"{mode}: current versions cost no space; a program that writes into a file destroys its version"
        yield Finding(Level.OK, "sharing", name, what)
    elif sharing == "private":
        yield Finding(Level.OK, "sharing", name, f"{mode}: current versions are stored twice, {size} more")
    elif region["reflinks"]:
        what = f"{mode}, with reflinks: current versions share their blocks with the files, and cost no space"
        yield Finding(Level.OK, "sharing", name, what)
    elif region["reflinks"] is not None:
        what = f"{mode}, without reflinks: sources are stored twice, {size_text(written)} more; replicas are hard links"
        do = 'xfs or btrfs would share the blocks; so does sharing = "link", if nothing writes into files in place'
        yield Finding(Level.OK, "sharing", name, what, do if written else "")


# -- a bucket


def _bucket(facts: Facts, bucket: Bucket) -> Iterator[Finding]:
    address = bucket["address"]
    said = _buckets_said(facts).get(address, {})
    away = {region["name"] for region in facts["regions"] if region["trouble"]}
    if bucket["trouble"]:
        if region_of(address) not in away:  # otherwise the region's finding says it
            trouble, adopt = bucket["trouble"].removeprefix(f"bucket {address}: "), f"`fsrepl bucket adopt {address}`"
            do = "fix that; the bucket then continues by itself"
            if adopt in trouble:
                do = f"{adopt}, which first says what happens to its files, and asks"
            if bucket["disowned"]:
                do = f"if you trust it, `{_command_to_own(facts, bucket)}`; the bucket then continues by itself"
            yield Finding(Level.ERROR, "bucket", address, trouble, do)
        return
    good = True
    for finding in (*_tree(facts, bucket), *_privacy(facts, bucket, said), *_at_work(facts, bucket, said)):
        good &= finding.level is Level.OK
        yield finding
    if good:
        yield Finding(Level.OK, "bucket", address, _describe(bucket))


def _command_to_own(facts: Facts, bucket: Bucket) -> str:
    machine = facts["machine"]
    return privacy.command_to_own(bucket["path"], machine["uid"], machine["gid"])


def _privacy(facts: Facts, bucket: Bucket, said: Mapping[str, Any]) -> Iterator[Finding]:
    """Findings on the access of other users to `.fsrepl` and to replicas."""
    address, leave_out = bucket["address"], privacy.command_without(bucket["path"], "chmod a+rX")
    for source, mode in bucket["wider_than"].items():
        yield Finding(
            Level.WARNING, "privacy", address,
            f"its folder admits users whom that of {source} does not; they may read its replicas here",
            f"`chmod {mode} {shlex.quote(bucket['path'])}`, unless intended: a bucket's folder follows no other",
        )  # fmt: skip
    if bucket["open"]:
        yield Finding(
            Level.ERROR, "privacy", address, "other users can read .fsrepl, which holds private and deleted files",
            f"`{_command_to_own(facts, bucket)}`; a running daemon does that by itself",
        )  # fmt: skip
    elif exposed := said.get("exposed"):
        yield Finding(
            Level.WARNING, "privacy", address, str(exposed),
            f"leave .fsrepl out of commands on a whole bucket, as in `{leave_out}`",
        )  # fmt: skip


def _describe(bucket: Bucket) -> str:
    state = f"versioning {bucket['versioning']}" if bucket["versioning"] else "never versioned"
    return f"{state}, {counted(bucket['directories'], 'directory', 'directories')}" if bucket["versioning"] else state


def _tree(facts: Facts, bucket: Bucket) -> Iterator[Finding]:
    address, uid = bucket["address"], facts["machine"]["uid"]
    if bucket["uid"] not in (uid, -1):
        whose = f"its folder belongs to uid {bucket['uid']}, and the daemon is uid {uid}"
        if uid == 0:
            yield Finding(Level.OK, "bucket", address, f"{whose}; that gives its user no more rights")
        else:
            yield Finding(
                Level.WARNING, "bucket", address, f"{whose}: the daemon may be unable to write there",
                f"`chown {uid}` the folder, or run the daemon as root",
            )  # fmt: skip
    for path in bucket["unreadable"]:
        yield Finding(
            Level.WARNING, "bucket", address, f"the directory {path or 'of the bucket'} cannot be read",
            "let the daemon's user read it; until then its files are neither captured nor taken for deleted",
        )  # fmt: skip
    if bucket["halted"]:
        yield Finding(
            Level.WARNING, "bucket", address, "HALTED: so many files were deleted at once that the deletions wait",
            f"`fsrepl ack {address}` delivers them, `fsrepl undelete {address} --since TIME` undoes them",
        )  # fmt: skip
    if bucket["displaced"]:
        yield Finding(
            Level.WARNING, "bucket", address,
            f"{bucket['displaced']} files that were taken out of views lie in .fsrepl/displaced",
            "the daemon compares them when it starts; inspect the files yourself that its log names as left there",
        )  # fmt: skip
    if leaving := sorted(bucket.get("leaving", ())):  # an older daemon does not report it
        more = f" and {len(leaving) - _NAMED_MAX} more" if len(leaving) > _NAMED_MAX else ""
        yield Finding(
            Level.WARNING, "symlinks", address,
            f"absolute symlinks leave the region: {', '.join(leaving[:_NAMED_MAX])}{more}",
            "they are replicated as they are; relative targets would lead to the same files in each region",
        )  # fmt: skip
    if bucket["ahead_s"] > _AHEAD_S:
        yield Finding(
            Level.WARNING, "clock", address,
            f"the clock is {duration_text(bucket['ahead_s'])} behind the newest version; was it set back?",
            "correct the clock; until it has caught up, new versions get the time of the newest one",
        )  # fmt: skip
    for why in bucket["roles"]:
        yield Finding(
            Level.WARNING, "role", address, why,
            f"`fsrepl replication show {address}` names the role, `fsrepl role create` creates one that suffices; "
            "then `fsrepl retry`",
        )  # fmt: skip


def _at_work(facts: Facts, bucket: Bucket, said: Mapping[str, Any]) -> Iterator[Finding]:
    address = bucket["address"]
    if paused := said.get("paused"):
        yield Finding(Level.ERROR, "bucket", address, str(paused), "make room; capture then continues by itself")
    for path in said.get("mounts", ()):
        yield Finding(
            Level.WARNING, "bucket", address, f"the directory {path} is another mount, and not scanned",
            "a bucket lies on one filesystem; make the mounted one a separate bucket",
        )  # fmt: skip
    unreadable: Mapping[str, str] = said.get("unreadable", {})
    if unreadable:
        key, why = next(iter(unreadable.items()))
        number = _count(said, "unreadable")
        yield Finding(
            Level.WARNING, "bucket", address, f"{number} files cannot be captured, such as {key}: {why}",
            "give the daemon's user the right to read them",
        )  # fmt: skip
    uncaptured: Mapping[str, str] = said.get("uncaptured", {})
    if uncaptured:
        key, why = next(iter(uncaptured.items()))
        number = _count(said, "uncaptured")
        yield Finding(
            Level.WARNING, "bucket", address,
            f"{counted(number, 'change is', 'changes are')} not captured yet, such as {key}: {why}",
            "they are captured once that is over; `fsrepl status --all` names them",
        )  # fmt: skip
    if waits := said.get("lifecycle_waits"):
        yield Finding(
            Level.WARNING, "lifecycle", address, f"what is due cannot be carried out: {waits}",
            "it is tried again; `fsrepl lifecycle preview` lists it",
        )  # fmt: skip
    conflicts: Mapping[str, str] = said.get("conflicts", {})
    for key, why in conflicts.items():
        yield Finding(
            Level.WARNING, "view", address, f"{key} cannot be shown: {why}",
            "move the obstacle away; the version is stored, and `fsrepl cat` reads it",
        )  # fmt: skip
    if (left := _count(said, "conflicts") - len(conflicts)) > 0:
        yield Finding(
            Level.WARNING, "view", address, f"{left} more cannot be shown",
            f"`fsrepl why {address}/KEY` names the obstacle",
        )  # fmt: skip
    if not facts["said"].get("running") and bucket["unshown"]:
        yield Finding(
            Level.WARNING, "view", address, f"{bucket['unshown']} files do not show their current version",
            "start the daemon; it shows them, or names the obstacle",
        )  # fmt: skip


def _journal(facts: Facts) -> Iterator[Finding]:
    trouble = facts["journal"]
    if not trouble:
        yield Finding(Level.OK, "journal", "", "the journal can be read")
    elif trouble == "missing":
        yield Finding(Level.OK, "journal", "", "there is no journal yet; the daemon builds it from the trees")
    else:
        yield Finding(
            Level.WARNING, "journal", "", f"the journal cannot be read: {trouble}",
            "restart the daemon: it builds a new one from the trees, and nothing is lost",
        )  # fmt: skip
    yield from _state_space(facts["state"], facts["state_free"])


def _state_space(state: str, free: int | None) -> Iterator[Finding]:
    """Findings on space for the journal, perhaps on a separate disk: without it nothing is captured or delivered."""
    if free is None:
        return
    what = f"{size_text(free)} are free for the state in {state}"
    if free < _STATE_FULL_BYTES:
        yield Finding(
            Level.ERROR, "space", "state", f"{what}: the journal cannot be written, and everything waits",
            "make room there; everything then continues by itself",
        )  # fmt: skip
    elif free < _STATE_LOW_BYTES:
        yield Finding(Level.WARNING, "space", "state", what, "make room there before the journal cannot be written")
    else:
        yield Finding(Level.OK, "space", "state", what)
