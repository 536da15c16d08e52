"""fsrepl.toml: every setting by name, every mistake by file, line and remedy, and edits that keep the rest."""

from __future__ import annotations

import contextlib
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from fsrepl import settings, temporary
from fsrepl.commands.settings_text import add_region, move_region, remove_region, render
from fsrepl.errors import Usage
from fsrepl.settings import reading
from fsrepl.settings.kinds import KeepFree
from fsrepl.settings.reading import find, load, parse

SITE = Path("/site/fsrepl.toml")
REGIONS = '[regions.us]\npath = "us"\n\n[regions.eu]\npath = "/mnt/eu"\nsharing = "link"\n'


def test_a_file_of_regions_has_the_defaults_of_the_design() -> None:
    """design.md, section 4, name by name."""
    found = parse(REGIONS, SITE)
    assert (found.path, found.state, found.roles) == (SITE, Path("/site/.fsrepl-site"), Path("/site/roles"))
    assert found.regions == {
        "us": settings.RegionSettings("us", Path("/site/us"), "auto"),
        "eu": settings.RegionSettings("eu", Path("/mnt/eu"), "link"),
    }
    assert asdict(found.capture) == {
        "settle_ms": 50,
        "temporary": temporary.PATTERNS,
        "temporary_settle_s": 2,
        "keep_free": KeepFree(fraction=0.05),
        "open_quiet_s": 30,
        "open_max_s": 600,
        "rescan_s": 3600,
    }
    assert asdict(found.replication) == {
        "limit_bytes_s": 0,
        "large_file_bytes": 8 << 20,
        "workers": 4,
        "retry_max_s": 300,
    }
    assert asdict(found.scrub) == {"every_s": 30 * 86400, "limit_bytes_s": 20 << 20}
    assert asdict(found.lifecycle) == {"limit_bytes_s": 100 << 20}
    assert asdict(found.safety) == {"delete_share": 0.5}
    assert asdict(found.events) == {"command": (), "webhook": "", "max_bytes": 16 << 20}
    assert asdict(found.metrics) == {"listen": None, "textfile": None}


@pytest.mark.parametrize(
    ("path", "state", "expected"),
    [
        ("/srv/site/fsrepl.toml", None, "/srv/site/.fsrepl-site"),
        ("/etc/fsrepl/fsrepl.toml", None, "/var/lib/fsrepl"),
        ("/etc/fsrepl/fsrepl.toml", "/other", "/other"),
        ("/srv/site/fsrepl.toml", "state", "/srv/site/state"),
    ],
)
def test_the_state_is_beside_the_file_or_in_the_systems_folder_for_state(
    path: str, state: str | None, expected: str
) -> None:
    assert parse(f'state = "{state}"\n' if state else "", Path(path)).state == Path(expected)


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ('[replication]\nlarge_file = "64KiB"', "replication.large_file_bytes", 65536),
        ('[replication]\nlarge_file = "1.5 GiB"', "replication.large_file_bytes", 3 << 29),
        ('[replication]\nlarge_file = "2MB"', "replication.large_file_bytes", 2_000_000),
        ("[replication]\nlarge_file = 4096", "replication.large_file_bytes", 4096),
        ('[replication]\nlimit = "50MiB/s"', "replication.limit_bytes_s", 50 << 20),
        ('[replication]\nlimit = "0"', "replication.limit_bytes_s", 0),
        ("[replication]\nlimit = 0", "replication.limit_bytes_s", 0),
        ("[replication]\nretry_max_s = 0.5", "replication.retry_max_s", 0.5),
        ('[scrub]\nevery = "0"', "scrub.every_s", 0),
        ('[scrub]\nevery = "90s"', "scrub.every_s", 90),
        ('[scrub]\nevery = "4w"', "scrub.every_s", 28 * 86400),
        ('[scrub]\nlimit = "1kB/s"', "scrub.limit_bytes_s", 1000),
        ('[capture]\nkeep_free = "0%"', "capture.keep_free", KeepFree()),
        ("[capture]\nkeep_free = 0", "capture.keep_free", KeepFree()),
        ('[capture]\nkeep_free = "2.5%"', "capture.keep_free", KeepFree(fraction=0.025)),
        ('[capture]\nkeep_free = "10GiB"', "capture.keep_free", KeepFree(size_bytes=10 << 30)),
        ("[capture]\ntemporary = []", "capture.temporary", ()),
        ("[safety]\ndelete_share = 1", "safety.delete_share", 1),
        ('[events]\ncommand = ["/usr/bin/mail", "-s", "late"]', "events.command", ("/usr/bin/mail", "-s", "late")),
        ('[events]\nwebhook = "https://[::1]:8443/x?y"', "events.webhook", "https://[::1]:8443/x?y"),
        ('[metrics]\nlisten = "127.0.0.1:9750"', "metrics.listen", ("127.0.0.1", 9750)),
        ('[metrics]\nlisten = "[::1]:1"', "metrics.listen", ("::1", 1)),
        ('[metrics]\ntextfile = "fsrepl.prom"', "metrics.textfile", Path("/site/fsrepl.prom")),
    ],
)
def test_values_become_bytes_seconds_and_paths(line: str, field: str, expected: object) -> None:
    found: object = parse(line, SITE)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("keep", "total", "needed"),
    [
        (KeepFree(fraction=0.05), 1000, 50),
        (KeepFree(fraction=0.05), 1001, 51),
        (KeepFree(size_bytes=7), 1000, 7),
        (KeepFree(), 1000, 0),
    ],
)
def test_space_to_keep_free_in_bytes(keep: KeepFree, total: int, needed: int) -> None:
    assert keep.needed(total) == needed


