"""The order in which tests run, and fixtures that many tests use."""

from __future__ import annotations

import codecs
import contextlib
import gc
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.doubles import Tried
from tests.world import USER

# The tests start the program a thousand times: each start compiles 150 files where none may be kept compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# A test without credentials asks no network for some, which takes seconds where no answer comes.
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
# A shell that runs the tests in the background has them ignore SIGINT, and with them each program that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The time that an example takes depends on the machine.
hypothesis.settings.register_profile("fsrepl", deadline=None)
hypothesis.settings.load_profile("fsrepl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first: a mistake shows early, and the slow tests run in the same session, the longest first.

    So no process is left with a long one when the others have none any more.
    """
    items.sort(key=_order)


def _order(item: pytest.Item) -> tuple[bool, int]:
    slow = item.get_closest_marker("slow")
    return slow is not None, -slow.args[0] if slow is not None and slow.args else 0


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over the thousands of tests that stay: it is a twentieth of their time."""
    gc.collect()
    gc.freeze()


class FastFirst:
    """Ends the session at the first slow test where a fast one has failed, so that the failure is printed minutes
    earlier."""

    failed = False

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        # With several processes the session is xdist's, and this one only receives the report of each test.
        self.runner: Any = session.config.pluginmanager.getplugin("dsession") or session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "slow" not in report.keywords:
            self.failed |= report.failed
        elif self.failed:
            self.runner.shouldstop = "a fast test failed: the slow ones are not waited for"


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(FastFirst())


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the machine has one that takes attributes: for worlds by the hundred."""
    try:
        path = Path(tempfile.mkdtemp(prefix="fsrepl-", dir="/dev/shm"))
    except OSError:
        yield tmp_path
        return
    try:
        yield path if _takes_attributes(path) else tmp_path
    finally:
        shutil.rmtree(path)


def _takes_attributes(path: Path) -> bool:
    try:
        os.setxattr(path, "user.fsrepl.probe", b"1")
    except OSError:
        return False
    return True


@pytest.fixture
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tried]:
    """The places at which earlier cases of the test were stopped, for `but`; given values, of cases that are equal in
    them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all processes
    (folder / "tried").mkdir(exist_ok=True)
    test = request.node.nodeid.partition("[")[0]

    def alike(*values: object) -> Tried:
        name = "-".join(map(str, (test, *values)))
        return Tried(folder / "tried" / re.sub(r"[^\w.]+", "-", name))

    return alike


@pytest.fixture
def users_home() -> Iterator[Path]:
    """A folder of an ordinary user, and the process runs as that user during the test.

    Not below pytest's own folder, which every other pytest that starts makes private to root.
    """
    home = Path(tempfile.mkdtemp(prefix="fsrepl-user-"))
    try:
        with _as_owner(home):
            yield home
    finally:
        shutil.rmtree(home)


@pytest.fixture
def users_memory(memory: Path) -> Iterator[Path]:
    """The same in memory, for tests that build worlds by the hundred."""
    with _as_owner(memory):
        yield memory


@contextlib.contextmanager
def _as_owner(home: Path) -> Iterator[None]:
    """Give a folder to an ordinary user, and run as that user; for root only."""
    if os.geteuid() != 0:
        yield
        return
    os.chown(home, USER, USER)
    codecs.lookup("ascii")  # the user may be unable to read files that Python loads later
    os.setegid(USER)
    os.seteuid(USER)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
