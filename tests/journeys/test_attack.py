"""Short runs of the attack, one of each kind. See tests/attack; run it by hand for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack import course
from tests.attack.ledger import REST_S, File, Ledger, Rest, Verdict, judge


@pytest.mark.slow(15)
@pytest.mark.parametrize(
    "plan",
    [
        course.Plan(1, kills=5),
        course.Plan(2, kills=5, sharing="private", clock=True),
        course.Plan(3, kills=5, sharing="link"),
        course.Plan(4, kills=5, shape="one-way", rules=True, suspend=True),
        course.Plan(5, kills=5, shape="mesh", rules=True),
        course.Plan(6, kills=5, trees=True),
    ],
    ids=["auto", "private-clock", "link", "one-way-suspended", "mesh-rules", "trees"],
)
def test_a_site_under_attack_comes_to_rest_and_loses_nothing(tmp_path: Path, plan: course.Plan) -> None:
    """G1 to G7: users on all sides, 30 kills, links, renames, rules, the clock; losses that `link` allows are apart."""
    outcome = course.run(tmp_path, plan)
    assert not outcome.faults, "\n".join(outcome.lines())
    assert outcome.deeds
    assert outcome.kills == plan.kills


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
    assert ledger.overwritten == {("one", 1): {"k"}}
