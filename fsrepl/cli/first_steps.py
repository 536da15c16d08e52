"""`fsrepl init` without arguments on a terminal: two folders, what to replicate, and then it runs.

A folder becomes a bucket, and the folder above it a region: files stay where they are. Each answer is checked when it
is given, and nothing is made before the last one.
"""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from msgspec import Struct

from fsrepl.cli.common import (
    Performer,
    State,
    await_daemon,
    say,
    set_state,
    shown,
    size_text,
    state,
    umask,
    warn,
)
from fsrepl.cli.wizard import TREES
from fsrepl.commands import sites
from fsrepl.daemon import requests
from fsrepl.errors import FsreplError, Refused, Usage
from fsrepl.model.address import Address
from fsrepl.model.amounts import kinds_text
from fsrepl.s3 import arn
from fsrepl.settings import FILE

T = TypeVar("T")

SOURCE_REGION, COPY_REGION = "here", "there"
_STARTED_S = 60.0


class Folder(Struct, frozen=True):
    """A folder that is to be a bucket, by its whole path."""

    region: str
    path: Path

    @property
    def address(self) -> Address:
        return Address(self.region, self.path.name)

    @property
    def has_files(self) -> bool:
        """Whether anything is in it. Raises OSError where that cannot be seen."""
        try:
            return any(self.path.iterdir())
        except FileNotFoundError:
            return False


def folder(region: str, text: str, other: Folder | None = None) -> Folder:
    """The folder that an answer names. other: the first of the two. Raises Usage, Refused where it cannot be one."""
    path = Path(os.path.abspath(os.path.expanduser(text.strip())))
    if not text.strip():
        raise Usage("name a folder, such as /srv/photos")
    if path.parent == Path("/"):
        raise Usage(f"{path} lies directly below /, which cannot be a region; name a folder one level deeper")
    if path.exists() and not path.is_dir():
        raise Usage(f"{path} is no folder")
    arn.check_bucket_name(path.name)
    found = Folder(region, path)
    if other is not None:
        above, others = path.resolve().parent, other.path.resolve().parent
        if above == others or others in above.parents or above in others.parents:
            raise Usage(
                f"{above} and {others} are to be two regions, and one lies in the other; choose a folder elsewhere, "
                "best on another disk"
            )
        if found.has_files:
            raise Usage(f"{path} has files; the copies need a folder that is new or empty")
    return found


def run() -> int:
    """Ask, make, and run the daemon where that is wanted; the exit status."""
    typer.echo("Files in one folder will be replicated to another, at best on another disk. Ctrl-C changes nothing.\n")
    source = _answer("Folder to replicate", "", lambda text: folder(SOURCE_REGION, text))
    copy = _answer("Folder for the copies, new or empty", "", lambda text: folder(COPY_REGION, text, source))
    prefix = str(typer.prompt("Only names that begin with (a folder ends in /; empty: everything)", default="",
                              show_default=False))  # fmt: skip
    trees = typer.confirm(TREES, default=False)
    home = "/etc/fsrepl" if os.geteuid() == 0 else str(Path.home() / "fsrepl")
    site = _answer("Folder for the settings", home, lambda text: _site(text, (source, copy)))
    existing = source.has_files
    if existing:
        existing = typer.confirm("Replicate the files that are there already, too?", default=True)
    sites.init(site, {each.region: str(each.path.parent) for each in (source, copy)})
    say(f"\nsite {site}")
    try:
        _make(site, source, copy, prefix, trees=trees)
    except FsreplError:
        warn(f"the site is made, and something in it is not: `fsrepl --site {site} bucket ls` shows how far it came")
        raise
    command = f"fsrepl --site {shlex.quote(str(site))}"
    if not typer.confirm("\nRun the daemon now, in this terminal?", default=True):
        say(f"`{command} daemon` runs it; docs/reference/operations.md says how it is started with the machine")
        if existing:
            say(f"then `{command} replication backfill {source.address}` replicates the files of before")
        return 0
    if existing:
        threading.Thread(target=_backfill, args=(source.address,), daemon=True).start()
    say(f"Drop a file into {source.path}, and look into {copy.path}. `{command} status` in another terminal says more.")
    return _run_daemon()


def _answer(question: str, default: str, read: Callable[[str], T]) -> T:
    """Ask until the answer is one."""
    while True:
        try:
            return read(str(typer.prompt(question, default=default or None)))
        except (FsreplError, OSError) as error:
            warn(f"  {error}")


def _site(text: str, folders: tuple[Folder, ...]) -> Path:
    path = Path(os.path.abspath(os.path.expanduser(text.strip())))
    if (path / FILE).exists():
        raise Usage(f"{path / FILE} exists already; `fsrepl --site {path} status` shows that site")
    for each in folders:
        if path == each.path or each.path in path.parents:
            raise Usage(f"{path} lies in {each.path}, whose files are replicated; choose a folder elsewhere")
    return path


def _make(site: Path, source: Folder, copy: Folder, prefix: str, *, trees: bool) -> None:
    """Both buckets and the rule. trees: they are tree buckets."""
    set_state(State(site, state().verbose, state().quiet))
    with Performer() as performer:
        if source.has_files:
            room = performer.perform(requests.AdoptBucket(source.address, dry_run=True, trees=trees))
            say(f"bucket {source.address}: {_takes(room)}")
            performer.perform(requests.AdoptBucket(source.address, umask=umask(), trees=trees))
        else:
            performer.perform(requests.CreateBucket(source.address, True, umask(), trees))
            say(f"bucket {source.address} at {shown(str(source.path))}")
        performer.perform(requests.CreateBucket(copy.address, True, umask(), trees))
        say(f"bucket {copy.address} at {shown(str(copy.path))}")
        prefixes = (prefix,) if prefix else ()
        answer = performer.perform(requests.EnableReplication(source.address, copy.address, prefixes=prefixes))
    (rule,) = answer["ReplicationConfiguration"]["Rules"]
    say(f"rule {rule['ID']}, role {answer['Role']}")


def _takes(room: dict[str, Any]) -> str:
    found = kinds_text(room["Objects"], room["Directories"], room["Symlinks"])
    return f"{found}; their versions take about {size_text(room['Needed'])}"


def _backfill(source: Address) -> None:
    """Replicate the files of before, once the daemon answers."""
    try:
        job = await_daemon(requests.Backfill(source), patience_s=_STARTED_S)
        say(f"backfill {job['JobId']} replicates the files that were there before")
    except (FsreplError, Refused) as error:
        warn(f"the files of before are not replicated: {error}; `fsrepl replication backfill {source}` tries again")


def _run_daemon() -> int:
    from fsrepl.commands import operations, wait
    from fsrepl.daemon import main

    options, handlers = state(), main.Commands(operations.run, wait.answer)
    return main.run(options.checked_settings, handlers, verbose=options.verbose, quiet=options.quiet)
