"""A region on another machine, through OpenSSH's own client and server."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fsrepl.settings import FILE
from tests.site import SOURCE, Ran, Site
from tests.sshd import Sshd, agents_of, needs_sshd

THERE = "west/dst"

pytestmark = [needs_sshd, pytest.mark.slow(25)]


@contextmanager
def far_site(home: Path, sshd: Sshd, lines: str = "") -> Iterator[Site]:
    """A site whose region west is reached over ssh; `path` and `tree` look at it there."""
    west = home / "there" / "west"
    with Site(home, regions={"east": home / "site" / "east"}, buckets=(SOURCE,), replicate=False) as site:
        with (site.root / FILE).open("a") as file:
            file.write(f'\n[regions.west]\npath = "ssh://there{west}"\nssh = ["ssh", "-F", "{sshd.client}"]\n{lines}\n')
        site.must("region", "add", f"west=ssh://there{west}")
        site.must("bucket", "create", THERE, "--versioning")
        site.must("replication", "enable", SOURCE, THERE)
        site.regions["west"] = west
        yield site


def there(site: Site, *arguments: str) -> Ran:
    """Run a command on the other machine."""
    far = Site.__new__(Site)
    far.__dict__ |= site.__dict__ | {"root": site.regions["west"] / ".fsrepl-agent", "daemon": None}
    return far.must(*arguments)


def in_step(site: Site) -> None:
    far = Site.__new__(Site)
    far.__dict__ |= site.__dict__ | {"root": site.regions["west"] / ".fsrepl-agent", "daemon": None}
    assert site.tree(SOURCE) == site.tree(THERE)
    assert site.history(SOURCE) == far.history(THERE)


def fill(site: Site, folder: str, number: int = 120) -> None:
    rng = random.Random(folder)
    for each in range(number):
        site.write(f"{folder}/k{each:04}", rng.randbytes(rng.randrange(6000)))
    site.write(f"{folder}/large", rng.randbytes(12 << 20))


def test_it_is_a_region_like_another_whatever_dies(tmp_path: Path) -> None:
    """G3, G5, G7, G11: through sshd, its forced command and `--root`; agent, ssh and daemon are killed at work, and
    the line hangs: what is missing comes, once, and commands say how it is."""
    (tmp_path / "there").mkdir()
    with (
        Sshd(tmp_path / "sshd", root=tmp_path / "there", delay_s=0.01) as sshd,
        far_site(tmp_path, sshd, "silence_s = 2") as site,
    ):
        site.start()
        site.write("k", b"hello")
        site.wait()
        in_step(site)
        for number, victim in enumerate(("agent", "ssh", "daemon")):
            fill(site, victim)
            site.until(lambda victim=victim: site.path(f"{victim}/k0040", THERE).exists(), "the burst is under way")
            site.path(f"{victim}/k0000").unlink()
            match victim:
                case "agent":
                    for pid in agents_of(site.regions["west"]):
                        os.kill(pid, signal.SIGKILL)
                case "ssh":
                    for pid in clients_of(sshd):
                        os.kill(pid, signal.SIGKILL)
                case "daemon":
                    site.kill()
                    site.start()
            site.write("k", b"again %d" % number)
            site.wait()
            in_step(site)
        sshd.line.hang()
        site.write("meanwhile", b"data")
        site.until(lambda: "nothing was heard of it for 2 s" in site.must("status").out, "status says that it is away")
        assert "OFFLINE" in site.must("region", "ls").out
        assert "nothing was heard" in site.must("why", f"{SOURCE}/meanwhile").out
        assert site.wait(timeout_s=0.5, code=4)
        sshd.line.go_on()
        site.wait()
        in_step(site)
        assert "no differences" in site.must("verify", SOURCE).out
        assert f"bucket {THERE}" in site.must("doctor").out
        outside = site.run("region", "add", f"other=ssh://there{tmp_path}/outside")
        assert (outside.code, "Traceback" in outside.err) == (1, False), outside
        site.stop()
        site.until(lambda: not [*agents_of(site.regions["west"])], "the agent ends with its connection")
        assert b"again 2" in there(site, "cat", f"{THERE}/k").out.encode()


def clients_of(sshd: Sshd) -> list[int]:
    found = subprocess.run(["pgrep", "-f", f"ssh -F {sshd.client}"], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


@pytest.mark.parametrize(
    "line", [{"delay_s": 0.05, "loss": 0.01}, {"network": "delay 50ms loss 1%"}], ids=["line", "netem"]
)
def test_a_slow_line_that_loses_packets_delays_and_changes_nothing(tmp_path: Path, line: dict[str, Any]) -> None:
    """G3, G5: 100 ms there and back and a packet lost in a hundred; also by netem, where the kernel has it."""
    (tmp_path / "there").mkdir()
    with (
        Sshd(tmp_path / "sshd", root=tmp_path / "there", **line) as sshd,
        far_site(tmp_path, sshd) as site,
    ):
        site.start()
        fill(site, "burst")
        site.wait()
        in_step(site)
