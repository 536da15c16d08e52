"""Every error says what to do next, in commands that exist and work."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command

import fsrepl
from fsrepl import cli, errors
from fsrepl.cli import next_steps
from fsrepl.commands.why import REMEDIES
from fsrepl.errors import FsreplError, Refused
from tests.world import DESTINATION, SOURCE, World

CODE = re.compile(r"[A-Z][A-Za-z]+")


def sources() -> Iterator[tuple[Path, ast.AST]]:
    """The parts of fsrepl's own modules."""
    for path in sorted(Path(fsrepl.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            yield path, node


def refusals() -> set[str]:
    """S3's codes in what refuses a request: Refused(code, ...), and the faults (code, message) of documents."""
    found = set()
    for path, node in sources():
        first: ast.AST | None = None
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refused" and node.args:
            first = node.args[0]
        elif isinstance(node, ast.Yield) and isinstance(node.value, ast.Tuple) and path.parent.name == "s3":
            first = node.value.elts[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str) and CODE.fullmatch(first.value):
            found.add(first.value)
    return found


def reasons() -> set[str]:
    """S3's reasons of failed deliveries, wherever the code names one."""
    named = re.compile(
        r"(Dst|Src|AssumeRole|Initiate)[A-Za-z]*(NotPermitted|NotFound|Missing|Unversioned|Region|Deleted|Eligible)"
    )
    return {
        node.value
        for _, node in sources()
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and named.fullmatch(node.value)
    }


@pytest.fixture(scope="module")
def tree() -> Any:
    """All commands, as the parser has them."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(lambda: None)
    before, cli.app = cli.app, app
    try:
        cli.register(cli.FILES)
    finally:
        cli.app = before
    return get_command(app)


def check_commands(tree: Any, text: str) -> int:
    """Check that each command of fsrepl that a text names exists, with its options; how many there are."""
    named = re.findall(r"`fsrepl ([^`]*)`", text)
    for line in named:
        command, words = tree, line.split()
        while words and getattr(command, "commands", None):
            assert words[0] in command.commands or words[0] == "{command}", line
            if words[0] == "{command}":
                return len(named)
            command = command.commands[words.pop(0)]
        assert not getattr(command, "commands", None), f"{line} is no complete command"
        known = {option for each in command.params for option in each.opts}
        assert {word for word in words if word.startswith("-")} <= known, line
    return len(named)


def test_every_code_has_a_next_step(tree: Any) -> None:
    """The codes are those that the program raises, found in its source; the steps name commands that exist."""
    assert refusals() - {*next_steps.OF_CODES} == set()
    for code, step in next_steps.OF_CODES.items():
        assert check_commands(tree, step) or code in ("MalformedPOSTRequest",), code


def test_every_class_of_errors_has_a_next_step(tree: Any) -> None:
    """Of its own, or of the class that it is one of; FsreplError has one for any that is added."""
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, FsreplError)]
    assert {*next_steps.OF_CLASSES} <= {*classes}
    for step in next_steps.OF_CLASSES.values():
        assert check_commands(tree, step)


def test_every_reason_of_a_failure_has_a_remedy(tree: Any) -> None:
    """What `why`, the console and `retry` know; each with the command that comes next."""
    assert len(reasons()) > 15
    assert reasons() - {*REMEDIES} == set()
    for reason, remedy in REMEDIES.items():
        assert check_commands(tree, remedy), reason


@pytest.mark.parametrize(
    ("error", "arguments", "said"),
    [
        (Refused("NoSuchKey", "there is no k"), ["cat", "east/src/k"],
         "NoSuchKey: there is no k; `fsrepl ls east/src --versions` lists keys and versions"),
        (Refused("NoSuchKey", "there is no k"), ["--site", "/srv/a/b", "cat", "x"],
         "NoSuchKey: there is no k; `fsrepl ls REGION/BUCKET --versions` lists keys and versions"),
        (Refused("NoSuchBucket", "none; `fsrepl init`"), [], "NoSuchBucket: none; `fsrepl init`"),
        (Refused("InvalidTag", "bad"), ["tag", "set", "east/src/a b", "x=1"],
         "InvalidTag: bad; `fsrepl tag ls 'east/src/a b'` lists the tags"),
        (Refused("OfAService", "odd."), [], "OfAService: odd; `fsrepl doctor` says what is wrong"),
        (errors.Usage("two scopes"), ["-q", "tag", "ls", "x"], "two scopes; `fsrepl tag ls --help` describes it"),
        (errors.Usage("two scopes"), ["retry", "x"], "two scopes; `fsrepl retry --help` describes it"),
        (errors.Usage("two scopes"), [], "two scopes; `fsrepl --help` describes it"),
        (errors.Usage("/s/fsrepl.toml, line 4: odd"), ["ls"],
         "/s/fsrepl.toml, line 4: odd; `fsrepl check` reads it again"),
        (errors.ContentDamaged("no match", "01"), ["cat", "east/src/k"],
         "no match; `fsrepl verify east/src --repair` looks for a good copy"),
        (errors.Unreachable("region eu is offline"), [],
         "region eu is offline; give the command again once ssh leads to it; "
         "`fsrepl region ls` says how the region is now"),
        (errors.TierAway("tier eu/GLACIER is offline"), [],
         "tier eu/GLACIER is offline; bring its disk back; `fsrepl tier ls` says where each tier is expected"),
        (errors.SourceMoved("moved"), [], "moved; `fsrepl doctor` says what is wrong"),
    ],
)  # fmt: skip
def test_what_is_said(error: FsreplError, arguments: list[str], said: str, tree: Any) -> None:
    """With the bucket of the command line; a message that names a command itself stays as it is."""
    groups = [name for name, each in tree.commands.items() if getattr(each, "commands", None)]
    words = [each for each in arguments if not each.startswith("-")]
    words = words[:2] if words and words[0] in groups else words[:1]
    assert next_steps.said(error, arguments, words) == said


@pytest.mark.parametrize(
    "command",
    [
        f"cat {SOURCE}/nothing", f"rm {SOURCE}/k --version-id none", f"restore {SOURCE}/nothing", "ls east/nothing",
        f"tag set {SOURCE}/k aws:x=1", f"replication get {DESTINATION}", "replication report 7", "role show nobody",
        f"lifecycle run {SOURCE}", f"replication enable {SOURCE} {SOURCE}", f"replication backfill {DESTINATION}",
        f"bucket create {SOURCE}", "bucket create east/A", f"versioning suspend {SOURCE}", "ls nowhere/src",
        "retry", "wait --timeout 0.1",
    ],
)  # fmt: skip
def test_the_next_command_works(
    command: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors as people meet them: the first command that each names can be given as it stands, or has its help."""
    ran, said = run(home, command.split(), monkeypatch, capsys)
    assert ran != 0, said
    named = re.findall(r"`fsrepl ([^`]*)`", said)
    assert named, said
    following = named[0].split()
    if following[0] in ("daemon",) or any(each.isupper() for each in following) or "enable" in following:
        following = [each for each in following if each.islower() and "/" not in each and not each.startswith("-")]
        following.append("--help")
    ran, said = run(home, following, monkeypatch, capsys)
    assert ran == 0, (following, said)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("steps")
    with World(home) as world:
        world.write("k", b"x")
        world.settle()
    return home


def run(
    home: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The exit status of a command, and what it said on stderr."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.callback()(cli.options)
    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr("fsrepl.cli.utf8.use", lambda: None)
    monkeypatch.setattr("fsrepl.cli.common.STARTING_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["fsrepl", "--site", str(home), *arguments])
    capsys.readouterr()
    code = cli._run()
    return code, capsys.readouterr().err
