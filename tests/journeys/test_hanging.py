"""A filesystem that answers no call, as a dead server's: all else goes on, commands answer, and the daemon ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mounts import hanging, only_root
from tests.site import DESTINATION, SOURCE, Site

OTHER, ITS_REPLICA = "north/other", "south/replica"


@pytest.mark.slow
@only_root
@pytest.mark.parametrize("place", ["east", "west"], ids=["source", "destination"])
def test_a_region_that_never_answers_delays_nothing_else(tmp_path: Path, place: str) -> None:
    """G7, section 7: commands for everything else answer, other regions replicate, SIGTERM ends the daemon; once the
    region answers, what waited for it is done."""
    regions = {name: tmp_path / "site" / name for name in ("east", "west", "north", "south")}
    with Site(tmp_path, regions=regions, buckets=(SOURCE, DESTINATION, OTHER, ITS_REPLICA)) as site:
        site.must("replication", "enable", OTHER, ITS_REPLICA)
        site.start()
        site.write("k", b"before")
        site.write("k", b"before", OTHER)
        site.wait()
        with hanging(site.regions[place]):
            if place == "west":
                site.write("k", b"while it hangs")
            site.write("k", b"while another one hangs", OTHER)
            site.wait(OTHER)
            assert site.tree(ITS_REPLICA) == {"k": b"while another one hangs"}
            assert site.json("status")["daemon"]["running"]
            assert [each["Key"] for each in site.json("ls", OTHER)["Contents"]] == ["k"]
            assert site.json("why", f"{OTHER}/k")["Deliveries"][0]["Status"] == "COMPLETED"
            assert "no answer" in site.run("doctor").out
            assert site.stop() == 0
        assert not os.path.ismount(site.regions[place])
        site.start()
        site.write("k", b"after")
        site.wait()
        site.in_step()
        assert "Traceback" not in site.log.read_text()
