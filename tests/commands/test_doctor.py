"""The doctor's findings for given facts, and the facts of a real site."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands import doctor_facts
from fsrepl.commands.doctor import Finding, Level, findings
from fsrepl.commands.doctor_facts import CAPABILITIES, Bucket, Facts, Region
from tests.world import DESTINATION, SOURCE, World


def region(**more: Any) -> Region:
    good: Any = {
        "name": "east", "path": "/srv/east", "sharing": "auto", "trouble": "", "silent": False, "errno": 0,
        "mount": "/srv", "fstype": "ext4", "read_only": False, "attributes": True, "reflinks": False, "free": 50 << 30,
        "total": 100 << 30, "needed": 5 << 30, "inodes_free": 900, "inodes": 1000, "block_bytes": 4096,
    }  # fmt: skip
    return {**good, **more}  # type: ignore[no-any-return]


def bucket(**more: Any) -> Bucket:
    good: Any = {
        "address": "east/src", "trouble": "", "versioning": "Enabled", "uid": 0, "source": True, "directories": 9,
        "unreadable": [], "sidecars": 0, "displaced": 0, "halted": False, "ahead_s": 0.0, "current_bytes": 1 << 30,
        "noncurrent_bytes": 0,
        "unshown": 0, "roles": [], "path": "/srv/east/src", "disowned": False, "open": False,
        "wider_than": {},
        "leaving": [],
    }  # fmt: skip
    return {**good, **more}  # type: ignore[no-any-return]


def facts(**more: Any) -> Facts:
    good: Any = {
        "said": {"running": True, "pid": 7, "ready": True, "events_lost": 0, "stuck": [], "buckets": {}},
        "machine": {
            "uid": 0,
            "gid": 0,
            "capabilities": list(CAPABILITIES.values()),
            "limits": {"max_user_watches": 100_000, "max_user_instances": 128, "max_queued_events": 16384},
        },
        "regions": [region()], "services": [], "mounted_rw": ["east"], "buckets": [bucket()], "tiers": [],
        "journal": "",
        "rescan_s": 3600, "state": "/var/lib/fsrepl", "state_free": 1 << 30,
    }  # fmt: skip
    return {**good, **more}  # type: ignore[no-any-return]


def limits(**more: int) -> dict[str, Any]:
    machine = dict(facts()["machine"])
    return {"machine": {**machine, "limits": {**facts()["machine"]["limits"], **more}}}


def said(**more: Any) -> dict[str, Any]:
    return {"said": {**facts()["said"], **more}}


def live_facts(**more: Any) -> dict[str, Any]:
    """The daemon's own data about the bucket."""
    return said(buckets={"east/src": more})


def wrong(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level is not Level.OK]


@pytest.mark.parametrize(
    ("more", "room"),
    [
        ({"block_bytes": 1024}, "about 1 KiB for all of a file's attributes"),
        ({"block_bytes": 4096}, "about 4 KiB for all of a file's attributes"),
        ({"block_bytes": 0}, "user attributes"),
        ({"fstype": "xfs"}, "64 KB for each attribute"),
    ],
)
def test_the_room_for_attributes_is_that_of_this_filesystem(more: dict[str, Any], room: str) -> None:
    """Section 2: ext4 has one block for attributes, of 1 KiB where the filesystem was made on a small device."""
    (found,) = (each for each in findings(facts(regions=[region(**more)])) if each.area == "attributes")
    assert found.what == f"{room}; no version has a sidecar"


def test_all_is_well() -> None:
    """Section 5: checks that pass are listed too, and nothing is to be done."""
    found = findings(facts())
    assert wrong(found) == []
    areas = {finding.area for finding in found}
    assert areas == {
        "daemon",
        "watches",
        "queue",
        "rights",
        "region",
        "attributes",
        "space",
        "sharing",
        "bucket",
        "journal",
    }


