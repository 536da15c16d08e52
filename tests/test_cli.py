"""The command line: exit status, what goes to which stream, what is asked. One process a command, as scripts see it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.site import SOURCE, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path, replicate=False)


def test_what_a_command_finds_is_its_exit_status(site: Site) -> None:
    """Section 5: a status that a command gives itself reaches the shell, like those of errors."""
    assert site.run("check").code == 0
    roles = site.root / "roles"
    roles.mkdir()
    (roles / "bad.json").write_text("{")
    found = site.run("check")
    assert (found.code, found.err.split(":")[0]) == (3, "MalformedPolicyDocument")
    assert site.run("wait").code == 5
    assert site.run("cat", f"{SOURCE}/nothing").code == 3
    assert site.run("bucket", "create", "nowhere/bucket").code == 2
    assert site.run("ls").code == 2


def test_bucket_names_are_those_of_s3(site: Site) -> None:
    """S3's naming rules, and nothing is made for a name that breaks one."""
    for name in ("ab", "Photos", "a_b", "-ab", "a..b", "10.0.0.1", "xn--ab", "a-.b", "a.-b", "x" * 64):
        site.refused("InvalidBucketName", "bucket", "create", f"east/{name}")
    assert {path.name for path in site.regions["east"].iterdir()} == {"src", ".fsrepl-region.json"}
