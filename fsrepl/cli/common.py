"""Shared by all commands: the site, requests to the daemon or run in this process, printing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fsrepl.cli import completion, utf8
from fsrepl.daemon import control
from fsrepl.daemon.lock import WAIT_S, Lock
from fsrepl.daemon.requests import LookAtServices, Request
from fsrepl.errors import FsreplError, NotRunning, Refused, Usage
from fsrepl.model.address import Address
from fsrepl.model.amounts import counted as counted
from fsrepl.model.amounts import duration_text as duration_text
from fsrepl.model.amounts import size_text as size_text
from fsrepl.settings import reading

if TYPE_CHECKING:
    from types import TracebackType

    from fsrepl.commands.services import ServiceFacts
    from fsrepl.daemon.engine import Engine
    from fsrepl.settings import Settings
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


@dataclass
class State:
    """The options before the command, and the settings once they were read."""

    site: Path | None = None
    verbose: int = 0
    quiet: bool = False
    _settings: Settings | None = field(default=None, repr=False)

    @property
    def settings(self) -> Settings:
        """The site's settings. Raises Usage where there is no site, or its settings are invalid."""
        return self._settings or self.read_settings(os.path.realpath)

    def read_settings(self, real: Callable[[str], str]) -> Settings:
        """Read the settings. real: resolves the symlinks of a region's path."""
        self._settings = reading.load(reading.find(self.site, os.environ), real)
        return self._settings


_current = State()


def set_state(given: State) -> None:
    """Keep the options before the command: a process runs one command."""
    global _current
    _current = given


def state() -> State:
    return _current


def open_site() -> Site:
    """The site, for reading. Raises Refused(AccessDenied) where this user may not read its state."""
    from fsrepl.storage.fs import Fs
    from fsrepl.storage.site import Site

    fs = Fs()
    fs.owner = owner(state().settings)
    return Site(state().settings, fs)


def open_answering_site() -> Site:
    """The site, for reading where a region may hang: a region that does not answer soon is skipped and reported."""
    own = state()
    own.read_settings(os.path.normpath)  # resolving real paths needs the regions' filesystems
    site = open_site()
    site.ask_regions()
    if not site.silent:
        site.settings = own.read_settings(os.path.realpath)
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
        from fsrepl.commands import operations

        if self._engine is None:
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
                        break
                lock.wait(until_s)  # a daemon is starting or stopping, or another command runs
            self._kept.enter_context(lock)
            self._engine = self._kept.enter_context(operations.local_engine(found))
        return operations.run(self._engine, request)

    def __enter__(self) -> Performer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._kept.__exit__(kind, error, tb)


def ask_daemon(request: Request, *, answer_within_s: float | None = None) -> dict[str, Any]:
    """Send a request that only the daemon can run. Raises NotRunning, and TimedOut where no answer comes in time."""
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
    """The regions that are S3 services: as the daemon sees them, whose credentials count, else as this process does."""
    from fsrepl.commands import services

    if not site.services:
        return []
    with contextlib.suppress(FsreplError):
        found: list[ServiceFacts] = ask_daemon(LookAtServices(), answer_within_s=_SERVICES_S)["Services"]
        return found
    return services.look(site)


def umask() -> int:
    """This process's umask, for directories that the daemon creates for it. umask(2) reads it only by a change."""
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


def is_terminal() -> bool:
    """Whether a person watches stderr: progress and colours are for people only."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
