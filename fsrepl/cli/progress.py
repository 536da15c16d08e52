"""Progress for a person who waits: a bar on the terminal for each step that takes over two seconds.

Each request has a bar (common.Performer): the bar says what is being done and for how long, and, where the operation
counts itself, how much is done. A command that knows more shows that instead. Bars do not nest: an inner bar shows
nothing.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

from fsrepl.cli.state import is_terminal, state

_AFTER_S = 2.0
_LOOK_S = 0.5
_END_S = 5.0

_is_shown = False


def is_wanted() -> bool:
    """Whether anybody sees a bar, and none is shown yet."""
    return not _is_shown and not state().quiet and is_terminal()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Around a command's own display: no bar is shown within it."""
    global _is_shown
    before, _is_shown = _is_shown, True
    try:
        yield
    finally:
        _is_shown = before


@contextlib.contextmanager
def bar(
    what: str, total: int = 0, done: Callable[[], int] | None = None, far: Callable[[], tuple[int, int]] | None = None
) -> Iterator[None]:
    """While the block runs: what is done, done() of total, and the time so far. far: done and total together, where the
    total is not known before. total 0: unknown. done and far may raise anything; the bar then stays as it is. Without
    both it says only that the command is busy."""
    if far is None and done is not None:
        far = functools.partial(_of, total, done)
    if not is_wanted():
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(what, far, ended), name="progress", daemon=True)
    watcher.start()
    try:
        with alone():
            yield
    finally:
        ended.set()
        watcher.join(_END_S)  # it erases the bar before the answer is printed


def _of(total: int, done: Callable[[], int]) -> tuple[int, int]:
    return done(), total


def _watch(what: str, far: Callable[[], tuple[int, int]] | None, ended: threading.Event) -> None:
    if ended.wait(_AFTER_S):
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    if ended.is_set():
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[counts]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(what), total=None, counts="")
        while not ended.is_set():
            with contextlib.suppress(Exception):  # of another process's journal, or the daemon: only the bar needs it
                done, total = far() if far is not None else (0, 0)
                progress.update(task, completed=done, total=total or None, counts=_counts(done, total))
            if ended.wait(_LOOK_S):
                return


def _counts(done: int, total: int) -> str:
    if total:
        return f"{done:,}/{total:,}"
    return f"{done:,}" if done else ""
