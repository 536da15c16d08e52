"""The folder of an agent in its region, .fsrepl-agent: whose it is, which site is served, and one process at a time.

It is the state folder of a site with that one region, so that commands work on this machine as well: `fsrepl --site
/srv/eu/.fsrepl-agent ls eu/photos`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from pathlib import Path

from fsrepl.daemon.lock import Lock
from fsrepl.errors import Away, Refused, Usage
from fsrepl.link.frames import Hello
from fsrepl.model import json_text
from fsrepl.settings import FILE
from fsrepl.settings.toml import quoted

STATE = ".fsrepl-agent"
_SERVING = "serving.json"
_LOCK_S = 12.0
_TERM_S = 4.0
_LOOK_S = 0.05


def within(root: Path, path: str) -> Path:
    """The real path of a region, below the root. Raises Refused."""
    found, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if found != top and top not in found.parents:
        raise Refused("AccessDenied", f"{path} is not below {root}, which is all that this agent serves (--root)")
    return found


def check_state(state: Path, path: Path, *, makes: bool, umask: int) -> None:
    """Whether the agent's folder is there and nobody else's. makes: make it and the region's directory, which has the
    modes of this umask. Raises Away, Usage, Refused, OSError."""
    try:
        found = os.lstat(state)
    except FileNotFoundError:
        if not makes and not path.is_dir():
            raise Away(f"{path} is not there (not mounted?)") from None
        if not makes:
            raise Away(f"{path} has no {STATE} (not mounted?)") from None
        before = os.umask(umask)
        try:
            path.mkdir(parents=True, exist_ok=True)
        finally:
            os.umask(before)
        state.mkdir(mode=0o700)
        found = os.lstat(state)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        raise Refused("AccessDenied", f"{state} is not a folder of the user that this agent runs as")


def is_there(state: str, began: os.stat_result) -> bool:
    """Whether the agent's folder is the one with which it began: otherwise the region is away, and what stands in its
    place is not written to."""
    try:
        return os.path.samestat(os.stat(state, follow_symlinks=False), began)
    except OSError:
        return False


def acquire(lock: Lock, state: Path, hello: Hello) -> None:
    """Take the region's lock; from an agent that an earlier connection of the same site left behind, too.

    Raises Away where another process has it.
    """
    began_s = time.monotonic()
    asked = 0
    while not lock.try_acquire():
        waited_s = time.monotonic() - began_s
        holder = lock.holder()
        if hello.evicts and holder.isdigit() and _is_left_behind(state, hello, int(holder)):
            if asked == 0 or (asked == 1 and waited_s > _TERM_S):
                _end_process(int(holder), signal.SIGTERM if asked == 0 else signal.SIGKILL)
                asked += 1
        elif waited_s > _TERM_S:
            raise Away(f"another process (pid {holder}) serves the region or works in it; one may")
        if waited_s > _LOCK_S:
            raise Away(f"another process (pid {holder}) serves the region, and does not end")
        time.sleep(_LOOK_S)


def _is_left_behind(state: Path, hello: Hello, pid: int) -> bool:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json_text.loads((state / _SERVING).read_text())
        return bool(found["site"] == hello.site and found["pid"] == pid and pid != os.getpid())
    return False


def _end_process(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, number)
        finally:
            os.close(fd)


def note_site(state: Path, hello: Hello) -> None:
    """Note which site is served; another one must attach the region first. Raises Usage."""
    path = state / _SERVING
    with contextlib.suppress(FileNotFoundError, ValueError):
        found = json_text.loads(path.read_text())
        if isinstance(found, dict) and found.get("site") not in (None, hello.site) and not hello.takes:
            raise Usage(
                f"the site {found.get('where')} has attached this region; "
                f"`fsrepl region add {hello.name}=ssh://…` takes it over"
            )
    text = json.dumps({"site": hello.site, "where": hello.where, "pid": os.getpid()})
    new = state / (_SERVING + ".new")
    new.write_text(text)
    new.rename(path)


def write_settings(state: Path, hello: Hello, path: Path) -> None:
    """Make the state folder a site, so that commands work on this machine too: `fsrepl --site …/.fsrepl-agent ls`."""
    text = (
        "# Written by `fsrepl agent`, which serves this region to a site on another machine.\n"
        f"state = {quoted(str(state))}\n\n[regions.{quoted(hello.name)}]\npath = {quoted(str(path))}\n"
        f"sharing = {quoted(hello.sharing)}\n"
    )
    file = state / FILE
    with contextlib.suppress(OSError):
        if file.read_text() == text:
            return
    new = state / (FILE + ".new")
    new.write_text(text)
    new.rename(file)
