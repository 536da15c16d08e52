"""fsrepl tier, as people type it."""

from __future__ import annotations

from pathlib import Path

from tests.site import SOURCE, Site


def test_a_tier_is_added_listed_and_removed(tmp_path: Path) -> None:
    """In words and as JSON; a mistake is named with its remedy, and changes nothing."""
    with Site(tmp_path) as site:
        settings = next(tmp_path.rglob("fsrepl.toml"))
        region = SOURCE.split("/")[0]
        tier, path = f"{region}/STANDARD_IA", tmp_path / "hdd"
        assert site.must("tier", "add", f"{tier}={path}").out == f"tier {tier} at {path}\n"
        assert (path / ".fsrepl-tier.json").exists()
        assert f"[regions.{region}.classes.STANDARD_IA]" in settings.read_text()
        (row,) = site.json("tier", "ls")["Tiers"]
        assert (row["Tier"], row["Online"], row["Versions"]) == (tier, True, 0)
        for wrong, said in ((f"{region}/STANDARD_IA", "is not REGION/CLASS=PATH"), (f"{region}/X=/x", "STANDARD_IA")):
            found = site.run("tier", "add", wrong)
            assert (found.code, said in found.err) == (2, True)
        path.rename(tmp_path / "away")
        assert "OFFLINE" in site.must("tier", "ls").out
        (tmp_path / "away").rename(path)
        assert "is removed" in site.must("tier", "rm", tier).out
        assert site.json("tier", "ls")["Tiers"] == []
        assert "classes" not in settings.read_text()


def test_restoring_for_days_what_is_not_archived(tmp_path: Path) -> None:
    """Refused with S3's code; a class that may not be compressed is named, with those that may."""
    with Site(tmp_path) as site:
        site.start()
        site.write("k", b"content")
        site.wait()
        found = site.run("restore", f"{SOURCE}/k", "--days", "7")
        assert (found.code, found.err.startswith("InvalidObjectState: ")) == (3, True)
        region = SOURCE.split("/")[0]
        found = site.run("tier", "add", f"{region}/STANDARD_IA={tmp_path / 'hdd'}", "--compress", "zstd")
        assert (found.code, "compress is for GLACIER and DEEP_ARCHIVE" in found.err) == (2, True)
