"""Measures large objects beside cp, rsync and BLAKE3 alone: `bash benchmarks/run --only large --folder DIR`.

    new        a file, from its rename into place to its replica, durable and verified; beside `cp` and `sync`, and
               beside the least that it comes to: a copy for the replica, and without reflinks one for the version, two
               passes of BLAKE3, one for the version's digest and one to verify, all at the same time, and `sync`
    changed    1 % of its pages in place; 10 MB inserted at the front; 10 MB appended; beside rsync with its delta, and
               without reflinks beside two copies of the file, made at the same time, and `sync`: a program that keeps
               the version before on both sides takes that. All these copies are made past the page cache
    renamed    and copied to another key
    killed     the daemon, with kill -9 at half of a new file, and started again
    verified   with a cold page cache, beside one thread of BLAKE3 over the same files

Each line has the seconds, their ratio to the peer's, the bytes that crossed, and what it cost the daemon: processor
time, and the bytes that it wrote to the disk. All of it is on the filesystem of DIR.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3
from daemons import DESTINATION, SOURCE, Daemon, daemon

MB = 1_000_000
_CHUNK = 8 << 20
_PATIENCE_S = 600.0
_LOOK_S = 0.001
_REST_S, _RESTS = 12.0, 5
"""Before each act the disk rests. A key that changes again waits for so many times as long as its last capture took,
which is not to be measured."""


class Took(NamedTuple):
    """What an act took: seconds, and of the daemon's, processor time in seconds and bytes written to the disk."""

    seconds: float
    cpu_s: float
    written: int


def large(folder: Path, size: int) -> None:
    print(f"large: a file of {size / 2**30:g} GiB on {_filesystem(folder)}")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    try:
        with daemon(folder) as site:
            _measure(site, home, size)
        with daemon(folder) as site:
            _killed(site, home, size)
    finally:
        shutil.rmtree(home)


