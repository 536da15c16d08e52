"""A mass deletion, held, is taken back: files a second, each of them a new version, durable, and shown again."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from costs import filesystem, make_tree, run
from daemons import SOURCE, Daemon, daemon

from fsrepl.settings import FILE

_LOOK_S = 0.2
_PATIENCE_S = 600.0


def undelete(folder: Path, count: int) -> None:
    print(f"undelete: {count:,} files of 4 KiB, removed at once and held, on {filesystem(folder)}")
    with daemon(folder) as site:
        _hold_deletions(site)
        tree = make_tree(site.root / "tree", count)
        run("cp", "-r", f"{tree}/.", site.path(SOURCE))
        site.fsrepl("wait")
        since = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        for each in tree.iterdir():
            shutil.rmtree(site.path(SOURCE, each.name))
        began, until_s = time.monotonic(), time.monotonic() + _PATIENCE_S
        while (found := _preview(site, since)) < count:
            if time.monotonic() > until_s:
                raise SystemExit(f"{found} of {count} deletions were captured within {_PATIENCE_S:.0f} s")
            time.sleep(_LOOK_S)
        print(f"  all captured and held after  {time.monotonic() - began:6.2f} s")
        began = time.monotonic()
        _preview(site, since)
        _say("preview", count, time.monotonic() - began)
        began, cpu_s = time.monotonic(), site.cpu_s()
        site.fsrepl("undelete", SOURCE, "--since", since)
        _say("undelete", count, time.monotonic() - began, site.cpu_s() - cpu_s)
        site.fsrepl("wait")
        _say("and the replicas", count, time.monotonic() - began, site.cpu_s() - cpu_s)
        subprocess.run(["diff", "-r", "--exclude=.fsrepl", tree, site.path(SOURCE)], check=True)


def _hold_deletions(site: Daemon) -> None:
    """A daemon of these benchmarks lets a whole bucket go: this one holds it, as by default."""
    site.process.terminate()
    site.process.wait()
    settings = site.root / FILE
    settings.write_text(settings.read_text().replace("delete_share = 1\n", "delete_share = 0.5\n"))
    site.start()


def _preview(site: Daemon, since: str) -> int:
    return int(json.loads(site.fsrepl("undelete", SOURCE, "--since", since, "--dry-run", "--json"))["Keys"])


def _say(what: str, count: int, took_s: float, cpu_s: float | None = None) -> None:
    print(
        f"  {what:28} {took_s:6.2f} s   {count / took_s:6,.0f} files a second"
        + (f"   {cpu_s:5.2f} CPU s" if cpu_s is not None else "")
    )
