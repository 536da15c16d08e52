"""Lifecycle: objects are judged from the journal, expire, and are removed for good, beside `find -mtime -delete`.

Before each step `find` removes a tree of as many equal files from the same disk. Each is over when it is on the disk.
Then the system calls alone that a step comes down to are made for as many files, one thread and one kind at a time.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from costs import Cost, cost_of, filesystem, make_tree, run, text
from daemons import Daemon, daemon

from fsrepl.model.version import Version
from fsrepl.storage.journal.database import Journal

OLD = "east/old"
DAY_S = 86400
_LOOK_S = 3.0
"""The daemon has looked by then whether there are rules."""
NO_SCRUB = '[scrub]\nevery = "0"\n'
"""The clock is moved by days, after which a tenth of all content would be read."""


def lifecycle(folder: Path, expired: int, judged: int) -> None:
    print(f"lifecycle: {expired:,} files of 4 KiB on {filesystem(folder)}")
    home = Path(tempfile.mkdtemp(prefix="fsrepl-bench-", dir=folder))
    clock, today = home / "now", int(time.time()) // DAY_S * DAY_S
    os.environ["FSREPL_CLOCK"] = str(clock)
    clock.write_text(_rfc3339(today))
    try:
        with daemon(folder, settings=NO_SCRUB) as site:
            site.fsrepl("bucket", "create", OLD, "--versioning")
            tree = make_tree(home / "tree", expired)
            run("cp", "-r", f"{tree}/.", site.path(OLD))
            site.fsrepl("wait", OLD)
            shutil.rmtree(tree)
            _expire(site, home, clock, today, expired)
            site.fsrepl("bucket", "rm", OLD, "--yes")
            site.fsrepl("bucket", "create", OLD, "--versioning")
            site.process.terminate()
            site.process.wait()
            _judge(site, home, judged, today)
    finally:
        del os.environ["FSREPL_CLOCK"]
        shutil.rmtree(home)


def _expire(site: Daemon, home: Path, clock: Path, today: int, count: int) -> None:
    """Expiration makes markers and removes the files; then NoncurrentVersionExpiration removes the versions."""
    steps = {
        "Expiration": ({"Expiration": {"Days": 1}}, 3),
        "NoncurrentVersionExpiration": ({"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}, 6),
    }
    for what, (action, days) in steps.items():
        find = _find(home, today, count)
        clock.write_text(_rfc3339(today + days * DAY_S - 3600))
        time.sleep(_LOOK_S)
        _put(site, home, action)  # new rules: the daemon's own run waits for the next midnight
        cost = cost_of(home, lambda: site.fsrepl("lifecycle", "run", OLD), site, durably=True)
        (found,) = [each for each in json.loads(site.fsrepl("status", "--json"))["buckets"] if each["bucket"] == OLD]
        if left := found["objects"] if what == "Expiration" else found["versions"]:
            raise SystemExit(f"{left} of {count} objects are left after {what}")
        site.fsrepl("lifecycle", "rm", OLD)
        time.sleep(_LOOK_S)
        print(f"  {'find -mtime -delete':27} {text(find)}")
        times = f"{cost.wall_s / find.wall_s:5.1f} times find, {cost.cpu_s / find.cpu_s:.1f} times its CPU time"
        print(f"  {what:27} {text(cost)}   {times}, {cost.cpu_s / count * 1e3:.2f} CPU ms an object")
        calls = _calls(home, count)[what]
        told = ", ".join(f"{name} {cpu_s / count * 1e6:.0f}" for name, cpu_s in calls.items())
        times = f"{sum(calls.values()) / find.cpu_s:.1f} times find's CPU time"
        print(f"  {'  its system calls alone':27} {times}; us: {told}")


def _calls(home: Path, count: int) -> Mapping[str, Mapping[str, float]]:
    """CPU seconds of the calls that no program could do without that keeps these promises, by step and call.

    A marker is complete before it has its name; a view is compared before the marker is made, and again once nobody
    can replace it. Records are as long as real ones.
    """
    top = home / "calls"
    shown, store, tmp, aside = (top / name for name in ("shown", "store", "tmp", "aside"))
    make_tree(shown, count)
    for folder in (tmp, aside, *(store / each.name for each in sorted(shown.iterdir()))):
        folder.mkdir(parents=True)
    opened: dict[str, tuple[int, int]] = {
        each.name: (os.open(each, os.O_RDONLY), os.open(store / each.name, os.O_RDONLY)) for each in shown.iterdir()
    }
    hidden, out = os.open(tmp, os.O_RDONLY), os.open(aside, os.O_RDONLY)
    files = [(*opened[file.parent.name], file.name) for file in sorted(shown.glob("*/*"))]

    def stage(number: int, record_bytes: int, content: bytes = b"") -> None:
        fd = os.open(f"{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=hidden)
        os.setxattr(fd, "user.fsrepl.record", b"%0*d" % (record_bytes, number))
        if content:
            os.write(fd, content)
        os.close(fd)

    def look(at: int, name: str, *, record: bool = False) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
        if record:
            os.getxattr(fd, "user.fsrepl.record")
        else:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            os.fstat(fd)
        os.close(fd)

    def cpu_s(act: Callable[[int, int, int, str], object]) -> float:
        began_s = time.process_time()
        for number, file in enumerate(files):
            act(number, *file)
        took_s = time.process_time() - began_s
        os.sync()
        return took_s

    cpu_s(lambda number, view, at, name: stage(number, 260, bytes(4096)))
    cpu_s(lambda number, view, at, name: os.rename(f"{number}", f"{name};1", src_dir_fd=hidden, dst_dir_fd=at))
    found = {
        "Expiration": {
            "look at the record": cpu_s(lambda number, view, at, name: look(at, f"{name};1", record=True)),
            "and the file": cpu_s(lambda number, view, at, name: look(view, name)),
            "make a marker with its record": cpu_s(lambda number, view, at, name: stage(number, 108)),
            "name it": cpu_s(
                lambda number, view, at, name: os.rename(f"{number}", f"{name};2", src_dir_fd=hidden, dst_dir_fd=at)
            ),
            "move the file aside": cpu_s(
                lambda number, view, at, name: os.rename(name, f"{number}", src_dir_fd=view, dst_dir_fd=out)
            ),
            "look again": cpu_s(lambda number, view, at, name: look(out, f"{number}")),
            "remove it": cpu_s(lambda number, view, at, name: os.unlink(f"{number}", dir_fd=out)),
        },
        "NoncurrentVersionExpiration": {
            "look at the record": cpu_s(lambda number, view, at, name: look(at, f"{name};1", record=True)),
            "remove the version": cpu_s(lambda number, view, at, name: os.unlink(f"{name};1", dir_fd=at)),
        },
    }
    for fd in (hidden, out, *(each for pair in opened.values() for each in pair)):
        os.close(fd)
    shutil.rmtree(top)
    return found


def _find(home: Path, today: int, count: int) -> Cost:
    tree = make_tree(home / "tree", count)
    run("find", tree, "-type", "f", "-exec", "touch", "-d", f"@{today - 10 * DAY_S}", "{}", "+")
    found = cost_of(home, lambda: run("find", tree, "-type", "f", "-mtime", "+3", "-delete"), durably=True)
    shutil.rmtree(tree)
    return found


def _put(site: Daemon, home: Path, action: dict[str, object]) -> None:
    rule = {"ID": "old", "Filter": {"Prefix": "d"}, "Status": "Enabled", **action}
    (document := home / "rule.json").write_text(json.dumps({"Rules": [rule]}))
    site.fsrepl("lifecycle", "put", OLD, document)


def _judge(site: Daemon, home: Path, count: int, today: int) -> None:
    """The preview of a bucket whose journal has so many objects and whose tree has none: no file can be asked for."""
    _put(site, home, {"Expiration": {"Days": 30}, "NoncurrentVersionExpiration": {"NoncurrentDays": 30}})
    journal = Journal(str(site.root / ".fsrepl-site" / "journal.db"))
    for start in range(0, count, 10_000):
        with journal.transaction():
            rows = [_object(number, today) for number in range(start, min(count, start + 10_000))]
            journal.versions.add_shown(OLD, [(version, None) for version in rows])
    journal.close()
    command = [sys.executable, "-m", "fsrepl", "--site", str(site.root), "lifecycle", "preview", OLD, "--json"]
    before, began = os.times(), time.monotonic()
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wall_s, after = time.monotonic() - began, os.times()
    if json.loads(found)["Items"]:
        raise SystemExit("objects are due that are too young")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"  {count:,} objects judged from the journal: {wall_s:.2f} s, {cpu_s:.2f} CPU s")


def _object(number: int, today: int) -> Version:
    return Version(
        b"d%03d/f%05d" % (number // 500, number), f"{number:026}", today * 10**9, size=4096, digest=b"x" * 32
    )


def _rfc3339(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
