"""Questions to a filesystem that may hang, each with a deadline.

What touches a frozen disk or a dead server waits in the kernel, often where no signal reaches it. A command asks in
a process of its own that it leaves behind: with a thread that hangs it could not end. The daemon, which stays, asks in
a thread, and no second time while that thread hangs.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

ANSWER_S = 5.0

Questions = Mapping[str, Callable[[], Any]]
Asker = Callable[[Questions], dict[str, Any]]
"""Asks all of them side by side; the answers of those that answered in time."""


def no_answer(within_s: float = ANSWER_S) -> str:
    return f"no answer in {within_s:g} s: its filesystem hangs, or is frozen"


# -- by a command


def silent(questions: Questions, within_s: float = ANSWER_S) -> frozenset[str]:
    """Those that have no answer in time, however it turns out."""
    with selectors.DefaultSelector() as answers:
        asked = {name: _fork(what) for name, what in questions.items()}
        for name, (_, answer) in asked.items():
            answers.register(answer, selectors.EVENT_READ, name)
        missing, until_s = set(asked), time.monotonic() + within_s
        while missing and (left_s := until_s - time.monotonic()) > 0:
            for key, _ in answers.select(left_s):
                answers.unregister(key.fileobj)
                missing.discard(key.data)
    for name, (child, answer) in asked.items():
        os.close(answer)
        if name in missing:
            os.kill(child, signal.SIGKILL)  # it ends when the filesystem lets go of it, and is init's by then
        else:
            os.waitpid(child, 0)
    return frozenset(missing)


def _fork(what: Callable[[], object]) -> tuple[int, int]:
    """Do something in a child; its pid, and a descriptor that can be read when that is done."""
    done, mine = os.pipe()
    child = os.fork()
    if child:
        os.close(mine)
        return child, done
    try:  # whoever reads our output, or waits for our lock, must not wait for a child that hangs
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nothing, fd)
        os.dup2(mine, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        what()
    finally:
        os._exit(0)  # which closes the pipe


def by_process(questions: Questions, within_s: float = ANSWER_S) -> dict[str, Any]:
    """Ask in processes, and again here where there was an answer."""
    missing = silent(questions, within_s)
    return {name: what() for name, what in questions.items() if name not in missing}


# -- by the daemon


class Threads:
    """Asks in threads: one for each question at a time, whoever asks it meanwhile."""

    def __init__(self, within_s: float = ANSWER_S) -> None:
        self._within_s = within_s
        self._guard = threading.Lock()
        self._asked: dict[str, Future[Any]] = {}

    def ask(self, questions: Questions) -> dict[str, Any]:
        with self._guard:
            for name, what in questions.items():
                known = self._asked.get(name)
                if known is None or known.done():
                    self._asked[name] = _begin(name, what)
            asked = {name: self._asked[name] for name in questions}
        wait(asked.values(), self._within_s)
        return {name: answer.result() for name, answer in asked.items() if answer.done()}


def _begin(name: str, what: Callable[[], Any]) -> Future[Any]:
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(what())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name=f"probe {name}", daemon=True).start()
    return answer
