"""Shared by all commands: the site, requests to the daemon or run in this process, printing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsrepl.cli import completion, progress, utf8
from fsrepl.cli.state import State as State
from fsrepl.cli.state import is_terminal as is_terminal
from fsrepl.cli.state import set_state as set_state
from fsrepl.cli.state import state as state
from fsrepl.daemon import control, requests
from fsrepl.daemon.lock import WAIT_S, Lock
from fsrepl.daemon.requests import GetProgress, LookAtHost, LookAtServices, Request
from fsrepl.errors import FsreplError, NotRunning, Refused, Usage
from fsrepl.model.address import Address
from fsrepl.model.amounts import counted as counted
from fsrepl.model.amounts import duration_text as duration_text
from fsrepl.model.amounts import size_text as size_text

if TYPE_CHECKING:
    from types import TracebackType

    from fsrepl.commands.services import ServiceFacts
    from fsrepl.daemon.engine import Engine
    from fsrepl.settings import Settings
    from fsrepl.storage.journal.database import Journal
    from fsrepl.storage.site import Site


def _parse_object(text: str) -> Address:
    """An address with a key, REGION/BUCKET/KEY. Raises Usage where a part is missing."""
    address = Address.parse(text)
    if not address.key:
        raise Usage(f"{shown(text)} names no object; write REGION/BUCKET/KEY")
    return address


Json = Annotated[bool, typer.Option("--json", show_default=False, help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and change nothing.")]
Source = Annotated[
    Address,
    typer.Argument(
        metavar="REGION/BUCKET",
        help="The source bucket.",
        parser=Address.parse_bucket,
        autocompletion=completion.buckets,
    ),
]
Bucket = Annotated[
    Address,
    typer.Argument(metavar="REGION/BUCKET", parser=Address.parse_bucket, autocompletion=completion.buckets),
]
Object = Annotated[
    Address, typer.Argument(metavar="REGION/BUCKET/KEY", parser=_parse_object, autocompletion=completion.objects)
]
VersionId = Annotated[
    str | None, typer.Option("--version-id", metavar="ID", help="This version instead of the current one.")
]

STARTING_S = 3.0
"""Time limit from `fsrepl daemon &` until it answers; Python and the settings take 0.5 s on an idle machine."""
_LOOK_S = 0.05
_FAR_S = 2.0
"""How long a bar waits for the daemon to say how far it is."""


def open_site() -> Site:
    """The site, for reading. Raises Refused(AccessDenied) where this user may not read its state."""
    from fsrepl.storage.fs import Fs
    from fsrepl.storage.site import Site

    fs = Fs()
    fs.owner = owner(state().settings)
    site = Site(state().settings, fs)
    for host in site.hosts.values():
        host.relay = _buckets_by_daemon
    return site


def _buckets_by_daemon(region: str) -> dict[str, str] | None:
    """The buckets of a region on another machine; None where no daemon runs, whose connection is the only one."""
    try:
        found: dict[str, str] = ask_daemon(LookAtHost(region), answer_within_s=_SERVICES_S)["Buckets"]
    except NotRunning:
        return None
    return found


@contextlib.contextmanager
def journal_on_disk() -> Iterator[Journal]:
    """The site's journal as it is on disk, for the progress of an operation. Raises sqlite3.Error."""
    from fsrepl.storage.journal.database import Journal

    journal = Journal(str(state().settings.state / "journal.db"), read_only=True)
    try:
        yield journal
    finally:
        journal.close()


def open_answering_site() -> Site:
    """The site, for reading where a region may hang: a region that does not answer soon is skipped and reported."""
    own = state()
    site = open_site()
    site.ask_regions()
    if not site.silent:
        site.settings = own.checked_settings
    return site


def owner(found: Settings) -> int | None:
    """The user who owns the site, where this process is root and the owner is another user."""
    if os.geteuid() != 0:
        return None
    try:
        uid = os.lstat(found.state / "identities.json").st_uid
    except OSError:
        return None
    return uid or None


# -- doing things


def perform(request: Request) -> dict[str, Any]:
    """Send a request to the daemon; where none runs, take the site's lock and run the request in this process."""
    with Performer() as performer:
        return performer.perform(request)


class Performer:
    """Runs requests one after another: by the daemon, or in this process where none runs. This process keeps the
    site's lock until the performer is closed."""

    def __init__(self) -> None:
        self._kept = contextlib.ExitStack()
        self._engine: Engine | None = None

    def perform(self, request: Request) -> dict[str, Any]:
        with progress.bar(_doing(request), far=lambda: self._how_far(request)):
            return self._perform(request)

    def _how_far(self, request: Request) -> tuple[int, int]:
        if (engine := self._engine) is None:
            return _how_far(request)
        task = engine.tasks.find(str(request))
        return task.done, task.total

    def _perform(self, request: Request) -> dict[str, Any]:
        if self._engine is None and (answer := self._ask_or_lock(request)) is not None:
            return answer
        from fsrepl.commands import operations  # which all operations need: a running daemon has loaded them already

        if self._engine is None:
            self._engine = self._kept.enter_context(operations.local_engine(state().checked_settings))
        return operations.run(self._engine, request)

    def _ask_or_lock(self, request: Request) -> dict[str, Any] | None:
        """The daemon's answer; None where none runs, and this process now keeps the site's lock."""
        found = state().settings
        until_s = time.monotonic() + WAIT_S
        lock = Lock(found.state)
        while True:
            try:
                return control.ask(found.state, request)
            except NotRunning:
                if uid := owner(found):  # files that root creates there would lock that user out
                    raise Refused(
                        "AccessDenied",
                        f"this site belongs to uid {uid}, and its daemon is not running; run this as that user",
                    ) from None
                if lock.try_acquire():
                    self._kept.enter_context(lock)
                    return None
            lock.wait(until_s)  # a daemon is starting or stopping, or another command runs

    def __enter__(self) -> Performer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._kept.__exit__(kind, error, tb)