MISTAKES = [
    # a name that is not known: the nearest, where it belongs, or all there are
    ("[capture]\nsettle_ms = 5\nsetle_ms = 5", 3, 'has no setting "setle_ms"; did you mean "settle_ms"?'),
    ("[capture]\nSETTLE_MS = 5", 2, 'did you mean "settle_ms"?'),
    ("[captures]\nsettle_ms = 5", 1, 'the file has no table "captures"; did you mean "capture"?'),
    ('stat = "/x"', 1, 'did you mean "state"?'),
    ("\n\n[scrub]\nquux = 1", 4, '[scrub] has no setting "quux"; there are every, limit'),
    ("settle_ms = 5", 1, "it belongs in [capture]"),
    (
        '[regions.us]\npath = "us"\nsettle_ms = 50',
        3,
        '[regions.us] has no setting "settle_ms"; it belongs in [capture]',
    ),
    ('[capture]\nlimit = "0"', 2, "it belongs in [replication] or [scrub]"),
    ('[regions.us]\npath = "us"\nstate = "/x"', 3, "it belongs above the first table"),
    ("[regions.us.capture]\nsettle_ms = 5", 1, "write it as [capture]"),
    ('[regions.us]\npaths = "us"', 2, 'did you mean "path"?'),
    ('[regions.us]\npath = "us"\n[regions.us.classes.STANDARD_IA]\n', 3, "needs a path"),
    ('[regions.us]\npath = "us"\n[regions.us.classes.STANDARD_IB]\npath = "x"', 3, 'did you mean "STANDARD_IA"?'),
    ('[regions.us]\npath = "us"\n[regions.us.classes.STANDARD]\npath = "x"', 3, "lies in the region's own path"),
    ('[regions.us]\npath = "us"\n[regions.us.classes.GLACIER]\npath = "us/x"', 4, "lies within region us"),
    ('[regions.us]\npath = "us"\n[regions.us.classes.GLACIER]\npath = "us"', 4, "the same directory"),
    ('[regions.us]\npath = "us"\n[regions.us.classes.GLACIER]\npath = "x"\ndrain = 1', 5, "must be true or false"),
    (
        '[regions.eu.west]\npath = "us"',
        1,
        '[regions.eu] has no table "west"; a name with a dot is quoted: [regions."eu.west"]',
    ),
    ("[capture]\ntemporary = [\n  '*.a', # ]\n  '*.b',\n]\nsettel_ms = 1", 6, '"settle_ms"'),
    ('[events]\nwebhook = """\nhttp://x\n[capture]"""\n', 2, "[events] webhook must be"),
    ("capture.setle_ms = 5", 1, '"settle_ms"'),
    # wrong types
    ('[capture]\nsettle_ms = "50"', 2, '[capture] settle_ms must be a whole number from 0 to 3,600,000; it is "50"'),
    ("[capture]\nsettle_ms = true", 2, "must be a whole number"),
    ("[capture]\nsettle_ms = 1.5", 2, "must be a whole number"),
    ('[capture]\ntemporary = "*.tmp"', 2, "must be an array of strings"),
    ("[capture]\ntemporary = [1]", 2, "must be an array of strings"),
    ("capture = 5", 1, "capture must be a table, [capture]; it is 5"),
    ("[[capture]]\nsettle_ms = 5", 1, "must be a table"),
    ("regions = []", 1, "must be a table"),
    ('[regions]\nus = "us"', 2, "regions.us must be a table, [regions.us]"),
    ("state = 5", 1, "state must be a path"),
    ("[events]\nmax_bytes = 1979-05-27", 2, "it is"),
    # wrong values
    ("[capture]\nsettle_ms = -1", 2, "from 0"),
    ("[capture]\nopen_max_s = nan", 2, "a number from 0"),
    ("[capture]\nopen_max_s = inf", 2, "a number from 0"),
    ("[capture]\nrescan_s = 0", 2, "a number from 0.1"),
    ('[capture]\ntemporary = ["tmp/*"]', 2, 'a "/" matches nothing'),
    ('[capture]\nkeep_free = "100%"', 2, 'such as "5%"'),
    ('[capture]\nkeep_free = "5 percent"', 2, 'such as "5%"'),
    ("[capture]\nkeep_free = 0.05", 2, 'such as "5%"'),
    ("[capture]\nkeep_free = 5", 2, 'such as "5%"'),
    ("[replication]\nworkers = 0", 2, "from 1 to"),
    ('[replication]\nlarge_file = "8mb"', 2, 'a size such as "8MiB"'),
    ('[replication]\nlarge_file = "0"', 2, "more than nothing"),
    ('[replication]\nlarge_file = "99999999999TiB"', 2, "a size"),
    ('[replication]\nlimit = "fast"', 2, 'a rate such as "50MiB/s"'),
    ('[replication]\nlimit = "-1"', 2, "a rate"),
    ('[scrub]\nevery = "month"', 2, 'a time such as "90s"'),
    ('[scrub]\nevery = "99999d"', 2, "a time"),
    ("[safety]\ndelete_share = 50", 2, "a number from 0 to 1"),
    ("[events]\ncommand = ['']", 2, "the program and its arguments"),
    ('[events]\nwebhook = "example.org"', 2, "an address such as"),
    ('[events]\nwebhook = "ftp://example.org"', 2, "an address such as"),
    ('[events]\nwebhook = "http://[bad"', 2, "an address such as"),
    ('[events]\nwebhook = "http://x:99999/"', 2, "an address such as"),
    ('[metrics]\nlisten = "9750"', 2, "a host and a port"),
    ('[metrics]\nlisten = ":9750"', 2, "a host and a port"),
    ('[metrics]\nlisten = "::1:9750"', 2, "a host and a port"),
    ('[metrics]\nlisten = "localhost:70000"', 2, "a host and a port"),
    ('[regions.us]\npath = "us"\nsharing = "reflink"', 3, 'one of "auto", "private", "link"; it is "reflink"'),
    ('[regions.us]\npath = ""', 2, "must be a path"),
    ('[regions.us]\npath = "~/us"', 2, "must be a path"),
    ('[regions.us]\npath = "a\\u0000b"', 2, "must be a path"),
    ('[regions.us]\nsharing = "auto"', 1, '[regions.us] needs a path: path = "..."'),
    ('[regions.".us"]\npath = "us"', 1, '".us" cannot name a region'),
    ('\n[regions."u/s"]\npath = "us"', 2, '"u/s" cannot name a region'),
    ('[regions."ü"]\npath = "us"', 1, "cannot name a region"),
    # regions that overlap
    ('[regions.a]\npath = "x"\n[regions.b]\npath = "/site/x/"', 4, "regions a and b are the same directory, /site/x"),
    ('[regions.a]\npath = "x"\n[regions.b]\npath = "x/y"', 4, "region b (/site/x/y) lies within region a (/site/x)"),
    (
        '[regions.a]\npath = "x/y"\n[regions.b]\npath = "y/../x"',
        4,
        "region a (/site/x/y) lies within region b (/site/x)",
    ),
    ('[regions.a]\npath = "/"\n[regions.b]\npath = "b"', 4, "region b (/site/b) lies within region a (/)"),
    ('state = "us/state"\n[regions.us]\npath = "us"', 1, "the state folder (/site/us/state) lies within region us"),
    ('[regions.us]\npath = "/"', 2, "the state folder (/site/.fsrepl-site) lies within region us"),
    # not TOML at all
    ("[capture]\nsettle_ms 50", 2, "this is not TOML: Expected '='"),
    ('[capture]\n\ntemporary = ["*.tmp"', 3, "this is not TOML"),
    ("[capture]\n[capture]", 2, "this is not TOML: Cannot declare"),
    ("[capture]\nsettle_ms = " + "1" * 5000, 2, "this is not TOML"),
]


