"""What `fsrepl region add --replace` prints about what a new disk is filled with."""

from __future__ import annotations

import pytest

from fsrepl.cli import site

SENT = "will be sent to it; `fsrepl wait` waits for them"
CAME = "came back to it from other machines and services"


@pytest.mark.parametrize(
    ("refilled", "fetched", "says"),
    [
        (5, 0, [f"5 versions {SENT}"]),
        (5, 5, [f"5 versions {CAME}"]),
        (5, 4, [f"4 versions {CAME}", f"1 version {SENT}"]),
        (0, 0, [f"0 versions {SENT}"]),
    ],
)
def test_what_has_arrived_is_not_said_to_be_on_its_way(
    refilled: int, fetched: int, says: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """G11: from services and other machines a bucket is filled before the command returns, from disks afterwards."""
    answer = {"Name": "east", "Path": "/srv/east2", "Buckets": [], "Refilled": refilled, "Fetched": fetched}
    monkeypatch.setattr(site, "perform", lambda request: answer | {"NotAsked": []})
    site.region_add("east=/srv/east2", replace=True)
    assert capsys.readouterr().out.splitlines() == ["region east at /srv/east2", *says]
