"""A bar for a person who waits for one long request: shown on a terminal once it has taken two seconds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from fsrepl.cli.common import is_terminal, state

_AFTER_S = 2.0
_LOOK_S = 0.5


@contextlib.contextmanager
def bar(what: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """While the block runs: what, done() of total. done may raise anything; the bar then stays where it is."""
    if state().quiet or not is_terminal():
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(what, total, done, ended), name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join(_LOOK_S)


def _watch(what: str, total: int, done: Callable[[], int], ended: threading.Event) -> None:
    if ended.wait(_AFTER_S):
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total or None)
        while not ended.wait(_LOOK_S):
            with contextlib.suppress(Exception):  # of another process's journal: only the bar depends on it
                progress.update(task, completed=done())
