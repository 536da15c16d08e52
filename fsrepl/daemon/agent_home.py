"""The state of an agent: where it is, whose it is, which site is served, and one process at a time.

It lies outside of the region, as a site's does, so that an idle agent keeps no file of the region open, and the region
can be unmounted. It is named after the region's identity, and so found again wherever the region is mounted. It is the
state folder of a site with that one region, and `.fsrepl-agent` in the region is a link to it, so that commands work on
this machine as well: `fsrepl --site /srv/eu/.fsrepl-agent ls eu/photos`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import stat
import time
import uuid
from pathlib import Path

from fsrepl.daemon import control, lock
from fsrepl.daemon.lock import Lock
from fsrepl.errors import Away, FsreplError, Refused, Usage, reason
from fsrepl.link.frames import Hello
from fsrepl.model import json_text
from fsrepl.settings import FILE
from fsrepl.settings.toml import quoted
from fsrepl.storage import documents
from fsrepl.storage.fs import Fs
from fsrepl.storage.root import REGION_IDENTITY

LINK = ".fsrepl-agent"
SYSTEM_STATES = Path("/var/lib/fsrepl-agent")
_SERVING = "serving.json"
_LOCK_S = 12.0
_TERM_S = 4.0
_LOOK_S = 0.05


def states() -> Path:
    """The folder of all agents' states: root's own, or the user's. Source: XDG Base Directory Specification."""
    if os.geteuid() == 0:
        return SYSTEM_STATES
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "fsrepl" / "agents"


def within(root: Path, path: str) -> Path:
    """The real path of a region, below the root. Raises Refused."""
    found, top = Path(os.path.realpath(path)), Path(os.path.realpath(root))
    if found != top and top not in found.parents:
        raise Refused("AccessDenied", f"{path} is not below {root}, which is all that this agent serves (--root)")
    return found


def identity_of(fs: Fs, path: Path, hello: Hello) -> str:
    """The identity of the region at a path; a new one where there is none yet, and one is to be made.

    Raises Away where there is none (not mounted), Usage where it cannot be read or another one was expected.
    """
    found: object = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            with documents.open_directory(fs, path) as at:
                found = (documents.read_document(fs, at, REGION_IDENTITY) or {}).get("uuid")
            if found is not None:
                return str(uuid.UUID(str(found)))  # it names a folder
        except ValueError as error:
            raise Usage(f"the identity of the region at {path} cannot be read: {error}") from error
    if not hello.takes:
        raise Away(f"{path} has no {REGION_IDENTITY.decode()} (not mounted?)")
    if hello.uuid and not hello.replaces:
        raise Usage(
            f"{path} is not the region {hello.name} that this site knows (no {REGION_IDENTITY.decode()}); mount it, or "
            "if its disk is lost, name the new directory with --replace"
        )
    return str(uuid.uuid4())


def check_state(state: Path, hello: Hello) -> bool:
    """Whether the state was made now. Raises Usage where there is none and none is to be made, or it cannot be made;
    Refused where it is another user's."""
    is_new = False
    try:
        if hello.takes and not os.path.lexists(state):
            state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            state.mkdir(mode=0o700)
            is_new = True
        found = os.lstat(state)
    except FileNotFoundError:
        raise Usage(
            f"this user has no state of that region in {state.parent}: another user served it, or it is lost; "
            f"`fsrepl region add {hello.name}=ssh://…` attaches the region again"
        ) from None
    except OSError as error:
        raise Usage(
            f"the state {state} cannot be kept: {reason(error)}; `fsrepl agent --state DIR` keeps it in another folder"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
        raise Refused("AccessDenied", f"{state} is not a folder of the user that this agent runs as")
    return is_new


def _make_durable(state: Path) -> None:
    """Make a folder survive a power cut, with its name. Raises OSError.

    Not by sync(2), which waits for all the disks of the machine, and tells of no failure.
    """
    at = os.open(state.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        Fs().sync_all(at)
    finally:
        os.close(at)


def bring_over(path: Path, state: Path, hello: Hello) -> bool:
    """Move the state that earlier builds kept in the region; whether there was one.

    State in the region is newer than state outside of it: the move was interrupted, or an earlier build ran since.
    Raises Away, Usage, Refused.
    """
    former, staged = path / LINK, state.with_name(state.name + ".new")
    try:
        found = os.lstat(former)
    except OSError:
        return False
    if not stat.S_ISDIR(found.st_mode):
        return False
    if found.st_uid not in (0, os.geteuid()):
        raise Refused("AccessDenied", f"{former} is not a folder of the user that this agent runs as")
    with Lock(former) as held:
        acquire(held, former, hello)
        try:
            state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.rmtree(staged, ignore_errors=True)
            unneeded = shutil.ignore_patterns(lock.FILE, control.SOCKET, "*-shm")
            shutil.copytree(former, staged, ignore=unneeded)
            staged.chmod(0o700)
            shutil.rmtree(state, ignore_errors=True)
            staged.rename(state)
            _make_durable(state)  # before it is removed here
            shutil.rmtree(former)
        except (OSError, shutil.Error) as error:
            raise Usage(
                f"the state in {former} cannot be moved to {state}: {error}; `fsrepl agent --state DIR` keeps it in "
                "another folder"
            ) from error
    return True


def link_to(path: Path, state: Path) -> None:
    """Make the link in the region that leads to the state."""
    link = path / LINK
    with contextlib.suppress(OSError):  # it is for people
        if os.path.lexists(link) and not link.is_symlink():
            return
        if not link.is_symlink() or os.readlink(link) != str(state):
            new = link.with_name(LINK + ".new")
            new.unlink(missing_ok=True)
            new.symlink_to(state)
            new.rename(link)


def forget(states: Path, hello: Hello) -> None:
    """Remove the state of a region that was lost and replaced, unless it serves another site since, or is in use."""
    with contextlib.suppress(ValueError, OSError, FsreplError):
        state = states / str(uuid.UUID(hello.uuid))
        found = json_text.loads((state / _SERVING).read_text())
        with Lock(state) as held:
            if isinstance(found, dict) and found.get("site") == hello.site and held.try_acquire():
                shutil.rmtree(state)


def acquire(held: Lock, state: Path, hello: Hello) -> None:
    """Take the region's lock; from an agent that an earlier connection of the same site left behind, too.

    Raises Away where another process has it.
    """
    began_s = time.monotonic()
    asked = 0
    while not held.try_acquire():
        waited_s = time.monotonic() - began_s
        holder = held.holder()
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
    """Make the state folder a site, so that commands work on this machine too."""
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
