"""fsrepl verify and doctor from the command line, with a running daemon and without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.site import DESTINATION, SOURCE, Site


def stored(site: Site, bucket: str, key: str) -> Path:
    region, name = bucket.split("/")
    directory, _, last = key.rpartition("/")
    folder = site.regions[region] / name / ".fsrepl/versions" / directory
    return next(f for f in sorted(folder.iterdir()) if f.name.startswith(f"{last};"))


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\0")


def problems(document: Any) -> list[tuple[str, str, str, bool]]:
    return sorted((d["Bucket"], d["Key"], d["Problem"], d["Repaired"]) for d in document["Differences"])


def test_beside_a_working_daemon(tmp_path: Path) -> None:
    """Section 5: damage on either side is named, then repaired, together with the replica's view."""
    with Site(tmp_path) as site:
        site.start()
        for number in range(4):
            site.write(f"d/{number}", b"content %d" % number)
        site.write(os.fsdecode(b"\xff"), b"odd")
        site.settle()
        assert site.must("verify", SOURCE).out == "10 versions, 78 B: no differences\n"
        corrupt(stored(site, SOURCE, "d/0"))
        corrupt(stored(site, DESTINATION, "d/1"))
        stored(site, DESTINATION, "d/2").unlink()
        for name in os.listxattr(file := stored(site, SOURCE, "d/3")):
            os.removexattr(file, name)
        stored(site, DESTINATION, os.fsdecode(b"\xff")).unlink()
        expected = [
            (SOURCE, "d/0", "DigestMismatch"), (SOURCE, "d/3", "AttributesLost"),
            (DESTINATION, "\\xff", "Missing"), (DESTINATION, "d/1", "DigestMismatch"), (DESTINATION, "d/2", "Missing"),
        ]  # fmt: skip
        found = site.run("verify", SOURCE, DESTINATION, "--json")
        assert (found.code, problems(found.json())) == (1, [(*each, False) for each in expected])
        assert [d["KeyBase64"] for d in found.json()["Differences"] if "KeyBase64" in d] == ["/w=="]
        mended = site.run("verify", SOURCE, "--repair", "--json")
        assert (mended.code, problems(mended.json())) == (0, [(*each, True) for each in expected])
        document = site.json("verify", SOURCE)
        assert (document["Differences"], document["Checked"], document["Pending"]) == ([], 10, 0)
        assert site.path("d/1", DESTINATION).read_bytes() == b"content 1"
        site.stop()
        site.start()
        site.wait()
        assert len(site.json("ls", SOURCE, "--versions")["Versions"]) == 5
        assert len(site.json("ls", DESTINATION, "--versions")["Versions"]) == 5


def test_without_a_daemon(tmp_path: Path) -> None:
    """Section 5: verify works on the trees alone; the exit status is 1 while differences remain, and the output is in
    sentences."""
    with Site(tmp_path) as site:
        site.start()
        site.write("k", b"content")
        site.write("both", b"content")
        site.wait()
        site.stop()
        corrupt(stored(site, SOURCE, "k"))
        corrupt(stored(site, SOURCE, "both"))
        corrupt(stored(site, DESTINATION, "both"))
        site.path("both", SOURCE).write_bytes(b"other content")
        found = site.run("verify", SOURCE)
        assert found.code == 1
        assert "DigestMismatch: its stored content no longer matches its BLAKE3" in found.out
        assert "--repair repairs" in found.out
        mended = site.run("verify", SOURCE, "--repair")
        assert mended.code == 1
        assert "3 differences, 1 of them repaired" in mended.out
        assert stored(site, SOURCE, "k").read_bytes() == b"content"
        site.refused("NoSuchBucket", "verify", "east/nothing")
        os.rename(site.regions["west"], tmp_path / "away")
        away = site.run("verify", SOURCE)
        assert away.code == 1
        assert "west/dst was not compared" in away.err


def test_the_doctor(tmp_path: Path) -> None:
    """Section 5: each finding has a level, an area, the problem and the remedy; the exit status is 0 while no check
    fails, with a daemon or without."""
    with Site(tmp_path) as site:
        for running in (False, True):
            if running:
                site.start()
            found = site.run("doctor", "--json").json()["Findings"]
            assert all(list(f) == ["Level", "Area", "Where", "What", "Do"] for f in found)
            assert {f["Area"] for f in found} >= {
                "daemon",
                "watches",
                "queue",
                "attributes",
                "sharing",
                "rights",
                "space",
            }
            assert [f["What"] for f in found if f["Level"] == "error" and f["Area"] != "space"] == []
            (daemon,) = [f for f in found if f["Area"] == "daemon"]
            assert daemon["Level"] == ("ok" if running else "warning")
        (site.regions["east"] / "src/.fsrepl/replication.json").write_text("{")
        found_ill = site.run("doctor")
        assert found_ill.code == 1
        assert found_ill.out.startswith("✗ bucket east/src: ")
