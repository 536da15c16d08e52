"""Lifecycle: objects are judged from the journal, expire, and are removed for good, beside `find -mtime -delete`.

Before each step `find` removes a tree of as many equal files from the same disk. Each is over when it is on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
