"""Queries to a filesystem that may hang, each with a deadline.

Access to a frozen disk or a dead server blocks in the kernel, often where no signal reaches it. A command asks in a
child process that it can leave behind, since a blocked thread would keep it from ending. The daemon, which stays, asks
in a thread, and does not ask again while that thread is blocked.
"""

from __future__ import annotations

import os
import selectors
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

ANSWER_S = 5.0
LOOK_S = 1.0
"""For a command that shows many regions, and does not wait long for one."""

Questions = Mapping[str, Callable[[], Any]]
Asker = Callable[[Questions], dict[str, Any]]
"""A function that asks all questions in parallel; the answers that arrived in time."""


def no_answer(within_s: float = ANSWER_S) -> str:
    return f"no answer in {within_s:g} s: its filesystem hangs, or is frozen"


def real_path(path: str, ask: Asker) -> str:
    """The real path; of what gives no answer, the names as they are written."""
    question = f"path {path}"
    answers = ask({question: partial(os.path.realpath, path)})
    if answers or path == "/":
        return str(answers.get(question, path))
    above, name = os.path.split(path)
    return os.path.join(real_path(above, ask), name)


# -- by a command


def silent(questions: Questions, within_s: float = ANSWER_S) -> frozenset[str]:
    """The questions that got no answer in time.

    A child that has the processor, or waits for it, hangs in no filesystem: on a busy machine it has ANSWER_S.
    """
    with selectors.DefaultSelector() as answers:
        asked = {name: _fork(what) for name, what in questions.items()}
        for name, (_, answer) in asked.items():
            answers.register(answer, selectors.EVENT_READ, name)
        missing, began_s = set(asked), time.monotonic()
        while missing:
            waited_s = time.monotonic() - began_s
            if waited_s >= within_s and (
                waited_s >= ANSWER_S or not any(_is_runnable(asked[name][0]) for name in missing)
            ):
                break
            for key, _ in answers.select(max(_RUNNABLE_S, within_s - waited_s)):
                answers.unregister(key.fileobj)
                missing.discard(key.data)
    for name, (child, answer) in asked.items():
        os.close(answer)
        if name in missing:
            os.kill(child, signal.SIGKILL)  # it ends when the filesystem responds, as a child of init by then
        else:
            os.waitpid(child, 0)
    return frozenset(missing)


_RUNNABLE_S = 0.02


def _is_runnable(child: int) -> bool:
    """Whether a process runs, or waits for nothing but the processor. Source: proc(5), stat."""
    try:
        with open(f"/proc/{child}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False


def _fork(what: Callable[[], object]) -> tuple[int, int]:
    """Run a function in a child process; its pid, and a descriptor that becomes readable when it is done."""
    done, mine = os.pipe()
    child = os.fork()
    if child:
        os.close(mine)
        return child, done
    try:  # a reader of the output, or a waiter for the lock, must not wait for a blocked child
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nothing, fd)
        os.dup2(mine, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        what()
    finally:
        os._exit(0)  # closes the pipe


def by_process(questions: Questions, within_s: float = ANSWER_S) -> dict[str, Any]:
    """Ask in child processes, then again in this one where an answer came."""
    missing = silent(questions, within_s)
    return {name: what() for name, what in questions.items() if name not in missing}


# -- by the daemon


class Threads:
    """Questions asked in threads, with one thread per question at a time, however often it is asked meanwhile."""

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
