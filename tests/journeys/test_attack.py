"""A short run of the attack in each sharing mode. See tests/attack; run it by hand for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack import course
from tests.attack.ledger import REST_S, File, Ledger, Rest, Verdict, judge


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["auto", "private", "link"])
def test_a_two_way_site_under_attack_comes_to_rest_and_loses_nothing(tmp_path: Path, sharing: str) -> None:
    """G1 to G7: users on both sides, kills, links, renames; losses that `link` allows are counted apart."""
    outcome = course.run(tmp_path, seed=1, seconds=3.0, sharing=sharing)
    assert not outcome.faults, "\n".join(outcome.lines())
    assert outcome.deeds


def _rest(*, names: int = 1, rested_s: float = REST_S) -> Rest:
    return Rest("east/src", "k", File(1, 1, "d", names), 10.0, 10.0 + rested_s)


def test_only_what_rested_beside_a_working_daemon_counts_as_lost() -> None:
    """G1: a test that calls everything a loss, or nothing, would prove nothing."""
    up = [(0.0, 20.0)]
    assert judge(_rest(), up, {"d"}, (), ()) is Verdict.KEPT
    assert judge(_rest(), up, {"other"}, (), ()) is Verdict.LOST
    assert judge(_rest(), [(0.0, 12.0), (13.0, 20.0)], (), (), ()) is Verdict.SHORT
    assert judge(_rest(rested_s=REST_S / 2), up, (), (), ()) is Verdict.SHORT
    assert judge(_rest(names=2), up, (), (), ()) is Verdict.UNSEEN
    assert judge(_rest(), up, (), {"d"}, {"d"}) is Verdict.OVERWRITTEN
    assert judge(_rest(), up, (), {"d"}, ()) is Verdict.LOST


def test_the_ledger_knows_what_rested_and_what_was_overwritten_in_place() -> None:
    """The same file with the same bytes rests; the same file with other bytes was overwritten; another file was not."""
    ledger = Ledger("east/src")
    one, other, replaced = File(1, 1, "one"), File(1, 2, "other"), File(2, 3, "replaced")
    for at_s, tree in ((0.0, {"k": one}), (1.0, {"k": one}), (2.0, {"k": other}), (3.0, {"k": replaced})):
        ledger.saw(tree, at_s)
    found = {rest.file.digest: (rest.since_s, rest.until_s) for rest in ledger.close(5.0)}
    assert found == {"one": (0.0, 2.0), "other": (2.0, 3.0), "replaced": (3.0, 5.0)}
    assert ledger.overwritten == {"one"}
