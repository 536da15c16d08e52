"""fsrepl.toml is edited while the daemon runs, and SIGHUP makes the daemon read it again. Real daemon."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.site import DESTINATION, SOURCE, Site
from tests.waiting import until


def reload(site: Site) -> None:
    """Make the daemon read its settings again, and wait until it logs the result."""
    assert site.daemon is not None
    said = site.log.read_text().count("reloaded")
    site.daemon.send_signal(signal.SIGHUP)
    site.until(lambda: site.log.read_text().count("reloaded") > said, "the daemon has read its settings")


def test_a_region_leaves_the_settings_and_comes_back(tmp_path: Path) -> None:
    """Section 4: meanwhile its buckets are no part of the site, and waits for the other buckets continue."""
    with Site(tmp_path) as site:
        site.start()
        north = site.regions["north"] = site.home / "north"
        before = site.json("status")["daemon"]["watched"]
        file = site.root / "fsrepl.toml"
        without = file.read_text()
        site.must("region", "add", f"north={north}")
        site.must("bucket", "create", "north/far", "--versioning")
        site.write("k", b"k", "north/far")
        site.wait()
        having = file.read_text()

        file.write_text(without)
        reload(site)
        site.write("k", b"k")
        site.wait()
        assert site.tree(DESTINATION) == {"k": b"k"}
        assert site.run("ls", "north/far").code == 2
        assert [each["bucket"] for each in site.json("status")["buckets"]] == [SOURCE, DESTINATION]
        assert site.json("status")["daemon"]["watched"] == before
        site.write("meanwhile", b"m", "north/far")

        file.write_text(having)
        reload(site)
        site.until(lambda: site.bucket_status("north/far")["objects"] == 2, "what was written meanwhile is found")
        site.wait()
        assert "Traceback" not in site.log.read_text()


def test_settings_that_make_no_sense_change_nothing(tmp_path: Path) -> None:
    """Section 5: regions nested in each other, by real path, are refused, and the daemon keeps its former settings."""
    with Site(tmp_path) as site:
        site.start()
        (site.home / "link").symlink_to(site.regions["east"])
        file = site.root / "fsrepl.toml"
        good = file.read_text()
        file.write_text(f'{good}\n[regions.inner]\npath = "{site.home}/link/src/inner"\n')
        reload(site)
        assert "lies within region east" in site.tail()
        assert site.run("check").code == 2
        site.write("k", b"k")
        site.until(lambda: site.tree(DESTINATION) == {"k": b"k"}, "the old settings are in force")
        assert not site.path("inner").exists()
        file.write_text(good)
        site.wait()


def test_a_reload_at_the_very_start_is_done_once_it_is_up(tmp_path: Path) -> None:
    """Section 5: SIGHUP never ends the daemon, however early it comes, and the reload is not forgotten."""
    with Site(tmp_path) as site:
        site.start(ready=False)
        assert site.daemon is not None
        lock = site.root / ".fsrepl-site" / "lock"
        mine = f"{site.daemon.pid}\n"  # no pause: the signal must come during the start
        until(lambda: lock.exists() and lock.read_text() == mine, "it takes the site's lock", pause_s=0.0)
        site.daemon.send_signal(signal.SIGHUP)
        site.until(site._is_ready, "the daemon is ready")
        site.until(lambda: "reloaded" in site.log.read_text(), "it has read its settings again")