def _measure(site: Daemon, home: Path, size: int) -> None:
    file, mirror = site.path(SOURCE, "big"), home / "mirror"
    aside, idle = _make(site.root / "east" / ".aside", size, 1), site.peak_bytes()
    # rsync first: the memory that its file gives back is new to whoever comes next, which takes longer than a copy
    whole = _timed(lambda: _run("rsync", "-a", "--fsync", aside, home / "rsynced"))
    (home / "rsynced").unlink()
    time.sleep(_REST_S)
    cp = _timed(lambda: _synced(home, "cp", "--reflink=never", aside, mirror))
    ours = _until(site, "big", lambda: aside.rename(file))
    calm_s = time.monotonic() + _RESTS * ours.seconds
    _tell("new", ours, "cp, sync", cp, _crossed(site, "big"), size)
    print(f"  {'':28} {ours.seconds / whole:5.2f} x rsync -a --fsync ({whole:.2f} s)")
    number = 1 if _has_reflinks(home) else 2
    time.sleep(_REST_S)
    least = _timed(lambda: _copied(home, *[file] * number, hashed=2))
    print(f"  {'':28} {ours.seconds / least:5.2f} x copies ({number}) and hashes (2) at once, sync ({least:.2f} s)")

    for what, new_bytes, act in (
        ("1 % of the pages changed", size // 100, _change),
        ("10 MB inserted at the front", 10 * MB, _insert),
        ("10 MB appended", 10 * MB, _append),
    ):
        ours = _until(site, "big", lambda act=act: act(file), calm_s)  # type: ignore[misc]
        calm_s = time.monotonic() + _RESTS * ours.seconds
        peer = _timed(lambda: _synced(home, "rsync", "-a", "--inplace", "--no-whole-file", file, mirror))
        _tell(what, ours, "rsync --inplace, sync", peer, _crossed(site, "big"), new_bytes)
        if act is _change and not _has_reflinks(home):
            copies = _timed(lambda: _copied(home, file, mirror))
            print(f"  {'':28} {ours.seconds / copies:5.2f} x two copies, sync ({copies:.2f} s)")

    ours = _until(site, "renamed", lambda: file.rename(file.with_name("renamed")))
    _tell("renamed", ours, "", 0.0, _crossed(site, "renamed"), 0)
    ours = _until(site, "copied", lambda: _run("cp", file.with_name("renamed"), file.with_name("copied")))
    _tell("copied to another key", ours, "", 0.0, _crossed(site, "copied"), 0)
    site.fsrepl("wait")
    print(f"  {'memory of the daemon':28} at most {site.peak_bytes() / 2**20:.0f} MiB, {idle / 2**20:.0f} MiB before")
    _verified(site)


def _verified(site: Daemon) -> None:
    stored = [p for bucket in (SOURCE, DESTINATION) for p in site.path(bucket, ".fsrepl/versions").iterdir()]
    total = sum(path.stat().st_size for path in stored)
    _drop(stored)

    def hash_all() -> None:
        for path in stored:
            blake3(max_threads=1).update_mmap(path)

    peer = _timed(hash_all)
    _drop(stored)
    ours = _timed(lambda: site.fsrepl("verify", SOURCE))
    rates = f"{total / ours / MB:6.0f} MB/s   {peer / ours:5.2f} x one thread of BLAKE3 ({total / peer / MB:.0f} MB/s)"
    print(f"  {'verify, cold':28} {ours:6.2f} s   {rates}   in the cache afterwards: {_cached(stored) / MB:.0f} MB")


def _killed(site: Daemon, home: Path, size: int) -> None:
    file = site.path(SOURCE, "big")
    _make(site.root / "east" / ".aside", size, 2).rename(file)
    while not any(t["destination"] == DESTINATION and int(t["bytes_done"]) >= size / 2 for t in _transfers(site)):
        time.sleep(_LOOK_S)
    site.process.kill()
    site.process.wait()
    if site.path(DESTINATION, "big").exists():
        print(f"  {'killed at half':28} not measured: it was complete before that; a larger --size takes longer")
        return
    staged = sum(
        p.stat().st_blocks * 512 for p in site.path(DESTINATION, ".fsrepl/tmp").glob("[el]a*.*")
    )  # early, large
    ours = _until(site, "big", site.start)
    crossed = _crossed(site, "big")
    print(
        f"  {'killed at half':28} {ours.seconds:6.2f} s   {crossed / size:.0%} of it crossed afterwards "
        f"({staged / size:.0%} was reserved or written)"
    )


def _transfers(site: Daemon) -> list[dict[str, Any]]:
    return list(json.loads(site.fsrepl("status", "--json"))["transfers"])


# -- what is done to the file


def _make(path: Path, size: int, seed: int) -> Path:
    with path.open("wb") as file:
        for number in range(0, size, _CHUNK):
            file.write(random.Random(seed * size + number).randbytes(min(_CHUNK, size - number)))
        os.fsync(file.fileno())
    return path


def _change(path: Path) -> None:
    """Scattered pages, as a database or a disk image is changed."""
    pages = path.stat().st_size // 4096
    with path.open("r+b") as file:
        for page in sorted(random.Random(3).sample(range(pages), pages // 100)):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def _insert(path: Path) -> None:
    aside = path.parent.parent / ".aside"
    with aside.open("wb") as new, path.open("rb") as old:
        new.write(os.urandom(10 * MB))
        shutil.copyfileobj(old, new, _CHUNK)
    aside.rename(path)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(os.urandom(10 * MB))


# -- times and bytes


def _until(site: Daemon, key: str, act: Callable[[], object], calm_s: float = 0.0) -> Took:
    """From the end of an act to the replica that it leads to. A replica is shown once it is durable and verified.
    calm_s: the act is not begun before this monotonic time."""
    replica = site.path(DESTINATION, key)
    time.sleep(max(_REST_S, calm_s - time.monotonic()))
    before = _identity(replica)
    act()
    began, cpu_s, written = time.monotonic(), site.cpu_s(), site.written_bytes()
    while _identity(replica) in (None, before):
        if time.monotonic() > began + _PATIENCE_S:
            raise SystemExit(f"{key} did not arrive within {_PATIENCE_S} s")
        time.sleep(_LOOK_S)
    took = time.monotonic() - began
    found = Took(took, site.cpu_s() - cpu_s, site.written_bytes() - written)
    site.fsrepl("wait")
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _crossed(site: Daemon, key: str) -> int:
    document = json.loads(site.fsrepl("head", f"{SOURCE}/{key}", "--json"))
    return int(document["Deliveries"][DESTINATION]["CrossedBytes"])


def _tell(what: str, ours: Took, peer: str, peers: float, crossed: int, new_bytes: int) -> None:
    ratio = f"{ours.seconds / peers:5.2f} x {peer} ({peers:.2f} s)" if peer else ""
    share = f", {crossed / new_bytes:.2f} x the new ones" if new_bytes else ""
    cost = f"{ours.cpu_s:5.2f} s of CPU, {ours.written / MB:7.1f} MB written"
    print(f"  {what:28} {ours.seconds:6.2f} s   {crossed / MB:7.1f} MB crossed{share}   {cost}   {ratio}", flush=True)


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _copied(folder: Path, *files: Path, hashed: int = 0) -> None:
    """Copy files past the page cache, which takes less than `cp`, and hash the first of them so many times, all at the
    same time, and sync; the time to remove the copies again is small beside it."""
    copies = [folder / f"copy-{number}" for number in range(len(files))]
    how = ["bs=2M", "oflag=direct", "conv=fsync", "status=none"]
    under_way = [
        subprocess.Popen(["dd", f"if={file}", f"of={copy}", *how]) for file, copy in zip(files, copies, strict=True)
    ]
    with ThreadPoolExecutor() as hashing:
        passes = [hashing.submit(blake3(max_threads=1).update_mmap, files[0]) for _ in range(hashed)]
    for each in passes:
        each.result()
    if sum(each.wait() for each in under_way):
        raise SystemExit("dd failed")
    _run("sync", "-f", folder)
    for copy in copies:
        copy.unlink()


def _has_reflinks(folder: Path) -> bool:
    probe = [folder / "probe", folder / "probe-clone"]
    probe[0].write_bytes(bytes(1 << 16))
    try:
        return not subprocess.run(["cp", "--reflink=always", *probe], stderr=subprocess.DEVNULL).returncode
    finally:
        for each in probe:
            each.unlink(missing_ok=True)


def _run(*command: object) -> None:
    subprocess.run([*map(str, command)], check=True)


def _synced(folder: Path, *command: object) -> None:
    _run(*command)
    _run("sync", "-f", folder)


def _drop(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _cached(paths: list[Path]) -> int:
    """Bytes of files in the page cache. Source: fincore(1)."""
    said = subprocess.run(
        ["fincore", "--bytes", "--noheadings", "--output", "RES", *map(str, paths)], capture_output=True, text=True
    )
    return sum(map(int, said.stdout.split()))


def _filesystem(folder: Path) -> str:
    return subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip()
