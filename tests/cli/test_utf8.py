"""Names are UTF-8 bytes whatever the locale is, in arguments, on disk and in output."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fsrepl.cli import utf8
from tests.site import DESTINATION, SOURCE, Site

NAME = "ä €/κόσμος"
PLAIN_C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}


def latin_1(home: Path) -> dict[str, str]:
    """Make a locale of Latin-1, since few systems still have one."""
    if shutil.which("localedef") is None:
        pytest.skip("localedef is not there")
    made = subprocess.run(
        ["localedef", "-f", "ISO-8859-1", "-i", "de_DE", str(home / "de_DE.ISO-8859-1")], capture_output=True
    )
    if not (home / "de_DE.ISO-8859-1" / "LC_CTYPE").exists():
        pytest.skip(f"the locale cannot be made: {made.stderr.decode(errors='replace')}")
    return {"LOCPATH": str(home), "LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("locale", ["C", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_a_locale_that_is_not_utf8_changes_nothing(tmp_path: Path, locale: str) -> None:
    """Section 5: commands work as in any locale, print UTF-8, and end well; a prefix has the same bytes as the
    folder."""
    with Site(tmp_path, replicate=False) as site:
        site.environ = PLAIN_C if locale == "C" else latin_1(tmp_path)
        site.must("replication", "enable", SOURCE, DESTINATION, "--prefix", "ä €/")
        site.write(NAME, b"one")
        site.write(b"\xe4/\xff", b"latin")
        site.start()
        site.wait()
        listed = site.must("ls", SOURCE).out
        assert NAME in listed
        assert r"\xe4/\xff" in listed
        assert site.tree(DESTINATION) == {NAME: b"one"}
        assert site.json("replication", "get", SOURCE)["ReplicationConfiguration"]["Rules"][0]["Prefix"] == "ä €/"
        assert NAME in site.must("rm", f"{SOURCE}/{NAME}").out
        assert NAME in site.must("restore", f"{SOURCE}/{NAME}").out
        assert site.must("cat", f"{SOURCE}/".encode() + b"\xe4/\xff").out == "latin"
        assert site.stop() == 0


@pytest.mark.parametrize(("text", "encoded"), [("ä", b"\xc3\xa4"), ("\udcff", b"\xff"), ("a\ud800", rb"a\ud800")])
def test_any_text_is_printed(text: str, encoded: bytes) -> None:
    """Section 5: JSON may contain text that no name can have; it ends no command either."""
    assert utf8.encoded(text) == encoded
