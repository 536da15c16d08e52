"""Comparisons of a source with its replicas: `fsrepl verify`, each in a process of its own.

A comparison reads every version, which takes hours where there is much; it can be stopped, and ends with the console.
Its answer is a file without a name, which goes with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from msgspec import Struct

from fsrepl.commands.reader import Document
from fsrepl.errors import Refused
from fsrepl.model import json_text

_KEPT = 20
_RUNNING_MAX = 2
_ANSWER_MAX_BYTES = 16 << 20
_TROUBLE_MAX_BYTES = 4096


class Verification(Struct):
    """One comparison. began_s counts from the epoch; took_s is None while it runs."""

    number: int
    source: str
    repair: bool
    began_s: float
    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    errors: IO[bytes]
    took_s: float | None = None
    stopped: bool = False

    def document(self) -> Document:
        """The state of the verification: {"Number", "Source", "Repair", "Began", "Status", "Seconds"}."""
        return {
            "Number": self.number,
            "Source": self.source,
            "Repair": self.repair,
            "Began": self.began_s,
            "Status": self._status(),
            "Seconds": time.time() - self.began_s if self.took_s is None else self.took_s,
        }

    def _status(self) -> str:
        if self.took_s is None:
            return "Running"
        if self.stopped:
            return "Stopped"
        return {0: "No difference", 1: "Differences"}.get(self.process.returncode, "Failed")

    def result(self) -> tuple[Document | None, str]:
        """The answer as `fsrepl verify --json` gives it, None where there is none or it is too long; and its stderr."""
        self.errors.seek(0)
        said = self.errors.read(_TROUBLE_MAX_BYTES).decode("utf-8", "replace").strip()
        self.answer.seek(0)
        data = self.answer.read(_ANSWER_MAX_BYTES + 1)
        if len(data) > _ANSWER_MAX_BYTES:
            return None, f"there are too many differences to show; `fsrepl verify {self.source}` prints them"
        try:
            found: Document = json_text.loads(data)
        except ValueError:
            return None, said
        return found, said


class Verifications:
    """The comparisons that this console began, the newest last."""

    def __init__(self, settings: Path) -> None:
        """settings: the site's fsrepl.toml."""
        self._settings = settings
        self._guard = threading.Lock()
        self._all: list[Verification] = []
        self._number = 0

    def start(self, source: str, *, repair: bool) -> Verification:
        """Begin a comparison. Raises Refused where too many run, or one of the same source."""
        with self._guard:
            running = [each for each in self._all if each.took_s is None]
            if any(each.source == source for each in running):
                raise Refused("InvalidRequest", f"{source} is being compared already")
            if len(running) >= _RUNNING_MAX:
                raise Refused("SlowDown", f"{len(running)} comparisons run already; wait for one of them, or stop it")
            self._number += 1
            answer, errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (they outlive this call)
            command = [
                sys.executable, "-P", "-m", "fsrepl", "--site", str(self._settings.parent), "verify", source, "--json",
                *(["--repair"] if repair else []),
            ]  # fmt: skip
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=answer, stderr=errors)
            found = Verification(self._number, source, repair, time.time(), process, answer, errors)
            self._all.append(found)
            self._forget_old()
        threading.Thread(target=self._wait, args=(found,), name=f"verify {source}", daemon=True).start()
        return found

    def _wait(self, verification: Verification) -> None:
        verification.process.wait()
        verification.took_s = time.time() - verification.began_s

    def _forget_old(self) -> None:
        ended = [each for each in self._all if each.took_s is not None]
        for each in ended[: max(0, len(self._all) - _KEPT)]:
            self._all.remove(each)
            each.answer.close()
            each.errors.close()

    def all(self) -> list[Verification]:
        with self._guard:
            return list(self._all)

    def find(self, number: int) -> Verification:
        """Raises Refused where there is none of that number, or it is so old that it was forgotten."""
        for each in self.all():
            if each.number == number:
                return each
        raise Refused("NoSuchJob", f"there is no comparison {number}; those of an earlier console are forgotten")

    def stop(self, number: int) -> None:
        found = self.find(number)
        found.stopped = found.took_s is None
        found.process.terminate()

    def stop_all(self) -> None:
        for each in self.all():
            if each.took_s is None:
                each.stopped = True
                each.process.terminate()