@pytest.mark.parametrize(("text", "line", "says"), MISTAKES)
def test_a_mistake_is_refused_with_file_line_and_what_would_be_right(text: str, line: int, says: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(text, SITE)
    message = str(caught.value)
    assert message.startswith(f"/site/fsrepl.toml, line {line}: ")
    assert says in message
    assert "\n" not in message
    assert len(message) < 300


def test_regions_beside_each_other_and_a_hidden_state_are_fine() -> None:
    """A name that begins with another's is no nesting. A site's folder may be a region, since no bucket begins with a
    dot."""
    parse('[regions.a]\npath = "x"\n[regions.b]\npath = "xy"', SITE)
    parse('[regions.a]\npath = "."', SITE)


def test_regions_are_compared_by_real_path(tmp_path: Path) -> None:
    """design.md, section 5: regions nested in each other, by real path, are refused."""
    (tmp_path / "us" / "inner").mkdir(parents=True)
    (tmp_path / "eu").symlink_to("us/inner")
    (tmp_path / "fsrepl.toml").write_text(render({"us": "us", "eu": "eu"}))
    with pytest.raises(Usage, match=rf"line 10: region eu \({tmp_path}/us/inner\) lies within region us"):
        load(tmp_path / "fsrepl.toml")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "fsrepl.toml"
    with pytest.raises(Usage, match=f"cannot read {path}: No such file or directory; `fsrepl init DIR`"):
        load(path)
    path.write_bytes(b"# first\n# caf\xe9\n")
    with pytest.raises(Usage, match=f"^{path}, line 2: this is not UTF-8"):
        load(path)


def test_relative_paths_are_relative_to_the_file_whatever_the_working_directory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fsrepl.toml").write_text(render({"us": "us"}))
    monkeypatch.chdir(tmp_path)
    found = load(Path("fsrepl.toml"))
    assert (found.path, found.regions["us"].path) == (tmp_path / "fsrepl.toml", tmp_path / "us")


# -- finding the file


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site with a subfolder as the working directory, and no site for the system."""
    (tmp_path / "site" / "us" / "deep").mkdir(parents=True)
    (tmp_path / "site" / "fsrepl.toml").write_text(render({"us": "us"}))
    monkeypatch.setattr(reading, "SYSTEM", tmp_path / "etc" / "fsrepl.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "site"


def test_the_site_is_the_one_named_else_the_nearest_upwards(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = site / "fsrepl.toml"
    assert find(site, {"FSREPL_SITE": "/nowhere"}) == file
    assert find(Path("site"), {}) == file
    assert find(file, {}) == file
    assert find(None, {"FSREPL_SITE": str(site)}) == file
    monkeypatch.chdir(site / "us" / "deep")
    assert find(None, {"FSREPL_SITE": ""}) == file


def test_without_a_site_near_it_is_the_systems(site: Path) -> None:
    reading.SYSTEM.parent.mkdir()
    reading.SYSTEM.touch()
    assert find(None, {}) == reading.SYSTEM


def test_no_site_says_what_to_do(site: Path, tmp_path: Path) -> None:
    with pytest.raises(Usage, match=r"no fsrepl\.toml in .*`fsrepl init DIR` makes a site, `--site DIR`"):
        find(None, {})
    with pytest.raises(Usage, match=f"no site at {tmp_path}/other: .*`fsrepl init {tmp_path}/other` makes one"):
        find(tmp_path / "other", {})
    with pytest.raises(Usage, match=r"cannot read .*: File name too long"):  # whatever else than "not there"
        find(tmp_path / ("x" * 300), {})
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    with pytest.raises(Usage, match="fsrepl init"):
        find(None, {})


def test_settings_that_another_user_owns_are_ignored(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings may name a command to run: a user who can write in /tmp must not choose one for root."""
    monkeypatch.chdir(site)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if (owner := (site / "fsrepl.toml").stat().st_uid) == 0:
        try:
            os.chown(site / "fsrepl.toml", 4321, -1)
        except OSError:
            pytest.skip("root may not give files away here")
        owner = 4321
    with pytest.raises(Usage, match=rf"belongs to another user \(uid {owner}\); say `--site {site}`"):
        find(None, {})
    assert find(site, {}) == site / "fsrepl.toml"


# -- writing the file


def test_what_init_writes_comments_out_the_defaults() -> None:
    """Each commented setting, made active, is the default; a script may append a table."""
    text = render({"us": "us", "eu": "/mnt/eu"})
    assert [line for line in text.splitlines() if line.startswith("[")] == ["[regions.us]", "[regions.eu]"]
    active = re.sub(r"(?m)^# (?=\[|\w+ = |    |\])", "", text)
    assert parse(active, SITE) == parse(text, SITE)
    known = {name for table in tomllib.loads(active).values() if isinstance(table, dict) for name in table}
    assert known >= {"settle_ms", "temporary", "large_file", "every", "delete_share", "command", "listen", "textfile"}
    assert tomllib.loads(active)["regions"]["us"] == {"path": "us", "sharing": "auto"}
    assert parse(text + "\n[capture]\nsettle_ms = 7\n", SITE).capture.settle_ms == 7
    assert max(map(len, text.splitlines())) <= 120


NAMES = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}", fullmatch=True)
PARTS = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(NAMES, PARTS, max_size=5))
@example({"eu.west": '"\\\x7f\n\r\x85\u2028 \U0001f600\t', "0": "#", "-": "']\n["})
def test_what_is_written_is_read_back(parts: dict[str, str]) -> None:
    """Any name and any path, with any characters; regions are added or removed in any order."""
    paths = {name: f"{i}/r{part}" for i, (name, part) in enumerate(parts.items())}
    expected = {n: settings.RegionSettings(n, Path("/site") / p, "auto") for n, p in paths.items()}
    text = render(paths)
    assert parse(text, SITE).regions == expected
    added = render({})
    for name, path in paths.items():
        added = add_region(added, name, path)
    assert parse(added, SITE).regions == expected
    for name in paths:
        added, text = remove_region(added, name), remove_region(text, name)
    assert parse(added, SITE).regions == {}
    assert text == render({})


