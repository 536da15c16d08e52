"""Measures a daemon of this checkout, on this machine's own filesystem: figures to compare within one run.

    latency   200 files at 20 a second, from a rename into place and from a close, to the complete replica
    burst     20,000 files of 4 KiB, dropped with `cp -r`, then moved with their directory, then removed: each until
              `fsrepl wait` returns, beside `rsync -a` of the same, and lsyncd and Syncthing where they are installed;
              with what is written to the disk
    fair      files of a quiet bucket, 10 a second, beside a burst of 100,000 in another bucket of the same region
    rest      100,000 objects: a minute without anything to do, starts after SIGTERM and kill -9, commands
    flat      10,000 and 160,000 names in one directory
    trees     20,000 files of 4 KiB in 2,000 directories, dropped with `cp -r`: tree buckets beside plain ones, in turns
    calls     the system calls alone that the burst comes down to, in one thread: what no program could do without
    lifecycle 1,000,000 objects are judged; 100,000 expire, and their versions are removed, beside `find -mtime -delete`
    large     a file of 2 GiB: new, changed, renamed, interrupted, verified (only when it is asked for: see large.py)
    ssh       a region on another machine: the files of the burst and a large one, beside `rsync -a` over the same sshd
              behind a line with a delay (only when it is asked for: see over_ssh.py)
    s3        a bucket of an S3 service: a quarter of the burst's files and a large one, beside rclone and the AWS CLI
              (only when it is asked for: see to_s3.py)
    undelete  the files of the burst are removed at once, held, and brought back by `fsrepl undelete` (only when it is
              asked for)
    console   the console's pages at 1,000,000 objects (only when it is asked for: see console.py)
    million   a million empty files in one bucket with five destinations, three of them away at first, then a million
              names in one directory: memory, descriptors, threads, the journal, starts after a crash (only when it is
              asked for: see million.py)
    arrivals  `rsync -a`, `tar x`, `git clone` and `pip install --target` into a bucket: is all there, and nothing else?

Whatever else the machine does is in the figures: quote ratios, and say what was run.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from console import console
from costs import Cost, cost_of, filesystem, make_tree, run, text, timed
from daemons import DESTINATION, SOURCE, Daemon, daemon
from fair import fair
from large import large
from lifecycle import lifecycle
from million import STEPS, million
from over_ssh import over_ssh
from peers import PEERS, Peer
from rest import flat, rest
from to_s3 import to_s3
from undelete import undelete

from fsrepl.settings import Capture, kinds

RATE_HZ = 20
LOOK_S = 0.0002
PATIENCE_S = 30.0
TEMPORARY = Capture().temporary


# -- latency


def latency(folder: Path, count: int) -> None:
    print(f"latency: {count} files of 4 KiB at {RATE_HZ} a second, to the complete replica")
    for what, drop in (("rename", _by_rename), ("close", _by_close)):
        with daemon(folder) as site:
            times = sorted(_one(site, f"{what}-{i}", drop) for i in range(count))
        p50, p99 = statistics.median(times), times[int(len(times) * 0.99) - 1]
        print(f"  from a {what:7} p50 {p50 * 1e3:6.1f} ms   p99 {p99 * 1e3:6.1f} ms")


def _by_rename(site: Daemon, name: str) -> float:
    aside = site.root / "east" / f".{name}"
    aside.write_bytes(os.urandom(4096))
    began = time.monotonic()
    aside.rename(site.path(SOURCE, name))
    return began


def _by_close(site: Daemon, name: str) -> float:
    with site.path(SOURCE, name).open("wb") as file:
        file.write(os.urandom(4096))
    return time.monotonic()


def _one(site: Daemon, name: str, drop: Callable[[Daemon, str], float]) -> float:
    began = drop(site, name)
    replica = site.path(DESTINATION, name)
    while not replica.exists():
        if time.monotonic() > began + PATIENCE_S:
            raise SystemExit(f"{name} did not arrive within {PATIENCE_S} s")
        time.sleep(LOOK_S)
    took = time.monotonic() - began
    time.sleep(max(0.0, 1 / RATE_HZ - took))
    return took


# -- a burst


@dataclass(frozen=True, slots=True)
class Row:
    """What one program took for one act: `cp -r` of the tree, `mv` of its directory, `rm -r` of it."""

    program: str
    act: str
    cost: Cost


ACTS = ("cp -r", "mv", "rm -r")
YARDSTICK = "rsync -a"


def burst(folder: Path, count: int) -> list[Row]:
    print(f"burst: {count:,} files of 4 KiB on {filesystem(folder)}: each act until all of it is on the other side")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    rows: list[Row] = []

    def note(program: str, act: str, cost: Cost) -> None:
        rows.append(Row(program, act, cost))

    try:
        tree = make_tree(home / "tree" / "all", count).parent
        note(
            "rsync -a --fsync",
            "cp -r",
            cost_of(home, lambda: run("rsync", "-a", "--fsync", f"{tree}/", home / "synced")),
        )
        note(YARDSTICK, "cp -r", cost_of(home, lambda: run("rsync", "-a", f"{tree}/", home / "copy")))
        with daemon(folder) as site:
            source = site.path(SOURCE)
            note("fsrepl", "cp -r", cost_of(home, lambda: run("cp", "-r", f"{tree}/.", source), site))
            peak = site.peak_bytes()
            note("fsrepl", "mv", cost_of(home, lambda: run("mv", source / "all", source / "moved"), site))
            note("fsrepl", "rm -r", cost_of(home, lambda: run("rm", "-r", source / "moved"), site))
        for peer in filter(lambda each: each.is_installed(), PEERS):
            for act, cost in _of_peer(home, peer, tree, count):
                note(peer.name, act, cost)
        for act, change in (
            ("mv", lambda: (tree / "all").rename(tree / "moved")),
            ("rm -r", lambda: shutil.rmtree(tree / "moved")),
        ):
            change()
            note(YARDSTICK, act, cost_of(home, lambda: run("rsync", "-a", "--delete", f"{tree}/", home / "copy")))
    finally:
        shutil.rmtree(home)
    _print_table(rows)
    print(f"  fsrepl: peak {peak / 2**20:.0f} MiB resident in the burst")
    return rows


PAIRS = 3
FILES_IN_EACH = 10


def trees(folder: Path, count: int) -> None:
    """A tree bucket has an object more for each directory. Pairs in turns, since other load comes and goes."""
    print(f"trees: {count:,} files of 4 KiB in {count // FILES_IN_EACH:,} directories on {filesystem(folder)}")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    costs: dict[bool, list[Cost]] = {False: [], True: []}
    try:
        tree = make_tree(home / "tree", count, FILES_IN_EACH)
        for number in range(PAIRS):
            for on in (False, True) if number % 2 else (True, False):
                with daemon(folder, trees=on) as site:
                    source = site.path(SOURCE)
                    costs[on].append(cost_of(home, lambda to=source: run("cp", "-r", f"{tree}/.", to), site))
                    print(f"  {'tree buckets' if on else 'plain buckets':13} {text(costs[on][-1])}")
    finally:
        shutil.rmtree(home)
    wall, cpu = (
        statistics.median(read(with_) / read(without) for with_, without in zip(costs[True], costs[False], strict=True))
        for read in (lambda cost: cost.wall_s, lambda cost: cost.cpu_s)
    )
    print(f"  tree buckets take {wall:.2f} times the wall time and {cpu:.2f} times the CPU time (medians of pairs)")


def _of_peer(home: Path, kind: type[Peer], tree: Path, count: int) -> Iterator[tuple[str, Cost]]:
    with kind(home / kind.name) as peer:
        source = peer.source
        for act, command, files in (
            ("cp -r", ("cp", "-r", f"{tree}/.", source), count),
            ("mv", ("mv", source / "all", source / "moved"), count),
            ("rm -r", ("rm", "-r", source / "moved"), 0),
        ):

            def do(command: Sequence[object] = command, files: int = files, act: str = act) -> None:
                run(*command)
                if act == "mv":
                    while (peer.destination / "all").exists():
                        time.sleep(LOOK_S)
                peer.wait_for(files)

            yield act, cost_of(home, do, peer)


def _print_table(rows: Sequence[Row]) -> None:
    for act in ACTS:
        some = sorted((row for row in rows if row.act == act), key=lambda row: row.cost.wall_s)
        yardstick_s = next(row.cost.wall_s for row in some if row.program == YARDSTICK)
        for row in some:
            print(f"  {act:6} {row.program:17} {text(row.cost)}   {row.cost.wall_s / yardstick_s:6.1f} x {YARDSTICK}")


def plot(rows: Sequence[Row], where: Path, title: str) -> None:
    """Draw what each act took, in times of rsync -a, as bars on a logarithmic axis. Needs the extra `benchmarks`."""
    import matplotlib  # a part of the extra alone

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(ACTS), figsize=(12, 3), layout="constrained")
    for act, at in zip(ACTS, axes, strict=True):
        some = sorted((row for row in rows if row.act == act), key=lambda row: -row.cost.wall_s)
        yardstick_s = next(row.cost.wall_s for row in some if row.program == YARDSTICK)
        times = [row.cost.wall_s / yardstick_s for row in some]
        bars = at.barh(
            [row.program for row in some], times, color=["C1" if r.program == "fsrepl" else "C0" for r in some]
        )
        at.bar_label(bars, [f"{each:.1f}" for each in times], padding=2)
        at.set(title=act, xscale="log", xlabel=f"times {YARDSTICK}", xlim=(min(times) / 2, max(times) * 3))
    figure.suptitle(title)
    figure.savefig(where)


# -- the system calls alone


def calls(folder: Path, count: int) -> None:
    print(f"calls: {count:,} files of 4 KiB, stored, replicated and marked by system calls alone; beside `rsync -a`")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    try:
        tree = make_tree(home / "tree", count, in_each=count)
        os.sync()
        rsync_s = timed(["rsync", "-a", f"{tree}/", str(home / "copy")])
        os.sync()
        began = time.monotonic()
        _call_each(home, sorted((tree / "d000").iterdir()))
        took_s = time.monotonic() - began
    finally:
        shutil.rmtree(home)
    print(f"  rsync -a       {rsync_s:6.2f} s")
    print(f"  system calls   {took_s:6.2f} s   {took_s / rsync_s:.1f} times rsync -a")


def _call_each(home: Path, files: Sequence[Path], batch: int = 512) -> None:
    """What is done for each file: read, stored with a record, copied with one, shown, and marked, a batch at a time."""
    tmp, store, hidden, shown = (home / name for name in ("tmp", "store", "hidden", "shown"))
    for folder in (tmp, store, hidden, shown):
        folder.mkdir()
    said = {"version-id": b"0" * 26, "replication-status": b"COMPLETED"}
    stored = {"record": b"0" * 290, "deliveries": b"0" * 48}
    replica = said | {"record": b"0" * 310}
    settled = {"deliveries": b"0" * 50}
    for start in range(0, len(files), batch):
        some = files[start : start + batch]
        for file in some:
            data = file.read_bytes()
            for name, attributes in ((file.name, stored), (file.name + ";", replica)):
                with (tmp / name).open("xb", buffering=0) as out:
                    out.write(data)
                    _queue_changed(out.fileno(), attributes)
        _sync(tmp)
        for file in some:
            (tmp / file.name).rename(store / file.name)
            (tmp / (file.name + ";")).rename(hidden / file.name)
            os.link(hidden / file.name, shown / file.name)
        _sync(tmp)
        for file in some:
            for path, attributes in ((store / file.name, settled), (file, said)):
                with path.open("rb", buffering=0) as out:
                    _queue_changed(out.fileno(), attributes)


def _queue_changed(fd: int, attributes: Mapping[str, bytes]) -> None:
    for name, value in attributes.items():
        os.setxattr(fd, f"user.fsrepl.{name}", value)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    ctypes.CDLL(None).syncfs(fd)
    os.close(fd)


# -- real programs


def arrivals(folder: Path) -> None:
    print("arrivals: real programs into a bucket; after `fsrepl wait`, `fsrepl verify`")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    try:
        tree = home / "tree"
        shutil.copytree(Path(os.__file__).parent, tree, ignore=shutil.ignore_patterns("site-packages", "__pycache__"))
        archive = shutil.make_archive(str(home / "tree"), "tar", tree)
        repository = home / "repository"
        shutil.copytree(tree / "asyncio", repository)
        git = ["git", "-C", str(repository), "-c", "user.name=b", "-c", "user.email=b@localhost"]
        for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a tree"]):
            subprocess.run([*git, *arguments], check=True)
        for what, command in (
            ("rsync -a", lambda to: ["rsync", "-a", f"{tree}/", to]),
            ("tar x", lambda to: ["tar", "-x", "-f", archive, "-C", to]),
            ("git clone", lambda to: ["git", "clone", "-q", str(repository), f"{to}/clone"]),
            (
                "pip install",
                lambda to: [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", to, "."],
            ),
        ):
            with daemon(folder) as site:
                _arrive(site, what, command(str(site.path(SOURCE))))
    finally:
        shutil.rmtree(home)


def _arrive(site: Daemon, what: str, command: list[str]) -> None:
    subprocess.run(command, check=True)
    site.fsrepl("wait")
    checked = json.loads(site.fsrepl("verify", SOURCE, "--json"))
    listed = json.loads(site.fsrepl("ls", SOURCE, "--versions", "--json"))
    names = [version["Key"].rpartition("/")[2] for version in listed["Versions"]]
    temporary = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in TEMPORARY)]
    top = site.path(SOURCE)
    files = sum(p.is_file() and not p.is_symlink() and p.relative_to(top).parts[0] != ".fsrepl" for p in top.rglob("*"))
    lost = json.loads(site.fsrepl("status", "--json"))["daemon"]["events_lost"]
    print(
        f"  {what:12} {files:6,} files   {len(listed['Versions']):6,} versions   {len(temporary)} of temporary names   "
        f"{len(checked['Differences'])} differences   {lost} overflows"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = ("latency", "burst", "fair", "rest", "flat", "trees", "calls", "lifecycle", "arrivals")
    asked_for = ("large", "million", "ssh", "s3", "console", "undelete")
    parser.add_argument("--only", choices=(*modes, *asked_for))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure")
    parser.add_argument("--files", type=int, default=20_000, help="of the burst")
    parser.add_argument("--times", type=int, default=200, help="of each latency")
    parser.add_argument(
        "--steps", nargs="+", choices=STEPS, metavar="STEP", help=f"of million: {', '.join(STEPS)}; without it all"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the burst, as SVG or PNG by the file's name")
    parser.add_argument("--size", type=kinds.size, default=2 << 30, help='of the large file, such as "512MiB"')
    parser.add_argument("--delay", type=int, default=50, help="of the line to the other machine and back, in ms")
    options = parser.parse_args()
    if options.only in (None, "latency"):
        latency(options.folder, options.times)
    if options.only in (None, "calls"):  # before the burst: ext4 makes files slowly for a while after many are removed
        calls(options.folder, options.files)
    if options.only in (None, "burst"):
        rows = burst(options.folder, options.files)
        if options.plot:
            plot(
                rows,
                options.plot,
                f"{options.files:,} files of 4 KiB on {filesystem(options.folder)}, two sides of one disk",
            )
    if options.only in (None, "fair"):
        fair(options.folder, 5 * options.files)
    if options.only in (None, "rest"):
        rest(options.folder, 5 * options.files)
    if options.only in (None, "flat"):
        flat(options.folder, (options.files // 2, 8 * options.files))
    if options.only in (None, "trees"):
        trees(options.folder, options.files)
    if options.only in (None, "lifecycle"):
        lifecycle(options.folder, 5 * options.files, 50 * options.files)
    if options.only in (None, "arrivals"):
        arrivals(options.folder)
    if options.only == "large":
        large(options.folder, options.size)
    if options.only == "million":
        million(options.folder, 50 * options.files, 5, options.steps or STEPS)
    if options.only == "ssh":
        over_ssh(options.folder, options.files, options.size, options.delay)
    if options.only == "console":
        console(options.folder, 50 * options.files)
    if options.only == "undelete":
        undelete(options.folder, options.files)
    if options.only == "s3":
        to_s3(options.folder, options.files // 4, options.size)


if __name__ == "__main__":
    main()
