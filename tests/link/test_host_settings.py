"""`path = "ssh://..."` in fsrepl.toml: read, refused with a remedy, written by `region add`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsrepl.commands.settings_text import add_host, remove_region
from fsrepl.errors import Usage
from fsrepl.settings import HostSettings, kinds, reading

SITE = Path("/site/fsrepl.toml")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ssh://host/srv/eu", kinds.RemotePath("", "host", 0, "/srv/eu")),
        ("ssh://me@host:2222/srv/eu/", kinds.RemotePath("me", "host", 2222, "/srv/eu")),
        ("ssh://Nas_1/srv", kinds.RemotePath("", "Nas_1", 0, "/srv")),
        ("ssh://[2001:db8::1]:22/srv", kinds.RemotePath("", "2001:db8::1", 22, "/srv")),
    ],
)
def test_an_address_is_read(address: str, expected: kinds.RemotePath) -> None:
    """User and port are OpenSSH's choice where they are left out; a name of its configuration keeps its spelling."""
    found = reading.parse(f'[regions.eu]\npath = "{address}"\n', SITE)
    assert found.hosts == {"eu": HostSettings("eu", expected)}
    assert found.regions == {}
    assert str(expected) == address.rstrip("/")


@pytest.mark.parametrize(
    "address",
    [
        "ssh://host", "ssh://host/", "ssh:///srv", "ssh://-oProxyCommand=x/srv", "ssh://-x@host/srv",
        "ssh://me:secret@host/srv", "ssh://host/srv?x", "ssh://host/a/../b", "ssh://host:port/srv", "http://host/srv",
        "ssh://ho st/srv",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_its_line(address: str) -> None:
    """No part of it may become an option of ssh."""
    with pytest.raises(
        Usage, match=r'line 2: \[regions.eu\] path must be a directory on another machine, such as "ssh://'
    ):
        reading.parse(f'[regions.eu]\npath = "{address}"\n', SITE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ssh = []", "ssh must name a program"),
        ('agent = ""', "agent must name a program"),
        ('ssh = "ssh -i key"', "ssh must be an array of strings"),
        ("silence_s = 0", "silence_s must be a number from 2 to 3,600"),
        ("compres = true", 'has no setting "compres"; did you mean "compress"?'),
    ],
)
def test_mistakes_are_named_by_line(line: str, message: str) -> None:
    with pytest.raises(Usage) as caught:
        reading.parse(f'[regions.eu]\npath = "ssh://host/srv"\n{line}\n', SITE)
    assert str(caught.value).startswith("/site/fsrepl.toml, line 3: ")
    assert message in str(caught.value)


def test_region_add_writes_it_and_forget_removes_it() -> None:
    """The other settings stand beside it as comments, with their defaults."""
    before = '[regions.us]\npath = "us"\n'
    text = add_host(before, "eu", "ssh://me@host/srv/eu")
    assert 'path = "ssh://me@host/srv/eu"\n' in text
    for name in ("sharing", "ssh", "agent", "compress", "silence_s"):
        assert f"\n# {name} = " in text
    assert reading.parse(text, SITE).hosts["eu"].url == "ssh://me@host/srv/eu"
    assert remove_region(text, "eu").strip() == before.strip()