@pytest.mark.parametrize(
    ("more", "level", "area", "what", "do"),
    [
        (said(running=False), "warning", "daemon", "not running", "fsrepl daemon"),
        (said(trouble="it did not answer"), "error", "daemon", "it did not answer", "log"),
        (said(stuck=["east"]), "error", "daemon", "hangs", "disk"),
        # P3: needed and allowed, with the line to type
        (limits(max_user_watches=9), "warning", "watches", "10 watches are needed", ".max_user_watches=524288"),
        (limits(max_user_watches=12), "warning", "watches", "all programs of a user share", "sysctl"),
        (live_facts(polled=["a", "b"]), "warning", "watches", "2 directories are polled", "restart"),
        (limits(max_user_instances=0), "error", "watches", "of 0 that a user may have", "max_user_instances=128"),
        (limits(max_queued_events=1024), "warning", "queue", "is 1024", "fs.inotify.max_queued_events=65536"),
        (said(events_lost=3), "warning", "queue", "lost 3 times", "fs.inotify.max_queued_events=65536"),
        # P5: network filesystems
        ({"regions": [region(fstype="nfs4")]}, "warning", "region", "other hosts", "rescan_s"),
        ({"regions": [region(fstype="fuse.sshfs")]}, "warning", "region", "every 3600 s", "rescan_s"),
        ({"regions": [region(trouble="no answer in 5 s", silent=True)]}, "error", "region", "no answer", "fsfreeze -u"),
        ({"regions": [region(trouble="region east is offline")]}, "error", "region", "is offline", "--replace"),
        # the service's own hardening, or the filesystem itself
        (
            {"regions": [region(errno=errno.EROFS)]},
            "error", "region", "denies it", "`systemctl edit fsrepl`, and write\n[Service]\nReadWritePaths=/srv/east\n",
        ),
        (
            {"regions": [region(errno=errno.EROFS)], "mounted_rw": []},
            "error", "region", "read-only filesystem (/srv)", "remount,rw /srv",
        ),
        ({"regions": [region(errno=errno.EACCES)]}, "error", "region", "permission denied", "uid 0"),
        ({"regions": [region(errno=errno.ENOSPC)]}, "error", "region", "is full", "remove"),
        ({"regions": [region(attributes=False)]}, "error", "attributes", "has no user attributes", "user_xattr"),
        ({"regions": [region(free=4 << 30)]}, "error", "space", "capture waits", "keep_free"),
        ({"regions": [region(free=9 << 30)]}, "warning", "space", "9.0 GiB of 100.0 GiB are free", "make room"),
        ({"regions": [region(inodes_free=0)]}, "error", "space", "0 of 1000 inodes", "remove"),
        ({"regions": [region(inodes_free=9)]}, "warning", "space", "9 of 1000 inodes", "remove"),
        # P26: the journal's own disk
        ({"state_free": 4096}, "error", "space", "/var/lib/fsrepl: the journal cannot be written", "by itself"),
        ({"state_free": 9 << 20}, "warning", "space", "9.0 MiB are free for the state", "make room"),
        ({"buckets": [bucket(trouble="rules.json cannot be read")]}, "error", "bucket", "rules.json", "by itself"),
        ({"buckets": [bucket(halted=True)]}, "warning", "bucket", "HALTED", "fsrepl ack east/src"),
        ({"buckets": [bucket(displaced=2)]}, "warning", "bucket", "2 files", "log"),
        ({"buckets": [bucket(unreadable=["secret"])]}, "warning", "bucket", "secret cannot be read", "read it"),
        ({"buckets": [bucket(ahead_s=7200.0)]}, "warning", "clock", "2.0 h behind", "clock"),
        ({"buckets": [bucket(roles=["role r is missing"])]}, "warning", "role", "role r is missing", "role create"),
        ({"buckets": [bucket(unshown=3)], **said(running=False)}, "warning", "view", "3 files", "start the daemon"),
        (live_facts(paused="capture waits: 3 MiB are free"), "error", "bucket", "capture waits", "make room"),
        (live_facts(mounts=["m"]), "warning", "bucket", "m is another mount", "a separate bucket"),
        (live_facts(unreadable={"k": "permission denied"}), "warning", "bucket", "such as k", "right"),
        (live_facts(uncaptured={"k": "tier x is offline"}), "warning", "bucket", "such as k: tier x", "status --all"),
        (live_facts(lifecycle_waits="disk full"), "warning", "lifecycle", "disk full", "tried again"),
        (live_facts(conflicts={"k": "a directory"}), "warning", "view", "k cannot be shown", "move"),
        ({"journal": "file is not a database"}, "warning", "journal", "not a database", "restart"),
    ],
)  # fmt: skip
def test_what_is_wrong(more: dict[str, Any], level: str, area: str, what: str, do: str) -> None:
    """P3, P5, section 5: each fault alone leads to one finding, which names the problem and the remedy."""
    found = [f for f in wrong(findings(facts(**more))) if f.area == area]
    assert len(found) == 1, found
    assert found[0].level == level
    assert what in found[0].what
    assert do in found[0].do