@given(st.text(alphabet="[]capturesing.=#\"'\\{}, 0123\n\r\t_", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(Usage):
        parse(text, SITE)


HAND_MADE = """\
# our site, since 2026
state = "/var/lib/x"

# the cellar
[regions.us]   # first
path = "us"
# nobody edits in place there
sharing = "link"
# leads up to the next
[regions.eu] # second
path = "eu"

[capture]
temporary = [
    "[regions.us]",   # not a header
]  # the end
"""


def test_adding_a_region_changes_nothing_else() -> None:
    text = add_region(HAND_MADE, "ap.south", 'a "b"')
    block = '[regions."ap.south"]\npath = "a \\"b\\""\n'
    at = text.index(block)
    rest = text[:at] + text[at:].partition("\n\n")[2]
    assert rest == HAND_MADE
    assert text.index("[regions.eu]") < at < text.index("[capture]")
    assert remove_region(text, "ap.south") == HAND_MADE


def test_removing_a_region_takes_its_table_and_nothing_else() -> None:
    assert remove_region(HAND_MADE, "us") == HAND_MADE.replace(
        '[regions.us]   # first\npath = "us"\n# nobody edits in place there\nsharing = "link"\n', ""
    )
    assert remove_region(HAND_MADE, "eu") == HAND_MADE.replace('[regions.eu] # second\npath = "eu"\n', "")


def test_moving_a_region_changes_its_path_and_nothing_else() -> None:
    assert move_region(HAND_MADE, "us", "/mnt/us") == HAND_MADE.replace('path = "us"', 'path = "/mnt/us"')
    inline = '[regions]\nus = {path = "us", sharing = "link"}\n'
    with pytest.raises(Usage, match="change the path of region us by hand"):
        move_region(inline, "us", "x")


@pytest.mark.parametrize(
    "text",
    [
        '[regions]\nus = {path = "us"}  # here\neu.path = "eu"\n[capture]\nsettle_ms = 1\n',
        'regions.us.path = "us"\nregions.eu = {path = "eu"}\n',
        '[regions.us]\r\npath = "us"\r\n\r\n[regions.eu]\r\npath = "eu"\r\n# end\r\n',
        '[capture]\nsettle_ms = 1\n[regions.us]\npath = "us"\n[regions.eu]\npath = "eu"',
        "[regions.us]\npath = '''us'''\n[regions.'eu']\npath = \"\"\"\n[\\\n]\"\"\"\n",
    ],
)
def test_regions_are_edited_however_they_are_written(text: str) -> None:
    before = parse(text, SITE)
    more = add_region(text, "ap", "ap")
    assert parse(more, SITE) == replace(
        before, regions={**before.regions, "ap": settings.RegionSettings("ap", Path("/site/ap"), "auto")}
    )
    moved = parse(move_region(more, "us", "us2"), SITE)
    assert moved.regions["us"].path == Path("/site/us2")
    fewer = remove_region(more, "us")
    assert "us" not in parse(fewer, SITE).regions
    assert parse(remove_region(fewer, "ap"), SITE).regions.keys() == {"eu"}
    assert ("\r\n" in text) == ("\r\n" in more)
    assert more.count("\n") == more.count("\r\n") or "\r" not in more


def test_edits_that_make_no_sense_are_refused() -> None:
    inline = 'regions = {us = {path = "us"}, eu = {path = "eu"}}\n'
    edits: list[tuple[Callable[..., str], tuple[object, ...], str]] = [
        (add_region, (HAND_MADE, "us", "x"), "there is a region us already"),
        (add_region, (HAND_MADE, "a/b", "x"), '"a/b" cannot name a region'),
        (add_region, (HAND_MADE, "ap", ""), "region ap: .* must be a path"),
        (add_region, (HAND_MADE, "ap", "caf\udce9"), "not UTF-8"),
        (add_region, (inline, "ap", "ap"), r"add \[regions.ap\] .*by hand"),
        (remove_region, (inline, "us"), "remove region us from fsrepl.toml by hand"),
        (remove_region, (HAND_MADE, "ap"), 'there is no region "ap"'),
        (render, ({".us": "us"},), '".us" cannot name a region'),
    ]
    for edit, arguments, says in edits:
        with pytest.raises(Usage, match=says):
            edit(*arguments)
