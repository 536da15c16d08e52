"""What all commands share: the site, asking the daemon or doing it ourselves, printing."""

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
from fsrepl.daemon.requests import Request
from fsrepl.errors import NotRunning, Refused, Usage
from fsrepl.model.address import Address
from fsrepl.settings import reading

if TYPE_CHECKING:
    from types import TracebackType

    from fsrepl.daemon.engine import Engine
    from fsrepl.settings import Settings
    from fsrepl.storage.site import Site


def _parse_object(text: str) -> Address:
    """REGION/BUCKET/KEY. Raises Usage where one of them is missing."""
    address = Address.parse(text)
    if not address.key:
        raise Usage(f"{shown(text)} names no object; write REGION/BUCKET/KEY")
    return address


Json = Annotated[bool, typer.Option("--json", show_default=False, help="Print JSON.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
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
VersionId = Annotated[str | None, typer.Option("--version-id", metavar="ID", help="Not the current version: this one.")]

STARTING_S = 3.0
"""From `fsrepl daemon &` until it answers: Python and the settings, half a second on an idle machine."""
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
        """Raises Usage where there is no site, or its settings make no sense."""
        return self._settings or self.read_settings(os.path.realpath)

    def read_settings(self, real: Callable[[str], str]) -> Settings:
        """Read them. real: resolves the symlinks of a region's path."""
        self._settings = reading.load(reading.find(self.site, os.environ), real)
        return self._settings


_current = State()


def set_state(given: State) -> None:
    """Take over the options before the command: a process runs one command."""
    global _current
    _current = given


def state() -> State:
    return _current


def open_site() -> Site:
    """The site to read. Raises Refused(AccessDenied) where its state is not ours to read."""
    from fsrepl.storage.fs import Fs
    from fsrepl.storage.site import Site

    fs = Fs()
    fs.owner = owner(state().settings)
    return Site(state().settings, fs)


def open_answering_site() -> Site:
    """The site to read where a region may hang: whichever does not answer soon is passed over, and says so."""
    own = state()
    own.read_settings(os.path.normpath)  # real paths would be asked of the regions' filesystems
    site = open_site()
    site.ask_regions()
    if not site.silent:
        site.settings = own.read_settings(os.path.realpath)
    return site


def owner(found: Settings) -> int | None:
    """The user whose site it is, where we are root and that is another user."""
    if os.geteuid() != 0:
        return None
    try:
        uid = os.lstat(found.state / "identities.json").st_uid
    except OSError:
        return None
    return uid or None


# -- doing things


def perform(request: Request) -> dict[str, Any]:
    """Have the daemon do what is asked; where there is none, take the site's lock and do it here."""
    with Performer() as performer:
        return performer.perform(request)


class Performer:
    """Does what is asked, one request after another: by the daemon; or here, where there was none, keeping the site's
    lock until it is closed."""

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
                    if uid := owner(found):  # what root makes there would shut that user out
                        raise Refused(
                            "AccessDenied",
                            f"this site belongs to uid {uid}, and its daemon is not running; do this as that user",
                        ) from None
                    if lock.try_acquire():
                        break
                lock.wait(until_s)  # for a daemon that is starting or stopping, or another command at work
            self._kept.enter_context(lock)
            self._engine = self._kept.enter_context(operations.local_engine(found))
        return operations.run(self._engine, request)

    def __enter__(self) -> Performer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._kept.__exit__(kind, error, tb)


def ask_daemon(request: Request, *, answer_within_s: float | None = None) -> dict[str, Any]:
    """Have the daemon do what only it can. Raises NotRunning, and TimedOut where no answer comes in time."""
    return control.ask(state().settings.state, request, answer_within_s)


def await_daemon(
    request: Request, *, answer_within_s: float | None = None, patience_s: float = STARTING_S
) -> dict[str, Any]:
    """The same, with patience for a daemon that is just being started: a script's line before may have done that."""
    until_s = time.monotonic() + patience_s
    while True:
        try:
            return ask_daemon(request, answer_within_s=answer_within_s)
        except NotRunning:
            if time.monotonic() >= until_s:
                raise
        time.sleep(_LOOK_S)


def umask() -> int:
    """Our umask, for directories that the daemon makes for us. umask(2) tells it only to who changes it."""
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
    """Ask before something that cannot be undone. Raises Usage without a terminal and without --yes."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Usage(f"{question} Without a terminal to ask on, this needs --yes")
    typer.confirm(question, abort=True, err=True)


# -- printing


def tell(text: str) -> None:
    """A line that was asked for."""
    typer.echo(printable(text))


def say(text: str) -> None:
    """A line about what was done, for people; not with --quiet."""
    if not state().quiet:
        tell(text)


def warn(text: str) -> None:
    typer.echo(printable(text), err=True)


_HARMFUL = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def print_json(document: object) -> None:
    """JSON without anything that a terminal would obey."""
    typer.echo(json_text(document))


def json_text(document: object) -> str:
    text = json.dumps(document, indent=2, ensure_ascii=False, default=str)
    return _HARMFUL.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """Lines without anything in them that a terminal would obey."""
    return "\n".join(shown(line) for line in text.split("\n"))


def shown(text: str) -> str:
    """Anything with names of users in it, for people."""
    from fsrepl.model import keys

    return keys.shown(utf8.encoded(text))


def print_table(rows: Iterable[Sequence[object]], head: Sequence[str], right: Sequence[int] = ()) -> None:
    """Columns, aligned; right are the numbers of those that are aligned to the right."""
    table = [[str(cell) for cell in row] for row in rows]
    if not table:
        return
    widths = [max(len(line[i]) for line in [list(head), *table]) for i in range(len(head))]
    for line in [list(head), *table]:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        tell("  ".join(cells).rstrip())


def counted(number: int, one: str, many: str = "") -> str:
    """A number and its noun: 1 version, 1,200 versions."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size_text(count: float) -> str:
    """Bytes for people: 52 B, 1.4 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration_text(seconds: float) -> str:
    """A time span for people: 0.4 s, 3 min, 5.2 h, 3.1 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds else "0 s"


def is_terminal() -> bool:
    """Whether a person watches: progress and colours are for them alone."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
