"""Operations that take long count themselves, for whoever waits for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from fsrepl.errors import Unavailable
from fsrepl.region.under_way import Task, Tasks
from tests.world import DESTINATION, SOURCE, World

RULES = {"Rules": [{"ID": "a", "Filter": {"Prefix": "x"}, "Status": "Enabled", "Expiration": {"Days": 1}}]}


def test_a_task_is_known_while_it_runs() -> None:
    """Also where it fails; another of the same name does not end it."""
    tasks = Tasks()
    assert (tasks.find("a").done, tasks.find("a").total) == (0, 0)
    with tasks.begin("a", 2) as first:
        first.add(3)
        assert (tasks.find("a").done, tasks.find("a").total) == (3, 3)
        with contextlib.suppress(Unavailable), tasks.begin("a") as second:
            second.add(1)
            assert tasks.find("a") is second
            raise Unavailable("it failed")
    assert tasks.find("a") == Task()


class Kept(Tasks):
    """Keeps the tasks that have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Task] = {}

    @contextlib.contextmanager
    def begin(self, request: str, total: int = 0) -> Iterator[Task]:
        with super().begin(request, total) as task:
            self.seen[request] = task
            yield task


def test_they_count_up_to_their_total(tmp_path: Path) -> None:
    """Deliveries that are tried again, keys that are judged, files that are removed."""
    with World(tmp_path) as world:
        kept = world.engine.tasks = Kept()
        world.run("versioning.set", bucket=DESTINATION, status="Suspended")
        for name, content in (("d/0", b"x"), ("d/1", b"x"), ("d/0", b"y")):
            world.write(name, content)
            world.settle()
        world.run("retry", scope=SOURCE)
        world.run("lifecycle.put", bucket=SOURCE, document=RULES)
        world.run("lifecycle.run", bucket=SOURCE)
        world.run("bucket.rm", bucket=SOURCE, purge=True)
    retried, judged, removed = kept.seen.values()
    assert (retried.done, retried.total) == (3, 3)
    assert (judged.done, judged.total) == (2, 2)
    assert removed.done == removed.total
    assert removed.done >= 3 + 2  # versions and views, and the bucket's documents
    assert [*kept.seen] == [f"retry {SOURCE}", f"lifecycle run {SOURCE}", f"bucket rm {SOURCE}"]