def test_rights_that_are_missing() -> None:
    """Section 5: what each missing capability costs, and the line that gives them."""
    machine = {**facts()["machine"], "uid": 1000, "capabilities": ["CAP_FOWNER", "CAP_DAC_OVERRIDE", "CAP_FSETID"]}
    found = wrong(findings(facts(machine=machine)))
    assert [f.what.split()[0] for f in found if f.area == "rights"] == ["CAP_CHOWN", "CAP_LEASE"]
    assert all("AmbientCapabilities=CAP_CHOWN CAP_LEASE" in f.do for f in found if f.area == "rights")
    (folder,) = [f for f in found if f.area == "bucket"]
    assert "belongs to uid 0, and the daemon is uid 1000" in folder.what


@pytest.mark.parametrize(
    ("sharing", "reflinks", "what"),
    [
        ("auto", True, "cost no space"),
        ("auto", False, "sources are stored twice, 1.0 GiB more"),
        ("private", True, "stored twice, 1.0 GiB more"),
        ("link", False, "destroys its version"),
    ],
)
def test_what_sharing_costs(sharing: str, reflinks: bool, what: str) -> None:
    """Section 7: README and doctor state what each mode costs in space."""
    found = findings(facts(regions=[region(sharing=sharing, reflinks=reflinks)]))
    assert [f for f in found if f.area == "sharing" and what in f.what]


def test_the_worst_first() -> None:
    """Section 5: findings are sorted by severity."""
    found = findings(facts(regions=[region(free=0), region(name="west", fstype="nfs")]))
    order = [list(Level).index(finding.level) for finding in found]
    assert order == sorted(order)


def test_a_region_that_is_away_is_one_error() -> None:
    """Section 5: one cause, one error."""
    away = facts(regions=[region(trouble="region east is offline")], buckets=[bucket(trouble="region east is offline")])
    assert len(wrong(findings(away))) == 1


@pytest.mark.parametrize(
    ("lost", "why"),
    [
        ("", "its folder is not there"),
        (".fsrepl", "its .fsrepl folder is gone"),
        (".fsrepl/bucket.json", ".fsrepl/bucket.json, which says"),
        (".fsrepl/versions", "its version store, .fsrepl/versions, is gone"),
    ],
)
def test_the_command_that_adopts_a_lost_bucket_is_named(memory: Path, lost: str, why: str) -> None:
    """Section 5: the bucket does not continue by itself, and doctor names the command that restores it."""
    with World(memory) as world:
        path = world.path(lost)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        found = doctor_facts.bucket(world.engine.site, SOURCE, None, 0.0)
        (finding,) = wrong(findings(facts(buckets=[found])))
    assert finding.what.startswith(why)
    assert finding.do.startswith(f"`fsrepl bucket adopt {SOURCE}`")
    assert "by itself" not in finding.do


# -- the facts themselves


def test_facts_of_a_site(tmp_path: Path) -> None:
    """Section 5: doctor works without a daemon, on trees and journal as they are; JSON contains all findings."""
    with World(tmp_path) as world:
        world.write("a/b/k", b"content")
        world.settle()
        found = doctor_facts.facts(world.engine.site, {"running": False}, None)
        assert json.loads(json.dumps(found)) == found
        source, destination = sorted(found["buckets"], key=lambda b: b["address"])
        assert (source["address"], source["directories"], source["current_bytes"]) == (SOURCE, 3, len(b"content"))
        assert (destination["address"], destination["source"], destination["unshown"]) == (DESTINATION, False, 0)
        assert [r["errno"] for r in found["regions"]] == [0, 0]
        assert found["mounted_rw"] == ["east", "west"]
        assert world.leftovers(SOURCE) == []
        assert not [f for f in wrong(findings(found)) if f.area not in ("daemon", "rights", "space")]


