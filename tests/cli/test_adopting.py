"""What `fsrepl bucket adopt` says of a bucket that it brought back."""

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
def test_lost_is_only_what_nobody_can_have(not_asked: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """G11: a version may be in a region that is away, and is not called lost for good then."""
    answer = {"Fetched": 0, "Kept": 5, "PutBack": 0, "Lost": 3, "NotAsked": not_asked}
    tell_healed(Address.parse_bucket("west/dst"), answer)
    said = capsys.readouterr().err
    assert says in said
    assert ("lost: no other bucket" in said) == (not not_asked)
    assert ("--repair" in said) == bool(not_asked)
