"""What a person sees who waits: a bar on the terminal for whatever takes over two seconds.

Each request to the daemon has one (common.Performer), which says only what is being done and for how long; a command
that knows how far it is shows that instead. Bars do not nest: within one, another shows nothing.
"""

from __future__ import annotations

import contextlib
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
    """Around a bar of a command's own: no other is shown within it."""
    global _is_shown
    before, _is_shown = _is_shown, True
    try:
        yield
    finally:
        _is_shown = before


@contextlib.contextmanager
def bar(what: str, total: int = 0, done: Callable[[], int] | None = None) -> Iterator[None]:
    """While the block runs: what, done() of total, and the time so far. total 0: unknown. done may raise anything; the
    bar then stays where it is. Without done it says only that the command is busy."""
    if not is_wanted():
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(what, total, done, ended), name="progress", daemon=True)
    watcher.start()
    try:
        with alone():
            yield
    finally:
        ended.set()
        watcher.join(_END_S)  # it erases the bar before the answer is printed


def _watch(what: str, total: int, done: Callable[[], int] | None, ended: threading.Event) -> None:
    if ended.wait(_AFTER_S):
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    if ended.is_set():
        return
    counts = [MofNCompleteColumn()] if done is not None else []
    columns = (TextColumn("{task.description}"), BarColumn(), *counts, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(what), total=total or None)
        while not ended.wait(_LOOK_S):
            with contextlib.suppress(Exception):  # of another process's journal: only the bar depends on it
                progress.update(task, completed=done() if done is not None else 0)
