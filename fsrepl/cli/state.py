"""The options before the command, and whether a person watches."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fsrepl.errors import Unavailable
from fsrepl.settings import reading

if TYPE_CHECKING:
    from fsrepl.settings import Settings


@dataclass
class State:
    """The options before the command, and the settings once they were read."""

    site: Path | None = None
    verbose: int = 0
    quiet: bool = False
    _settings: Settings | None = field(default=None, repr=False)

    @property
    def settings(self) -> Settings:
        """The site's settings. Raises Usage where there is no site, or its settings are invalid.

        Regions are compared by their paths as they are written: real paths need the filesystems of all regions, and one
        that hangs is no reason that a command for another one does.
        """
        return self._settings or self.read_settings(os.path.normpath)

    @property
    def checked_settings(self) -> Settings:
        """The settings, with regions compared by real path as far as they answer: for the process that works."""
        from fsrepl.storage import probe

        return self.read_settings(partial(probe.real_path, ask=partial(probe.by_process, within_s=probe.LOOK_S)))

    def read_settings(self, real: Callable[[str], str]) -> Settings:
        """Read the settings. real: resolves the symlinks of a region's path.

        Raises Unavailable where the state folder gives no answer: nothing can be shown or done without it.
        """
        from fsrepl.storage import probe  # takes some milliseconds, which `--version` and completion do not need

        found = reading.load(reading.find(self.site, os.environ), real)
        if self._settings is None and probe.silent({"state": partial(_look_into, found.state)}, probe.LOOK_S):
            raise Unavailable(f"the state of this site, {found.state}: {probe.no_answer(probe.LOOK_S)}")
        self._settings = found
        return found


def _look_into(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "identities.json").read_bytes()


_current = State()


def set_state(given: State) -> None:
    """Keep the options before the command: a process runs one command."""
    global _current
    _current = given


def state() -> State:
    return _current


def is_terminal() -> bool:
    """Whether a person watches stderr: progress is for people only. NO_COLOR wants no colours, which rich obeys."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
