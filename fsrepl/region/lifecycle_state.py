"""A bucket's lifecycle run, and the moves of its content between tiers."""

from __future__ import annotations

from msgspec import Struct, field

from fsrepl.storage.journal.rows import Classed


class LifecycleRun(Struct):
    """One run of a bucket's lifecycle through all its keys, as of one moment.

    last: the position reached, directory and name; todo: the directories left in a bucket that was never
    versioned. again: keys that were not ready, judged again up to a number of tries. done: by the name of the action,
    the number of versions it was applied to. refused: how often in a row nothing could begin, and why.
    """

    now_ns: int
    last: tuple[bytes, bytes] | None = None
    todo: list[bytes] = field(default_factory=lambda: [b""])
    is_over: bool = False
    again: dict[bytes, None] = field(default_factory=dict)
    tries: int = 0
    due_s: float = 0.0
    judged: int = 0
    done: dict[str, int] = field(default_factory=dict)
    blocked: int = 0
    refused: int = 0
    why: str = ""


class Placing(Struct):
    """A pass through a bucket for versions that do not lie in the tier of their class.

    asked: keys of which something may have to be moved. last: the position reached. in_hand: a background worker
    copies, or sweeps a tier. waits: by tier, empty for the bucket's store, or as `from TIER`, the monotonic time of the
    next try where the last one failed; why: what it failed for. checks_links: symlinks may lead to where a content was
    before. swept: by tier, the monotonic time of the next sweep; day: the last UTC day on which tiers were swept.
    """

    asked: dict[bytes, None] = field(default_factory=dict)
    last: Classed | None = None
    checks_links: bool = False
    is_over: bool = False
    pass_due_s: float = 0.0
    in_hand: bool = False
    tries: int = 0
    waits: dict[str, float] = field(default_factory=dict)
    why: str = ""
    swept: dict[str, float] = field(default_factory=dict)
    day: int = 0

    def begin_again(self) -> None:
        """Go through the bucket from its beginning, at once."""
        self.last, self.is_over, self.pass_due_s = None, False, 0.0

    def come_up(self) -> None:
        """The bucket comes up: its tiers are swept, and its symlinks compared, since it may have changed meanwhile."""
        self.begin_again()
        self.sweep_again()
        self.checks_links = True

    def retry(self) -> None:
        """Go through the bucket again, tiers that failed included: the settings may have changed."""
        self.begin_again()
        self.waits.clear()

    def sweep_again(self) -> None:
        self.swept.clear()

    def sweep_due(self, tier: str) -> float:
        return self.swept.get(tier, 0.0)


class LifecycleState(Struct, eq=False):
    """Changed by the steps of lifecycle/; other steps call the methods of placing."""

    run: LifecycleRun | None = None
    """The run under way."""
    look_s: float = 0.0
    """Time of the next check whether a run is due."""
    has_rules: bool = True
    """False once the bucket is known to have no lifecycle rules, and the journal to remember none."""
    placing: Placing = field(default_factory=Placing)
    """The moves between tiers."""

    def look_now(self) -> None:
        """Its rules may have changed."""
        self.look_s = 0.0
