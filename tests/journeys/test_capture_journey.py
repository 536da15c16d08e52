"""Captures by a real daemon: the changes that programs make to trees, and what `wait` promises about them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.site import DESTINATION, SOURCE, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path) as found:
        found.start()
        yield found


def make_tree(top: Path, files: int = 120) -> Path:
    for i in range(files):
        path = top / f"a{i % 7}/b{i % 3}/f{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % i * i)
        os.utime(path, (i * 1000, i * 100_000))
    return top


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
def test_rsync_over_and_over(site: Site, tmp_path: Path) -> None:
    """G6, P2: rsync's temporary names make no version, and the times it gives to directories hide no later change."""
    tree, top = make_tree(tmp_path / "tree"), site.path("copy")
    subprocess.run(["rsync", "-a", f"{tree}/", f"{top}/"], check=True)
    site.wait()
    site.in_step()
    assert len(site.tree(DESTINATION)) == 120
    for i in range(0, 120, 7):
        path = tree / f"a{i % 7}/b{i % 3}/f{i}"
        path.write_bytes(path.read_bytes() + b"more")
    shutil.rmtree(tree / "a3")
    subprocess.run(["rsync", "-a", "--delete", "--inplace", f"{tree}/", f"{top}/"], check=True)
    site.wait()
    site.in_step()
    assert all(len(name.rpartition("/")[2].split(".")) == 1 for name in map(os.fsdecode, site.history(SOURCE)))
    assert {len(versions) for versions in site.history(SOURCE).values()} == {1, 2}


def test_trees_come_move_and_go(site: Site, tmp_path: Path) -> None:
    """G6, P2, P20: trees are unpacked, moved in with old times, renamed, moved out and back, and removed; both sides
    stay equal."""
    tree = make_tree(tmp_path / "tree")
    with tarfile.open(tmp_path / "tree.tar", "w") as archive:
        archive.add(tree, "unpacked")
    with tarfile.open(tmp_path / "tree.tar") as archive:
        archive.extractall(site.path(), filter="tar")
    tree.rename(site.path("moved"))
    site.wait()
    site.in_step()
    assert len(site.tree(DESTINATION)) == 240
    site.path("moved").rename(site.path("renamed"))
    site.path("unpacked/a1").rename(tmp_path / "out")
    site.wait()
    site.in_step()
    (tmp_path / "out/b1/f1").write_bytes(b"changed outside")
    (tmp_path / "out").rename(site.path("renamed/back"))
    site.write("renamed/a2/new/deep/file", b"new")
    site.wait()
    site.in_step()
    assert site.tree(DESTINATION)["renamed/back/b1/f1"] == b"changed outside"
    shutil.rmtree(site.path("renamed"))
    shutil.rmtree(site.path("unpacked"))
    site.wait()
    site.in_step()
    assert os.listdir(site.path(bucket=DESTINATION)) == [".fsrepl"]


def test_wait_is_a_barrier(site: Site) -> None:
    """Section 5, wait: files dropped before the call are replicated when it returns, each time, whatever the change
    was."""
    for i in range(12):
        site.write(f"d{i}/new/k", b"%d" % i)
        (site.put if i % 2 else site.write)("same", b"%d" % i)
        if i:
            site.path(f"d{i - 1}/new").rename(site.path(f"d{i}/old"))
        scope = f"{SOURCE}/d{i}/new/k" if i % 3 == 0 else ""
        site.wait(scope)
        there = site.tree(DESTINATION)
        assert there[f"d{i}/new/k"] == b"%d" % i
        if not scope:
            assert there["same"] == b"%d" % i
            assert there == site.tree(SOURCE)


def test_wait_names_what_is_open_and_returns(site: Site) -> None:
    """Section 5, wait: a file still open for writing delays nothing; it is named, and captured complete once it is
    closed."""
    with site.path("open").open("wb") as file:
        file.write(b"half, ")
        file.flush()
        site.write("closed", b"closed")
        waited = site.wait()
        assert f"{SOURCE}/open" in waited.err
        assert site.tree(DESTINATION) == {"closed": b"closed"}
        file.write(b"and whole")
    assert site.wait().err == ""
    assert site.tree(DESTINATION)["open"] == b"half, and whole"
    assert len(site.history(SOURCE)[b"open"]) == 1


def _may_limit_watches() -> bool:
    try:
        return subprocess.run(["unshare", "-Ur", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


class FewWatches(Site):
    """A site whose daemon runs where the kernel gives it few watches."""

    watches = 6

    def _forks(self, arguments: tuple[object, ...]) -> bool:
        return "daemon" not in arguments and super()._forks(arguments)

    def _daemon_command(self, options: tuple[str, ...]) -> list[str | bytes]:
        command = super()._daemon_command(options)
        limit = f'echo {self.watches} >/proc/sys/user/max_inotify_watches; exec "$@"'
        return ["unshare", "-Ur", "sh", "-c", limit, "sh", *command]


@pytest.mark.skipif(not _may_limit_watches(), reason="needs user namespaces")
@pytest.mark.parametrize("watches", [6, 1])
def test_the_watch_limit(tmp_path: Path, watches: int) -> None:
    """P3: a directory without a watch is scanned, status says so, and `wait` is a barrier all the same."""
    with FewWatches(tmp_path) as site:
        site.watches = watches
        for i in range(8):
            site.write(f"d{i}/k", b"old")
        site.start()
        site.wait()
        site.in_step()
        assert site.bucket_status(SOURCE)["polled"]
        site.write("d7/k", b"new")
        site.write("d8/e/k", b"new")
        site.path("d0/k").unlink()
        site.path("d1").rename(site.path("d9"))
        site.wait()
        site.in_step()
        assert site.tree(DESTINATION)["d7/k"] == b"new"
        site.write("d8/e/without-wait", b"found")
        site.until(lambda: "d8/e/without-wait" in site.tree(DESTINATION), "the round of looking comes to it")
        assert "no more watches" in site.tail(100_000)
