"""A million objects: memory, descriptors and threads of the daemon, the size of its journal, and starts after a crash.

One bucket gets a million empty files in directories of 1,000, while three of its five destinations are away; the daemon
is killed and started again; the destinations return; all is deleted at once, and held; then a million names come into
one directory. Files are empty, and the store shares them (`sharing = "link"`), so that a disk of 20 GiB with 9 million
inodes is enough (`mkfs.ext4 -I 1024 -N 9000000`): what is measured does not depend on content.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from costs import filesystem
from daemons import SOURCE, Daemon

from fsrepl.storage.journal.database import Journal

IN_EACH = 1_000
NEAR, AWAY = ("near-1", "near-2"), ("away-1", "away-2", "away-3")
FLAT = "east/flat"
_LOOK_S, _LOOK_SHARE = 0.5, 5
"""The shortest pause between two looks, and how many times as long as the last one it takes at least."""
_ENDS_S = 4 * 3600.0


def million(folder: Path, count: int, far: int) -> None:
    """far: how many of the five destinations there are; the last three of them are away at first."""
    near, away = NEAR[: max(0, far - len(AWAY))], AWAY[: min(far, len(AWAY))]
    print(f"million: {count:,} empty files on {filesystem(folder)}; {far} destinations, {len(away)} away at first")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    try:
        site = _site(home, near, away)
        try:
            _drop(site, home, count, near, away)
            _crash(site, count)
            _return(site, count, away)
            _delete(site, count)
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


def _make(top: Path, count: int, in_each: int) -> None:
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
    _make(tree := home / "tree", count, IN_EACH)
    for name in away:
        (site.root / name).rename(site.root / f"{name}.away")
    with _measured(site, f"captured, and replicated to {len(near)}"):
        for directory in sorted(tree.iterdir()):
            directory.rename(site.path(SOURCE, directory.name))
        _await(site, count, SOURCE, count * len(away))
    tree.rmdir()


def _crash(site: Daemon, count: int) -> None:
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
    with _measured(site, "compared whole"):
        while _is_scanning(site, SOURCE):
            time.sleep(_LOOK_S)


def _captured(site: Daemon) -> bool:
    return any(site.path(SOURCE, ".fsrepl/versions").glob("after-the-crash;*"))


def _return(site: Daemon, count: int, away: tuple[str, ...]) -> None:
    before = _journal_bytes(site)
    for name in away:
        (site.root / f"{name}.away").rename(site.root / name)
    with _measured(site, f"replicated to the {len(away)} that return"):
        _await(site, count + 1, SOURCE, 0)
    began = time.monotonic()
    after = _journal_bytes(site)
    while time.monotonic() - began < 60 and _journal_bytes(site) >= after:
        time.sleep(_LOOK_S)
    print(
        f"  the journal: {before / 2**20:.0f} MiB while they were away, {before / count / max(1, len(away)):.0f} bytes "
        f"a delivery that waited; {_journal_bytes(site) / 2**20:.0f} MiB in the end"
    )


def _delete(site: Daemon, count: int) -> None:
    """Delete all but one file, as a mass deletion that the brake holds."""
    path = site.root / "fsrepl.toml"
    path.write_text(path.read_text().replace("delete_share = 1\n", "delete_share = 0.5\n"))
    site.process.send_signal(signal.SIGHUP)
    with _measured(site, "deleted at once, and held"):
        for directory in site.path(SOURCE).glob("d*"):
            shutil.rmtree(directory)
        _await(site, 1, SOURCE)
    print(f"  HALTED: {_bucket(site, SOURCE).get('halted')}")


def _flat(site: Daemon, home: Path, count: int) -> None:
    _make(tree := home / "flat", count, count)
    with _measured(site, "captured in one directory"):
        (tree / "d00000").rename(site.path(FLAT, "d"))
        _await(site, count, FLAT)
    site.process.kill()
    site.process.wait()
    began = time.monotonic()
    site.start()
    print(f"  after kill -9 ready in {time.monotonic() - began:.1f} s, {site.cpu_s():.1f} CPU s")
    with _measured(site, "compared whole"):
        while _is_scanning(site, FLAT):
            time.sleep(_LOOK_S)


def _await(site: Daemon, objects: int, bucket: str, pending: int | None = None) -> None:
    """Wait until a bucket has so many objects, and so many deliveries wait. By the journal: at a million objects
    `fsrepl status` counts much more, for seconds."""
    until_s = time.monotonic() + _ENDS_S
    while (began_s := time.monotonic()) < until_s:
        with contextlib.closing(Journal(str(_journal(site)), read_only=True)) as journal:
            found = journal.totals.objects(bucket)[0], journal.deliveries.count_pending(bucket, 1 << 62)
        if found == (objects, found[1] if pending is None else pending):
            return
        time.sleep(max(_LOOK_S, _LOOK_SHARE * (time.monotonic() - began_s)))
    raise SystemExit(f"{bucket} has not come to rest: {found}")


def _is_scanning(site: Daemon, address: str) -> bool:
    return bool(site.said()["buckets"][address].get("scanning"))


def _bucket(site: Daemon, address: str) -> dict[str, object]:
    found = json.loads(site.fsrepl("status", "--json"))
    return next(each for each in found["buckets"] if each["bucket"] == address)


# -- what is measured


def _journal_bytes(site: Daemon) -> int:
    return _journal(site).stat().st_size


def _journal(site: Daemon) -> Path:
    return site.root / ".fsrepl-site" / "journal.db"


@contextlib.contextmanager
def _measured(site: Daemon, what: str) -> Iterator[None]:
    """Print what a step took: seconds, the daemon's CPU seconds, and the most of memory, descriptors and threads."""
    most: dict[str, int] = {}
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.2):
            with contextlib.suppress(OSError):
                at = Path(f"/proc/{site.process.pid}")
                status = dict(line.split(":", 1) for line in (at / "status").read_text().splitlines())
                now = {
                    "KiB": sum(_resident_kib(each) for each in _processes(site.process.pid)),
                    "descriptors": len(os.listdir(at / "fd")),
                    "threads": int(status["Threads"]),
                }
                for name, value in now.items():
                    most[name] = max(most.get(name, 0), value)

    Path(f"/proc/{site.process.pid}/clear_refs").write_text("5")  # VmHWM begins anew
    thread = threading.Thread(target=look)
    thread.start()
    began, cpu_s = time.monotonic(), site.cpu_s()
    try:
        yield
    finally:
        wall_s, cpu_s = time.monotonic() - began, site.cpu_s() - cpu_s
        end.set()
        thread.join()
    print(
        f"  {what:42} {wall_s:7.1f} s {cpu_s:7.1f} CPU s   {site.peak_bytes() / 2**20:4.0f} MiB the daemon, "
        f"{most.get('KiB', 0) / 1024:4.0f} with commands; {most.get('descriptors', 0)} descriptors, "
        f"{most.get('threads', 0)} threads",
        flush=True,
    )


def _processes(daemon: int) -> list[int]:
    """The daemon, and the commands that this process runs."""
    found = [daemon]
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/self/task/{thread}/children").read_text().split())
    return list(dict.fromkeys(found))


def _resident_kib(pid: int) -> int:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
    return 0
