"""`fsrepl init` without arguments: from nothing to a file in two places, by answers."""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from pathlib import Path

import pytest

from fsrepl.cli.first_steps import folder
from fsrepl.errors import FsreplError, Refused, Usage
from tests.waiting import DEADLINE_S, until


class Terminal:
    """The command on a terminal."""

    def __init__(self, home: Path) -> None:
        program = [sys.executable, "-m", "fsrepl", "init"]
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(home)
            os.execvpe(program[0], program, {**os.environ, "TERM": "dumb", "NO_COLOR": "1", "HOME": str(home)})
        self.shown, self._asked = "", 0

    def read(self, text: str) -> None:
        """Read until a text comes that was not there at the last answer."""
        until_s = time.monotonic() + DEADLINE_S
        while text not in self.shown[self._asked :]:
            assert time.monotonic() < until_s, f"{text!r} does not come: {self.shown}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.shown += os.read(self.fd, 65536).decode()

    def answer(self, question: str, text: str) -> None:
        self.read(question)
        self._asked = len(self.shown)
        os.write(self.fd, f"{text}\n".encode())

    def stop(self) -> int:
        """Ctrl-C; the exit status."""
        os.kill(self.pid, signal.SIGINT)
        return self.end()

    def end(self) -> int:
        while True:
            try:
                self.shown += os.read(self.fd, 65536).decode()
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("disk1/photos/2026", "disk2"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "disk1/photos/2026/cat.jpg").write_bytes(b"meow")
    return tmp_path


def test_a_few_answers_and_it_runs(home: Path) -> None:
    """What is there and what comes is in the other folder while the command runs, directories and symlinks too."""
    terminal = Terminal(home)
    terminal.answer("Folder to replicate", f"{home}/disk1/photos")
    terminal.answer("Folder for the copies", f"{home}/disk2/photos-copy")
    terminal.answer("Only names that begin with", "")
    terminal.answer("symlinks and hard links too", "y")
    terminal.answer("Folder for the settings", f"{home}/site")
    terminal.answer("already, too?", "")
    terminal.answer("Run the daemon now", "")
    copies = home / "disk2/photos-copy"
    until(lambda: (copies / "2026/cat.jpg").exists(), lambda: f"the old file is there: {terminal.shown}")
    (home / "disk1/photos/new").write_bytes(b"purr")
    (home / "disk1/photos/empty").mkdir()
    (home / "disk1/photos/link").symlink_to("new")
    until(lambda: (copies / "empty").is_dir(), lambda: f"the empty directory is there: {terminal.shown}")
    until(lambda: (copies / "link").is_symlink(), lambda: f"the symlink is there: {terminal.shown}")
    until(lambda: (copies / "new").exists(), lambda: f"the new file is there: {terminal.shown}")
    assert terminal.stop() == 0
    assert (copies / "2026/cat.jpg").read_bytes() == b"meow"
    assert "Traceback" not in terminal.shown


def test_a_bad_answer_is_explained_and_asked_again(home: Path) -> None:
    """Nothing was made when somebody thinks better of it; and who wants a service is told its commands."""
    terminal = Terminal(home)
    terminal.answer("Folder to replicate", "/photos")
    terminal.answer("one level deeper", f"{home}/disk1/My Photos")
    terminal.answer("InvalidBucketName", f"{home}/disk1/photos")
    terminal.answer("Folder for the copies", f"{home}/disk1/copies")
    terminal.answer("two regions", f"{home}/disk1/photos/copies")
    terminal.answer("two regions", f"{home}/disk2/copies")
    terminal.answer("Only names that begin with", "2026/")
    terminal.answer("symlinks and hard links too", "")
    terminal.answer("Folder for the settings", f"{home}/disk1/photos/site")
    assert not (home / "disk1/.fsrepl-region.json").exists()
    terminal.answer("are replicated; choose", f"{home}/site")
    terminal.answer("already, too?", "n")
    terminal.answer("Run the daemon now", "n")
    assert terminal.end() == 0
    assert f"fsrepl --site {home}/site daemon" in terminal.shown
    assert "trees" not in (home / "disk1/photos/.fsrepl/bucket.json").read_text()
    assert (home / "disk1/photos/.fsrepl/replication.json").exists()
    assert "2026/" in (home / "disk1/photos/.fsrepl/replication.json").read_text()


def test_a_change_of_mind_leaves_nothing(home: Path) -> None:
    terminal = Terminal(home)
    terminal.answer("Folder to replicate", f"{home}/disk1/photos")
    terminal.read("Folder for the copies")
    os.write(terminal.fd, b"\x03")
    assert terminal.end() == 1
    assert "nothing was changed" in terminal.shown
    assert sorted(path.name for path in home.rglob("*")) == ["2026", "cat.jpg", "disk1", "disk2", "photos"]


@pytest.mark.parametrize(
    ("text", "kind"), [("", Usage), ("  ", Usage), ("/x", Usage), ("/x/UPPER", Refused), ("/etc/passwd", Usage)]
)
def test_what_is_no_folder_for_a_bucket(text: str, kind: type[FsreplError]) -> None:
    with pytest.raises(kind):
        folder("here", text)
