"""The doctor's findings: looked for in a thread of their own, one look at a time, so that no page waits for them.

A look walks all trees, which takes seconds of processor time at a million objects, and for ever where a disk hangs. A
page shows the findings of the last look with its time, and those of the next once it is done.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence

from msgspec import Struct

from fsrepl.commands.doctor import Finding
from fsrepl.errors import FsreplError, reason

log = logging.getLogger("fsrepl")

_FRESH_S = 2.0
_SHARE = 20
"""A look that took a second is shown for so many seconds, unless a visitor asks for another."""


class Looked(Struct, frozen=True):
    """A look that is done. ended_s counts from the epoch; trouble: why there are no findings."""

    findings: Sequence[Finding]
    ended_s: float
    took_s: float
    trouble: str = ""


class Diagnosis(Struct, frozen=True):
    """The last look, None where none is done yet; and since when another one goes on, 0 where none does."""

    looked: Looked | None
    looking_since_s: float


class Diagnoses:
    """look: finds all, however long that takes. Raises FsreplError, OSError, sqlite3.Error."""

    def __init__(self, look: Callable[[], Sequence[Finding]]) -> None:
        self._look = look
        self._changed = threading.Condition()
        self._looked: Looked | None = None
        self._since_s = 0.0

    def known(self) -> Diagnosis:
        with self._changed:
            return Diagnosis(self._looked, self._since_s)

    def ask(self, *, again: bool, wait_s: float) -> Diagnosis:
        """Begin a look where the last one is old, or another is asked for; the findings that are known a moment
        later."""
        with self._changed:
            if not self._since_s and (again or not self._is_fresh()):
                self._since_s = time.time()
                threading.Thread(target=self._run, name="doctor", daemon=True).start()
            self._changed.wait_for(lambda: not self._since_s, wait_s)
            return Diagnosis(self._looked, self._since_s)

    def _is_fresh(self) -> bool:
        last = self._looked
        return last is not None and 0 <= time.time() - last.ended_s < max(_FRESH_S, _SHARE * last.took_s)

    def _run(self) -> None:
        began_s, findings, trouble = time.monotonic(), list[Finding](), ""
        try:
            findings = list(self._look())
        except (FsreplError, OSError, sqlite3.Error) as error:
            trouble = reason(error)
        except Exception as error:
            log.exception("console: the doctor")
            trouble = f"an unexpected error: {type(error).__name__}; the console's log has it"
        with self._changed:
            self._looked = Looked(findings, time.time(), time.monotonic() - began_s, trouble)
            self._since_s = 0.0
            self._changed.notify_all()
