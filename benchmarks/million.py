"""A million objects: memory, descriptors and threads of the daemon, the size of its journal, and starts after a crash.

One bucket gets a million empty files in directories of 1,000, while three of its five destinations are away; the daemon
is killed and started again; the destinations return; all is deleted at once, and held; then a million names come into
one directory. Files are empty, and the store shares them (`sharing = "link"`), so that a disk of 20 GiB with 9 million
inodes is enough (`mkfs.ext4 -I 1024 -N 9000000`): what is measured does not depend on content.

Each step can be asked for alone, since all of them take hours: what it builds on (the objects, for all but `flat`) is
made before.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from costs import filesystem
from daemons import SOURCE, Daemon

from fsrepl.storage.journal.database import Journal

IN_EACH = 1_000
NEAR, AWAY = ("near-1", "near-2"), ("away-1", "away-2", "away-3")
FLAT = "east/flat"
STEPS = ("crash", "commands", "return", "delete", "flat")
"""What can be asked for. All but `flat` need the objects, which are captured first."""
_LOOK_S, _LOOK_SHARE = 0.5, 20
"""The shortest pause between two looks, and how many times as long as the last one it takes at least."""
_SAMPLE_S = 1.0
_SAYS_S = 60.0
"""How often it is said how far a step is."""
_ENDS_S = 4 * 3600.0


def million(folder: Path, count: int, far: int, steps: Collection[str] = STEPS) -> None:
    """far: how many of the five destinations there are; the last three of them are away at first. steps: of STEPS."""
    near, away = NEAR[: max(0, far - len(AWAY))], AWAY[: min(far, len(AWAY))]
    print(f"million: {count:,} empty files on {filesystem(folder)}; {far} destinations, {len(away)} away at first")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    try:
        site = _site(home, near, away)
        try:
            if set(steps) - {"flat"}:
                _drop(site, home, count, near, away)
            if "crash" in steps:
                _crash(site)
            if "commands" in steps:
                commands(site)
            if "return" in steps:
                _return(site, count, away)
            if "delete" in steps:
                _delete(site)
            if "flat" in steps:
                _flat(site, home, count)
        finally:
            site.stop()
    finally:
        shutil.rmtree(home)


def _site(home: Path, near: tuple[str, ...], away: tuple[str, ...]) -> Daemon:
    site = Daemon(home, settings="\n[capture]\nkeep_free = 0\n")
    path = site.root / "fsrepl.toml"
    path.write_text(path.read_text().replace("[regions.east]\n", '[regions.east]\nsharing = "link"\n'))
    site.process.send_signal(signal.SIGHUP)
    site.fsrepl("replication", "rm", SOURCE)
    for number, name in enumerate((*near, *away)):
        site.fsrepl("region", "add", f"{name}={home / 'site' / name}")
        site.fsrepl("bucket", "create", f"{name}/dst", "--versioning")
        site.fsrepl("replication", "enable", SOURCE, f"{name}/dst", *(["--add"] if number else []))
    site.fsrepl("bucket", "create", FLAT, "--versioning")
    return site


def make(top: Path, count: int, in_each: int) -> None:
    """Empty files in directories of so many each."""
    top.mkdir()
    for start in range(0, count, in_each):
        at = top / f"d{start // in_each:05}"
        at.mkdir()
        fd = os.open(at, os.O_RDONLY)
        for number in range(start, min(start + in_each, count)):
            os.close(os.open(f"f{number:07}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
        os.close(fd)


# -- the steps


def _drop(site: Daemon, home: Path, count: int, near: tuple[str, ...], away: tuple[str, ...]) -> None:
    make(tree := home / "tree", count, IN_EACH)
    for name in away:
        (site.root / name).rename(site.root / f"{name}.away")
    with measured(site, f"captured, and replicated to {len(near)}"):
        for directory in sorted(tree.iterdir()):
            directory.rename(site.path(SOURCE, directory.name))
        _await(site, count, SOURCE, count * len(away))
    tree.rmdir()


def _crash(site: Daemon) -> None:
    site.process.kill()
    site.process.wait()
    began = time.monotonic()
    site.start()
    ready_s, cpu_s = time.monotonic() - began, site.cpu_s()
    site.path(SOURCE, "after-the-crash").touch()
    began = time.monotonic()
    while not _captured(site):
        time.sleep(0.02)
    captured_s = time.monotonic() - began
    print(
        f"  after kill -9 ready in {ready_s:.1f} s, {cpu_s:.1f} CPU s, and a new file is a version {captured_s:.1f} s "
        "later"
    )
    with measured(site, "compared whole"):
        while is_scanning(site, SOURCE):
            time.sleep(_LOOK_S)


def _captured(site: Daemon) -> bool:
    return any(site.path(SOURCE, ".fsrepl/versions").glob("after-the-crash;*"))


def _return(site: Daemon, count: int, away: tuple[str, ...]) -> None:
    before = _journal_bytes(site)
    for name in away:
        (site.root / f"{name}.away").rename(site.root / name)
    with measured(site, f"replicated to the {len(away)} that return"):
        _await(site, None, SOURCE, 0)
    began = time.monotonic()
    after = _journal_bytes(site)
    while time.monotonic() - began < 60 and _journal_bytes(site) >= after:
        time.sleep(_LOOK_S)
    print(
        f"  the journal: {before / 2**20:.0f} MiB while they were away, {before / count / max(1, len(away)):.0f} bytes "
        f"a delivery that waited; {_journal_bytes(site) / 2**20:.0f} MiB in the end, with {count * len(away):,} "
        f"replicas more, {_free_bytes(site) / 2**20:.0f} MiB of it free"
    )


def commands(site: Daemon) -> None:
    """What a person or a script asks meanwhile, the start of Python included."""
    key = next(site.path(SOURCE).glob("d*/f*")).relative_to(site.path(SOURCE))
    for arguments in (
        ("status",),
        ("status", "--json"),
        ("ls", SOURCE, "--max-keys", "1000", "--json"),
        ("head", f"{SOURCE}/{key}"),
    ):
        began, before = time.monotonic(), os.times()
        site.fsrepl(*arguments)
        wall_s, after = time.monotonic() - began, os.times()
        cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"  fsrepl {' '.join(arguments):44} {wall_s:6.2f} s {cpu_s:6.2f} CPU s", flush=True)


def _delete(site: Daemon) -> None:
    """Delete all that was captured, as a mass deletion that the brake holds."""
    path = site.root / "fsrepl.toml"
    path.write_text(path.read_text().replace("delete_share = 1\n", "delete_share = 0.5\n"))
    site.process.send_signal(signal.SIGHUP)
    with measured(site, "deleted at once, and held"):
        for directory in site.path(SOURCE).glob("d*"):
            shutil.rmtree(directory)
        _await(site, int(site.path(SOURCE, "after-the-crash").exists()), SOURCE)
    print(f"  HALTED: {_bucket(site, SOURCE).get('halted')}")


def _flat(site: Daemon, home: Path, count: int) -> None:
    make(tree := home / "flat", count, count)
    with measured(site, "captured in one directory"):
        (tree / "d00000").rename(site.path(FLAT, "d"))
        _await(site, count, FLAT)
    site.process.kill()
    site.process.wait()
    began = time.monotonic()
    site.start()
    print(f"  after kill -9 ready in {time.monotonic() - began:.1f} s, {site.cpu_s():.1f} CPU s")
    with measured(site, "compared whole"):
        while is_scanning(site, FLAT):
            time.sleep(_LOOK_S)


def _await(site: Daemon, objects: int | None, bucket: str, pending: int | None = None) -> None:
    """Wait until a bucket has so many objects, and so many deliveries wait. By the journal: at a million objects
    `fsrepl status` counts much more, for seconds."""
    until_s = (said_s := time.monotonic()) + _ENDS_S
    while (began_s := time.monotonic()) < until_s:
        with contextlib.closing(Journal(str(_journal(site)), read_only=True)) as journal:
            found = journal.totals.counts(bucket).objects, journal.deliveries.count_pending(bucket, 1 << 62)
        if objects in (None, found[0]) and pending in (None, found[1]):
            return
        if began_s > said_s + _SAYS_S:
            said_s = began_s
            print(f"    {found[0]:,} objects, {found[1]:,} deliveries wait, {_now(site)}", flush=True)
        time.sleep(max(_LOOK_S, _LOOK_SHARE * (time.monotonic() - began_s)))
    raise SystemExit(f"{bucket} has not come to rest: {found}")


def is_scanning(site: Daemon, address: str) -> bool:
    return bool(site.said()["buckets"][address].get("scanning"))


def _bucket(site: Daemon, address: str) -> dict[str, object]:
    found = json.loads(site.fsrepl("status", "--json"))
    return next(each for each in found["buckets"] if each["bucket"] == address)


# -- what is measured


def _journal_bytes(site: Daemon) -> int:
    return _journal(site).stat().st_size


def _free_bytes(site: Daemon) -> int:
    """What of the journal has no rows, and will be given back where it is much. Source: SQLite, freelist_count."""
    with contextlib.closing(sqlite3.connect(f"file:{_journal(site)}?mode=ro", uri=True)) as db:
        (size,), (free,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("page_size", "freelist_count"))
    return int(size * free)


def _journal(site: Daemon) -> Path:
    return site.root / ".fsrepl-site" / "journal.db"


@dataclass(frozen=True, slots=True)
class _Use:
    """Of all processes of the daemon together. resident_bytes counts a page once for each process that has it,
    proportional_bytes once in all. Source: proc_pid_smaps(5), smaps_rollup."""

    resident_bytes: int = 0
    proportional_bytes: int = 0
    descriptors: int = 0
    threads: int = 0

    def most(self, other: _Use) -> _Use:
        return _Use(*map(max, astuple(self), astuple(other)))

    def __str__(self) -> str:
        return (
            f"{self.resident_bytes / 2**20:4.0f} MiB resident, {self.proportional_bytes / 2**20:4.0f} proportional; "
            f"{self.descriptors} descriptors, {self.threads} threads"
        )


def _now(site: Daemon) -> _Use:
    resident_kib = proportional_kib = descriptors = threads = 0
    for pid in site.processes():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            at = Path(f"/proc/{pid}")
            kib = dict(re.findall(r"^(Rss|Pss): +(\d+) kB$", (at / "smaps_rollup").read_text(), re.MULTILINE))
            resident_kib += int(kib["Rss"])
            proportional_kib += int(kib["Pss"])
            descriptors += len(os.listdir(at / "fd"))
            threads += len(os.listdir(at / "task"))
    return _Use(resident_kib * 1024, proportional_kib * 1024, descriptors, threads)


@contextlib.contextmanager
def measured(site: Daemon, what: str) -> Iterator[None]:
    """Print what a step took: seconds, CPU seconds, and the most of memory, descriptors and threads of all processes of
    the daemon together, by looks once a second."""
    most = _Use()
    end = threading.Event()

    def look() -> None:
        nonlocal most
        while not end.wait(_SAMPLE_S):
            with contextlib.suppress(OSError):
                most = most.most(_now(site))

    thread = threading.Thread(target=look)
    thread.start()
    began, cpu_s = time.monotonic(), site.cpu_s()
    try:
        yield
    finally:
        wall_s, cpu_s = time.monotonic() - began, site.cpu_s() - cpu_s
        end.set()
        thread.join()
    print(f"  {what:42} {wall_s:7.1f} s {cpu_s:7.1f} CPU s   {most.most(_now(site))}", flush=True)