def test_faults_of_a_site(tmp_path: Path) -> None:
    """Section 5: a role that lost a permission, a damaged document, a region that is away, a journal that is no
    database."""
    with World(tmp_path) as world:
        world.run("bucket.create", bucket="east/other", versioning=True)
        world.write("k", b"content")
        world.settle()
        role = next(world.settings.roles.glob("*.json"))
        role.write_text(role.read_text().replace("s3:ReplicateTags", "s3:GetObject"))
        world.path(".fsrepl/versioning.json", "east/other").write_text("{")
        (tmp_path / "west").rename(tmp_path / "away")
        world.engine.close()
        Path(world.engine.site.state, "journal.db").write_bytes(b"no database" * 1000)
        found = doctor_facts.facts(world.engine.site, {"running": False}, None)
        (tmp_path / "away").rename(tmp_path / "west")
        world.restart(without_journal=True)
        areas = {(f.area, f.where) for f in wrong(findings(found))}
        assert {("role", SOURCE), ("bucket", "east/other"), ("region", "west"), ("journal", "")} <= areas
        assert ("bucket", DESTINATION) not in areas


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone may do everything")
def test_capabilities_of_root() -> None:
    """Section 5: the rights are those of the process, whatever its user is called."""
    assert "CAP_CHOWN" in doctor_facts.machine()["capabilities"]


def test_a_mount_is_found_by_its_longest_name(tmp_path: Path) -> None:
    """Source: proc_pid_mountinfo(5), with blanks written as octal numbers."""
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 8:2 / /mnt/a\\040b ro,noatime - xfs /dev/b rw\n"
        "3 1 0:9 / /mnt/a rw shared:7 - nfs4 host:/x ro\n"
    )
    found = [doctor_facts.mount_of(path, str(table)) for path in ("/mnt/a b/c", "/mnt/a/c", "/mnt/ab")]
    assert [(m["at"], m["fstype"], m["read_only"]) for m in found if m] == [
        ("/mnt/a b", "xfs", True), ("/mnt/a", "nfs4", True), ("/", "ext4", False),
    ]  # fmt: skip


def test_doctor_lists_absolute_symlinks_that_leave_the_region(tmp_path: Path) -> None:
    """A target in another region, or outside all of them; relative targets, and those within the region, are fine."""
    with World(tmp_path, trees=True) as world:
        inside = world.path("file")
        for name, target in {"out": "/etc/hostname", "in": str(inside), "up": "../../x", "to/..": ""}.items():
            if target:
                world.link(name, target)
        world.link("back", f"{inside.parent}/../../../etc")
        world.settle()
        leaving = {
            address: doctor_facts.bucket(world.engine.site, address, None, 0.0)["leaving"]
            for address in (SOURCE, DESTINATION)
        }
        assert [each.split(" ")[0] for each in sorted(leaving[SOURCE])] == ["back", "out"]
        assert [each.split(" ")[0] for each in sorted(leaving[DESTINATION])] == ["back", "in", "out"]


def test_a_tier_that_is_away_or_nearly_full() -> None:
    """G8: an outage of what lies there; of nothing, where nothing does."""
    tier: Any = {
        "address": "east/STANDARD_IA", "path": "/mnt/hdd", "trouble": "", "free": 50, "total": 100, "versions": 3,
        "bytes": 4096, "waiting": 2,
    }  # fmt: skip

    def found(**more: object) -> Finding:
        (finding,) = [f for f in findings(facts(tiers=[{**tier, **more}])) if f.area == "tier"]
        return finding

    assert found().level is Level.OK
    assert found(free=1).level is Level.WARNING
    assert found(trouble="it is offline").level is Level.ERROR
    assert "2 wait" in found(trouble="it is offline").do
    assert found(trouble="it is offline", versions=0).level is Level.WARNING


def test_a_disk_that_runs_full_names_what_old_versions_hold() -> None:
    """Which buckets' noncurrent versions would free how much, the largest first, and how to remove them."""
    held = [bucket(noncurrent_bytes=1 << 30), bucket(address="east/other", noncurrent_bytes=3 << 30)]
    for full in ({"free": 1 << 30}, {"free": 6 << 30}, {"errno": errno.ENOSPC}):
        found = [f for f in findings(facts(regions=[region(**full)], buckets=held)) if "noncurrent" in f.do]
        assert found, full
        assert "3.0 GiB in east/other, 1.0 GiB in east/src" in found[0].do
        assert "fsrepl lifecycle preview east/other" in found[0].do
    assert all("noncurrent" not in f.do for f in findings(facts(regions=[region(free=1 << 30)])))
