"""Manual pages from the command tree, one for each command, and one for fsrepl.toml; and the shells' completions.

    python tools/manpages.py DIRECTORY     writes man/, bash-completion/, zsh/ and fish/, as they are below /usr/share

What a page says is what `--help` says, so the two cannot differ. click-man, which does the same for programs of click,
finds no command in a program of typer, which has its own copy of click. Source: man-pages(7), groff_man(7).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from typer.completion import get_completion_script

import fsrepl
from fsrepl import cli
from fsrepl.settings import TABLES, RegionSettings, settings_of
from fsrepl.settings.toml import quoted

SHELLS = {"bash": "bash-completion/completions/fsrepl", "zsh": "zsh/vendor-completions/_fsrepl",
          "fish": "fish/vendor_completions.d/fsrepl.fish"}  # fmt: skip
"""Where Debian's packages put a shell's completions, below /usr/share."""

EXIT_STATUS = (
    ("0", "Done."),
    ("1", "Not as it should be: failed deliveries, differences found."),
    ("2", "Usage: a mistake in arguments or in fsrepl.toml."),
    ("3", "Refused; S3's error code is the first word of the message."),
    ("4", "Timed out."),
    ("5", "The daemon is not running."),
)
ENVIRONMENT = (
    ("FSREPL_SITE", "The site's folder, where --site does not name it."),
    ("NO_COLOR", "Where set, no colours, bars and spinners are printed."),
)
FILES = (
    ("/etc/fsrepl/fsrepl.toml", "The settings of the system-wide site; otherwise the nearest fsrepl.toml upwards."),
    ("/var/lib/fsrepl", "Its journal and control socket."),
    ("REGION/BUCKET/.fsrepl", "The stored versions of a bucket, and its settings."),
)


@dataclass(frozen=True)
class Command:
    """One command of the tree. names: from the program's on."""

    names: tuple[str, ...]
    command: Any
    context: Any

    @property
    def page(self) -> str:
        return "-".join(self.names)


def commands() -> list[Command]:
    """All commands, a group before those in it."""
    cli.register(file for file in cli.FILES if not _is_registered(file))
    root = typer.main.get_command(cli.app)
    return list(_walk((), root, None))


def _is_registered(file: str) -> bool:
    """Whether a file's commands are in the tree already, as in a process of tests."""
    groups = {group.name for group in cli.app.registered_groups}
    single = {info.name or info.callback.__name__ for info in cli.app.registered_commands if info.callback is not None}
    return bool((groups | single) & set(cli.FILES[file]))


def _walk(above: tuple[str, ...], command: Any, parent: Any) -> Iterator[Command]:
    name = command.name or "fsrepl"
    context = command.context_class(command, info_name=name, parent=parent, **command.context_settings)
    yield Command((*above, name), command, context)
    for below in getattr(command, "commands", {}).values():
        if not below.hidden:
            yield from _walk((*above, name), below, context)


# -- roff


def escaped(text: str) -> str:
    """Text that roff prints as it is: a backslash, a leading dot or quote, and a hyphen that may be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs as lines of roff: those of a docstring are filled anew."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield escaped(" ".join(paragraph.split()))


def _items(items: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Iterator[str]:
    for term, text in items:
        yield ".TP"
        yield f".B {escaped(term)}" if " " not in term else f'.B "{escaped(term)}"'
        yield escaped(" ".join(text.split())) or "\\&"


def _head(page: str, section: int, title: str) -> Iterator[str]:
    """Without a date: the same sources make the same page."""
    yield f'.TH {escaped(page.upper())} {section} "" "fsrepl {fsrepl.__version__}" "fsrepl manual"'
    yield ".SH NAME"
    yield f"{escaped(page)} \\- {escaped(title)}"


def _first_line(help_text: str | None) -> str:
    return " ".join((help_text or "").strip().split("\n\n")[0].split()).rstrip(".")


def page_of(command: Command, all_commands: list[Command]) -> str:
    """The page of one command."""
    lines = [*_head(command.page, 1, _first_line(command.command.help))]
    lines += [".SH SYNOPSIS", f".B {escaped(' '.join(command.names))}"]
    lines += [escaped(piece) for piece in command.command.collect_usage_pieces(command.context)]
    lines += [".SH DESCRIPTION", *_paragraphs(command.command.help or "")]
    below = [each for each in all_commands if each.names[:-1] == command.names]
    if below:
        lines += [".SH COMMANDS", *_items((each.page + "(1)", _first_line(each.command.help) + ".") for each in below)]
    for title, kind in (("ARGUMENTS", "argument"), ("OPTIONS", "option")):
        params = [p for p in command.command.get_params(command.context) if p.param_type_name == kind]
        records = [record for p in params if (record := p.get_help_record(command.context)) is not None]
        if records:
            lines += [f".SH {title}", *_items(tuple(records))]
    if not below or len(command.names) == 1:
        lines += [".SH EXIT STATUS", *_items(EXIT_STATUS)]
    if len(command.names) == 1:
        lines += [".SH ENVIRONMENT", *_items(ENVIRONMENT), ".SH FILES", *_items(FILES)]
    related = [each for each in all_commands if each.names == command.names[:-1]] + below
    others = [f".BR {escaped(each.page)} (1)" for each in related] + [".BR fsrepl.toml (5)"]
    lines += [".SH SEE ALSO", *[f"{other}{' ,' if other is not others[-1] else ''}" for other in others]]
    return "\n".join(lines) + "\n"


def settings_page() -> str:
    """The page of fsrepl.toml."""
    lines = [*_head("fsrepl.toml", 5, "settings of a site of fsrepl")]
    text = """The settings of a site, in TOML. Only [regions] are needed; all other settings have defaults, which
    `fsrepl init` writes into the file as comments. `fsrepl check` names mistakes, with their line. The daemon reads the
    file again on SIGHUP."""
    lines += [".SH DESCRIPTION", *_paragraphs(text), ".SH FILE"]
    state = """The folder of journal, control socket and identities; above the first table. Default: .fsrepl-site beside
    the file; for /etc/fsrepl it is /var/lib/fsrepl."""
    lines += _items((("state", state),))
    for title, table in (("regions.NAME", RegionSettings), *TABLES.items()):
        lines.append(f'.SH "[{escaped(title)}]"')
        for name, setting in settings_of(table).items():
            default = setting.toml
            given = "" if default is None else f" = {quoted(default)}"
            about = setting.about or "The region's directory, relative to this file or absolute."
            lines += [*_items(((f"{name}{given}", f"{about[0].upper()}{about[1:]}".rstrip(".") + "."),))]
    lines += [".SH SEE ALSO", ".BR fsrepl (1)"]
    return "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """File name to text."""
    found = commands()
    return {f"man1/{each.page}.1": page_of(each, found) for each in found} | {"man5/fsrepl.toml.5": settings_page()}


def completions() -> dict[str, str]:
    """Path below /usr/share to text."""
    return {
        path: get_completion_script(prog_name="fsrepl", complete_var="_FSREPL_COMPLETE", shell=shell) + "\n"
        for shell, path in SHELLS.items()
    }


def main(directory: str) -> None:
    top = Path(directory)
    for path, text in ({f"man/{name}": text for name, text in pages().items()} | completions()).items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/manpages.py DIRECTORY")
    main(sys.argv[1])
