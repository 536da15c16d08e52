"""The manual pages: all that `--help` says, for every command, in a form that groff takes without a warning."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fsrepl.settings import TABLES, settings_of
from tools import manpages
from tools.manpages import Command

COMMANDS = manpages.commands()
PAGES = manpages.pages()


def plain(page: str) -> str:
    """A page without its escapes."""
    return page.replace("\\-", "-").replace("\\e", "\\").replace("\\&", "")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.page)
def test_every_option_of_help_is_in_the_page(command: Command) -> None:
    """An option that is added to a command is in its page at the next build, with the same words."""
    page = " ".join(plain(PAGES[f"man1/{command.page}.1"]).split())
    help_text = command.command.get_help(command.context)
    options = set(re.findall(r"(?:^|[\s,])(--?[a-z][a-z-]*)", help_text))
    assert options >= {"--help", "-h"}
    assert {option for option in options if option not in page} == set()
    for param in command.command.get_params(command.context):
        record = param.get_help_record(command.context)
        if record is not None:
            assert " ".join(record[1].split()) in page
    assert " ".join((command.command.help or "").split()) in page.replace(".PP ", "")


def test_each_command_has_a_page_that_the_others_lead_to() -> None:
    """From fsrepl(1) to each command and back; and no page names one that does not exist."""
    known = {path.partition("/")[2].rpartition(".")[0] for path in PAGES}
    assert len(PAGES) == len(COMMANDS) + 1
    for path, page in PAGES.items():
        named = set(re.findall(r"^\.BR (\S+) \(", plain(page), re.MULTILINE))
        named |= set(re.findall(r"^\.B (\S+)\(1\)$", plain(page), re.MULTILINE))
        assert named, path
        assert named - known == set(), path
    assert {name for name in known if name.count("-") == 1} <= {
        *re.findall(r"^\.B (\S+)\(1\)$", plain(PAGES["man1/fsrepl.1"]), re.MULTILINE)
    }


def test_every_setting_is_in_its_page() -> None:
    page = plain(PAGES["man5/fsrepl.toml.5"])
    for title, table in TABLES.items():
        assert f"[{title}]" in page
        for name in settings_of(table):
            assert f"\n.B {name} = " in page or f'\n.B "{name} = ' in page, name


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_groff_takes_every_page(tmp_path: Path) -> None:
    """With all its warnings on, in one run."""
    text = "".join(PAGES.values())
    ran = subprocess.run(
        ["groff", "-man", "-ww", "-z", "-Tutf8"], input=text.encode(), capture_output=True, check=False
    )
    assert (ran.returncode, ran.stderr.decode()) == (0, "")


def test_text_is_never_taken_for_a_command_of_roff() -> None:
    assert manpages.escaped(".so /etc/passwd\n'x\\-a") == "\\&.so /etc/passwd\n\\&'x\\e\\-a"


def test_it_writes_what_a_package_installs(tmp_path: Path) -> None:
    """Pages and completions where Debian has them; a completion is a program that its shell takes."""
    root = Path(manpages.__file__).parents[1]
    subprocess.run([sys.executable, "tools/manpages.py", str(tmp_path)], cwd=root, env={"PYTHONPATH": "."}, check=True)
    assert (tmp_path / "man/man1/fsrepl-replication-enable.1").read_text() == PAGES["man1/fsrepl-replication-enable.1"]
    for path in manpages.SHELLS.values():
        assert "fsrepl" in (tmp_path / path).read_text()
    for shell, path in manpages.SHELLS.items():
        if shutil.which(shell):
            ran = subprocess.run([shell, "-n", str(tmp_path / path)], capture_output=True, check=False)
            assert ran.returncode == 0, ran.stderr
