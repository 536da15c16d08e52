"""What `fsrepl bucket adopt` prints about a bucket that it restored."""

from __future__ import annotations

import pytest

from fsrepl.cli.buckets import tell_healed
from fsrepl.model.address import Address

AWAY = "region east is offline"


@pytest.mark.parametrize(
    ("not_asked", "says"),
    [([], "lost: no other bucket"), ([AWAY], "that is away may have them")],
    ids=["all-asked", "region-away"],
)
def test_a_version_that_an_absent_region_may_have_is_not_lost(
    not_asked: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """G11: a version may be in a region that is away, and is not called permanently lost then."""
    answer = {"Fetched": 0, "Kept": 5, "PutBack": 0, "Lost": 3, "NotAsked": not_asked}
    tell_healed(Address.parse_bucket("west/dst"), answer)
    said = capsys.readouterr().err
    assert says in said
    assert ("lost: no other bucket" in said) == (not not_asked)
    assert ("--repair" in said) == bool(not_asked)
