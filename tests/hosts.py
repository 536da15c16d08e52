"""A region on another machine without ssh: its agent in this process, over a pair of sockets; worlds that use it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from msgspec.structs import replace

from fsrepl.commands import hosts, operations
from fsrepl.daemon import agent_home
from fsrepl.daemon.agent import Agent, Commands
from fsrepl.daemon.served_region import ServedRegion
from fsrepl.daemon.ssh_region import SshRegion
from fsrepl.errors import Unavailable
from fsrepl.link.host import Host
from fsrepl.model.version import Version
from fsrepl.settings import FILE, HostSettings, reading
from fsrepl.storage import versions
from fsrepl.storage.fs import Fs
from fsrepl.storage.site import Site
from fsrepl.views import resting
from tests.doubles import UnsyncedFs
from tests.waiting import until
from tests.world import DESTINATION, SOURCE, World

COMMANDS = Commands(operations.run, hosts.attach)


class InProcess:
    """See link.ssh.Process: an agent in a thread. cut_after: the connection ends after so many bytes of the site's."""

    def __init__(self, root: Path, fs: Fs, cut_after: int | None = None) -> None:
        mine, theirs = socket.socketpair()
        if cut_after is not None:
            theirs = _cutting(theirs, cut_after)
        self.read_fd, self.write_fd = os.dup(mine.fileno()), os.dup(mine.fileno())
        self._mine = mine
        fd = theirs.detach()
        self.agent = Agent(fd, fd, root, root.parent / "agents", COMMANDS, 0o022, fs)
        self.thread = threading.Thread(target=self.agent.run, name="agent", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._mine.shutdown(socket.SHUT_RDWR)
        self._mine.close()
        self.thread.join(20)

    def why_ended(self) -> str:
        """Nothing, but only once the agent has ended, as a process does."""
        self.thread.join(20)
        return ""


def _cutting(theirs: socket.socket, cut_after: int) -> socket.socket:
    """A socket that is connected to another one, until so many bytes have come from there."""
    inner, outer = socket.socketpair()

    def pass_on(one: socket.socket, other: socket.socket, left: int | None, before: threading.Thread | None) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 16 if left is None else max(1, min(left, 1 << 16))):
                other.sendall(data)
                if left is not None and (left := left - len(data)) <= 0:
                    break
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        if before is not None:
            before.join()
            one.close()
            other.close()

    there = threading.Thread(target=pass_on, args=(theirs, inner, cut_after, None), daemon=True)
    there.start()
    threading.Thread(target=pass_on, args=(inner, theirs, None, there), daemon=True).start()
    return outer


class FarWorld(World):
    """A world whose region west is on another machine: `path`, `history` and the like look at it there.

    away: why no connection can be made; empty where it can. cuts: yields the number of bytes after which each
    connection ends, or None.
    """

    def __init__(
        self, home: Path, *, lines: str = "", replicate: bool = True, fs: Fs | None = None, **more: Any
    ) -> None:
        self.far = home / "there" / "west"
        self.far_fs, self.why_away = UnsyncedFs(), ""
        self.cuts: Iterator[int | None] | None = None
        self.connections: list[InProcess] = []
        self._launch, Host.launch = Host.launch, self._connect  # type: ignore[assignment]
        super().__init__(home, replicate=False, buckets=(SOURCE,), fs=fs, **more)
        self.run("region.add", name="west", path=f"ssh://host{self.far}")
        if lines:
            with self.settings.path.open("a") as file:
                file.write(lines)
        self.settings = reading.load(self.settings.path)
        self.restart()
        self.run("bucket.create", bucket=DESTINATION, versioning=True)
        if replicate:
            self.run("replication.enable", source=SOURCE, destination=DESTINATION)

    def _connect(self, settings: HostSettings) -> InProcess:
        if self.why_away:
            raise Unavailable(self.why_away)
        self.far_fs.interrupted = False  # as in a new process
        made = InProcess(self.home / "there", self.far_fs, next(self.cuts) if self.cuts is not None else None)
        self.connections.append(made)
        return made

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, error, tb)
        self.disconnect()
        Host.launch = self._launch  # type: ignore[method-assign]

    def disconnect(self) -> None:
        """End all connections, as when the network is gone, and wait for the agents."""
        for each in self.connections:
            each.stop()
        self.connections.clear()

    def restart(self, *, fs: Fs | None = None, without_journal: bool = False) -> None:
        self.disconnect()
        super().restart(fs=fs, without_journal=without_journal)

    @property
    def west(self) -> SshRegion:
        found = self.engine.receivers["west"]
        assert isinstance(found, SshRegion)
        return found

    def flush_settling(self) -> None:
        super().flush_settling()
        self._rest_there()
        self.west._next_try_s = 0.0
        for queue in self.west.queues.values():
            queue.retry_now()

    def _rest_there(self) -> None:
        """Make the directories there be at rest."""
        for each in self.connections:
            engine = each.agent._engine
            if engine is None:
                continue

            def rest(region: ServedRegion = engine.served) -> None:
                for state in region.states.values():
                    resting.note_touched(state)
                    state.views.resting = {path: replace(r, due_s=0.0) for path, r in state.views.resting.items()}

            with contextlib.suppress(Unavailable):  # it ends
                engine.served.ask(rest)

    def settle(self) -> None:
        """As World.settle; tries are repeated until none is left, since the agent gives back what it cannot do yet."""
        super().settle()

        def is_settled() -> bool:
            is_idle = not self.west._table.under_way and all(
                queue.next_s() is None for queue in self.west.queues.values()
            )
            if self.why_away or is_idle:
                return True
            super(FarWorld, self).settle()
            return False

        until(is_settled, "nothing is to be tried again")

    def path(self, key: str = "", bucket: str = SOURCE) -> Path:
        region, name = bucket.split("/")
        return self.far / name / key if region == "west" else super().path(key, bucket)

    def far_site(self) -> Site:
        return Site(reading.load(self.far / agent_home.LINK / FILE), self.far_fs)

    def history(self, bucket: str) -> dict[bytes, list[Version]]:
        if not bucket.startswith("west/"):
            return super().history(bucket)
        out: dict[bytes, list[Version]] = {}
        with self.far_site().bucket(bucket).open() as opened:
            for version in versions.read_all(opened):
                out.setdefault(version.key, []).append(version)
        return {key: sorted(found, key=lambda v: v.order) for key, found in sorted(out.items())}