def _how_far(request: Request) -> tuple[int, int]:
    """How much of a request the daemon has done, and the total, 0 where unknown; for a bar. Raises FsreplError."""
    answer = control.ask(state().settings.state, GetProgress(str(request)), _FAR_S)
    return answer["Done"], answer["Total"]


_DOING: Mapping[type[Request], str] = {
    requests.Acknowledge: "letting deletions cross",
    requests.AddRegion: "attaching the region",
    requests.AddTier: "attaching the tier",
    requests.Backfill: "asking for a backfill",
    requests.CreateBucket: "creating",
    requests.DisableReplication: "disabling the rules of",
    requests.EnableReplication: "enabling the replication of",
    requests.ForgetRegion: "forgetting the region",
    requests.LookAtServices: "asking the S3 services",
    requests.PutLifecycle: "saving the lifecycle rules of",
    requests.PutReplication: "saving the replication of",
    requests.RemoveBucket: "removing",
    requests.RemoveObject: "deleting",
    requests.RemoveReplication: "removing the replication of",
    requests.RemoveTier: "removing the tier",
    requests.RestoreArchived: "making readable",
    requests.RestoreObject: "restoring",
    requests.Retry: "trying again",
    requests.RunLifecycle: "carrying out what is due in",
    requests.SetTrees: "setting trees of",
    requests.SetVersioning: "setting the versioning of",
    requests.Undelete: "bringing back",
}


def _doing(request: Request) -> str:
    """The description of a request for a person who waits for it."""
    if isinstance(request, requests.AdoptBucket):
        verb = "measuring" if request.dry_run else "adopting"
    elif (verb := _DOING.get(type(request), "")) == "":
        return "waiting for the site"
    for name in ("bucket", "source", "address", "scope", "name"):
        if what := getattr(request, name, None):
            return f"{verb} {shown(str(what))}"
    return verb


def ask_daemon(request: Request, *, answer_within_s: float | None = None) -> dict[str, Any]:
    """Send a request that only the daemon can run. Raises NotRunning, and TimedOut where no answer comes in time."""
    with progress.bar(_doing(request), far=lambda: _how_far(request)):
        return control.ask(state().settings.state, request, answer_within_s)


def await_daemon(
    request: Request, *, answer_within_s: float | None = None, patience_s: float = STARTING_S
) -> dict[str, Any]:
    """ask_daemon, with time for a daemon to start: the line before in a script may have started it."""
    until_s = time.monotonic() + patience_s
    while True:
        try:
            return ask_daemon(request, answer_within_s=answer_within_s)
        except NotRunning:
            if time.monotonic() >= until_s:
                raise
        time.sleep(_LOOK_S)


_SERVICES_S = 60.0


def services_of(site: Site) -> list[ServiceFacts]:
    """The regions that only take replicas: as the daemon sees them, whose credentials count, else as this process."""
    from fsrepl.commands import services

    if not site.destinations:
        return []
    with contextlib.suppress(FsreplError):
        found: list[ServiceFacts] = ask_daemon(LookAtServices(), answer_within_s=_SERVICES_S)["Services"]
        return found
    return services.look(site)


def umask() -> int:
    """The umask of this process, for directories that the daemon creates for it. umask(2) reads it only by a change."""
    found = os.umask(0o077)
    os.umask(found)
    return found


def read_document(path: str) -> tuple[object, int]:
    """A JSON document from a file, `-` being standard input, and the size of its text in bytes.

    Raises Refused(MalformedXML), which is what S3 calls a document that it cannot read, or Usage.
    """
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise Usage(f"cannot read {path}: {error.strerror}") from error
    where = "standard input" if path == "-" else path
    try:
        return json.loads(data), len(data)
    except (ValueError, RecursionError) as error:
        raise Refused("MalformedXML", f"{where} is not JSON: {error}") from error


def confirm(question: str, yes: bool) -> None:
    """Ask before an irreversible action. Raises Usage without a terminal and without --yes."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Usage(f"{question} There is no terminal to ask on; --yes confirms")
    typer.confirm(question, abort=True, err=True)


# -- printing


def tell(text: str) -> None:
    """Print a line of the answer."""
    typer.echo(printable(text))


def say(text: str) -> None:
    """Print a line about what was done, for people; not with --quiet."""
    if not state().quiet:
        tell(text)


def coloured(text: str, *, fg: str, bold: bool = False) -> str:
    """Text in a colour, where colours are wanted; the terminal's own absence is noticed when it is printed. Source:
    no-color.org."""
    return text if os.environ.get("NO_COLOR") else typer.style(text, fg=fg, bold=bold)


def warn(text: str) -> None:
    typer.echo(printable(text), err=True)


_HARMFUL = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def print_json(document: object) -> None:
    """Print JSON without characters that control a terminal."""
    typer.echo(json_text(document))


def json_text(document: object) -> str:
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
    return _HARMFUL.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Lines without characters that control a terminal."""
    return "\n".join(shown(line) for line in text.split("\n"))


def shown(text: str) -> str:
    """Text that contains users' names, escaped for people."""
    from fsrepl.model import keys

    return keys.shown(utf8.encoded(text))


def print_table(rows: Iterable[Sequence[object]], head: Sequence[str], right: Sequence[int] = ()) -> None:
    """Print aligned columns; right: the numbers of the columns that are aligned to the right."""
    table = [[str(cell) for cell in row] for row in rows]
    if not table:
        return
    lines = [list(head), *table]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    format_ = "  ".join(f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths))
    tell("\n".join(format_.format(*line).rstrip() for line in lines))
