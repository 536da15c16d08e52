"""Replicates Python's standard library from one region to another, changes it, and shows the results.

The demo uses the command line and the directories only, as a user does. The site stays afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

SOURCE, DESTINATION = "us-east-1/library", "eu-west-1/library-copy"
CHANGED, RENAMED, DELETED = 60, 40, 30

console = Console(highlight=False)


class Site:
    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "fsrepl", "--site", str(self.root), *arguments]

    def run(self, *arguments: str, show: bool = True) -> str:
        """Run a command; show the command and its output as a terminal would."""
        if show:
            console.print(f"[bold]$ fsrepl {' '.join(arguments)}[/bold]", soft_wrap=True)
        done = subprocess.run(self.command(*arguments), stdout=subprocess.PIPE, text=True)
        if show and done.stdout:
            console.print(done.stdout.rstrip(), markup=False, soft_wrap=True)
        if done.returncode:
            raise SystemExit(f"fsrepl {' '.join(arguments)}: exit status {done.returncode}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json", show=False))

    def path(self, bucket: str, key: str = "") -> Path:
        return self.root / bucket / key

    @contextlib.contextmanager
    def daemon(self) -> Iterator[None]:
        console.print(f"[bold]$ fsrepl --site {self.root} daemon &[/bold]", soft_wrap=True)
        with (self.root / "daemon.log").open("ab") as log:
            process = subprocess.Popen(self.command("daemon"), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            while not self.json("status")["daemon"]["ready"]:
                if process.poll() is not None:
                    raise SystemExit(f"the daemon ended; {self.root}/daemon.log says why")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()


def heading(text: str) -> None:
    console.print()
    console.rule(f"[bold cyan]{text}", align="left")


def bars() -> Progress:
    return Progress(
        TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def files_of(top: Path) -> list[Path]:
    found = []
    for folder, below, names in os.walk(top):
        below[:] = [name for name in below if name not in ("site-packages", ".fsrepl")]
        found += [Path(folder, name).relative_to(top) for name in names if not Path(folder, name).is_symlink()]
    return sorted(found)


def drop(library: Path, bucket: Path) -> int:
    files = files_of(library)
    with bars() as progress:
        task = progress.add_task(f"cp -r {library.name} (drop)", total=len(files))
        for name in files:
            to = bucket / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library / name, to)
            progress.advance(task)
    return len(files)


def change(bucket: Path) -> None:
    modules = [name for name in files_of(bucket) if name.suffix == ".py" and len(name.parts) == 1]
    changed, rest = modules[:CHANGED], modules[CHANGED:]
    renamed, rest = rest[:RENAMED], rest[RENAMED:]
    deleted = rest[:DELETED]
    for name in changed:
        with (bucket / name).open("a") as file:
            file.write("# a line more\n")
    for name in renamed:
        (bucket / name).rename(bucket / f"renamed_{name}")
    for name in deleted:
        (bucket / name).unlink()
    (bucket / "json").rename(bucket / "json_moved")
    console.print(
        f"{len(changed)} files changed, {len(renamed)} and a directory renamed, {len(deleted)} deleted: "
        "echo, mv and rm, nothing else"
    )


def wait(site: Site) -> None:
    """Run `fsrepl wait`, with a bar from `fsrepl status`."""
    waiting = subprocess.Popen(site.command("--quiet", "wait"))
    with bars() as progress:
        task = progress.add_task("fsrepl wait (delivered)", total=None)
        while waiting.poll() is None:
            rules = next(b for b in site.json("status")["buckets"] if b["bucket"] == SOURCE)["rules"]
            done = sum(rule["completed"] for rule in rules)
            progress.update(task, completed=done, total=done + sum(rule["pending"] for rule in rules))
            time.sleep(0.2)
        rules = next(b for b in site.json("status")["buckets"] if b["bucket"] == SOURCE)["rules"]
        done = sum(rule["completed"] for rule in rules)
        progress.update(task, completed=done, total=done)
    if waiting.returncode:
        raise SystemExit("not everything was replicated; `fsrepl status` shows what")


def compare(site: Site) -> None:
    """Compare the two trees by SHA-256, without fsrepl."""
    hashes = []
    for bucket in (SOURCE, DESTINATION):
        top = site.path(bucket)
        hashes.append({name: hashlib.sha256((top / name).read_bytes()).digest() for name in files_of(top)})
    if hashes[0] != hashes[1]:
        raise SystemExit(f"the trees differ: {len(hashes[0])} files here, {len(hashes[1])} there")
    console.print(f"sha256 of both trees: {len(hashes[0])} files each, all the same")


def show_file(path: Path) -> None:
    console.print(f"[bold]$ getfattr -d {path}[/bold]", soft_wrap=True)
    for name in sorted(os.listxattr(path)):
        if name.startswith("user."):
            console.print(
                f'{name}="{os.getxattr(path, name).decode(errors="backslashreplace")}"', markup=False, soft_wrap=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("demo-site"), help="the site to create")
    parser.add_argument("--tree", type=Path, default=Path(sysconfig.get_path("stdlib")), help="the tree to replicate")
    options = parser.parse_args()
    if options.directory.exists():
        raise SystemExit(f"{options.directory} exists; remove it, or name another directory")
    site = Site(options.directory)

    heading("A site: two regions, a versioned bucket in each, and a rule")
    site.run("init", str(options.directory), "--region", "us-east-1", "--region", "eu-west-1")
    for bucket in (SOURCE, DESTINATION):
        site.run("bucket", "create", bucket, "--versioning")
    site.run("replication", "enable", SOURCE, DESTINATION)
    with site.daemon():
        heading(f"Drop a real tree into {SOURCE}")
        began = time.monotonic()
        count = drop(options.tree, site.path(SOURCE))
        wait(site)
        console.print(f"{count} files, dropped and durable in the other region after {time.monotonic() - began:.1f} s")
        heading("Change, rename, delete")
        change(site.path(SOURCE))
        wait(site)
        heading("Compare both sides")
        compare(site)
        site.run("verify", SOURCE)
        heading("What people see")
        key = next(str(name) for name in files_of(site.path(SOURCE)) if name.suffix == ".py")
        console.print(f"[bold]$ ls -l {site.path(DESTINATION)} | head[/bold]", soft_wrap=True)
        listed = subprocess.run(["ls", "-l", site.path(DESTINATION)], capture_output=True, text=True).stdout
        console.print("\n".join(listed.splitlines()[:8]), markup=False)
        show_file(site.path(DESTINATION, key))
        site.run("ls", f"{DESTINATION}/{key}", "--versions")
        site.run("why", f"{SOURCE}/{key}")
        heading("Deleted by mistake, and brought back")
        site.path(SOURCE, key).unlink()
        wait(site)
        console.print(f"rm {key}: here {site.path(SOURCE, key).exists()}, there {site.path(DESTINATION, key).exists()}")
        site.run("restore", f"{SOURCE}/{key}")
        wait(site)
        console.print(f"restored: here {site.path(SOURCE, key).exists()}, there {site.path(DESTINATION, key).exists()}")
        heading("Status of the site")
        site.run("status")
    fsrepl = Path(sys.executable).with_name("fsrepl")
    console.print(f"\nThe site stays in {options.directory}, the daemon is stopped. To play with it:")
    console.print(f"  {fsrepl} --site {options.directory} daemon &", markup=False, soft_wrap=True)
    console.print(f"  {fsrepl} --site {options.directory} status --watch", markup=False, soft_wrap=True)
    console.print(f"  drop, change and delete files in {site.path(SOURCE)}, and look into {site.path(DESTINATION)}")


if __name__ == "__main__":
    main()
