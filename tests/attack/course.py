"""The course of an attack: users work, an administrator disables and enables rules, the clock steps, and the daemon is
killed again and again. Then all of it stops, the site comes to rest by itself, and what must not be is listed."""

from __future__ import annotations

import base64
import contextlib
import datetime
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attack import history
from tests.attack.history import History
from tests.attack.stores import Stores
from tests.attack.users import Users
from tests.boots import note_another_boot
from tests.site import DESTINATION, SOURCE, Site

THIRD = "north/third"
SHAPES = {"one-way": (SOURCE, DESTINATION), "two-way": (SOURCE, DESTINATION), "mesh": (SOURCE, DESTINATION, THIRD)}
REST_DEADLINE_S = 120.0
START_DEADLINE_S = 600.0
"""A start without a journal reads all versions, of which a long attack leaves some ten thousand."""
_OF_METADATA = {"MetadataDiffers", "AttributesLost", "RecordDamaged"}
"""Problems that `verify` reports of what is stored beside a content."""
_STEPS_S = (-3600.0, -5.0, -0.5, 0.0, 5.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is attacked, and how.

    The course ends after so many kills, or after so many seconds where kills is 0. shape: a key of SHAPES. rules: rules
    are disabled and enabled again, and all is replicated after the fact in the end. suspend: versioning of the source
    is suspended now and then, its rules being removed. clock: the daemon's clock steps. slowness: what the users'
    pauses are multiplied by; after each kill all versions are read, so that a long attack wants slow users.
    """

    seed: int
    seconds: float = 60.0
    kills: int = 0
    sharing: str = "auto"
    shape: str = "two-way"
    trees: bool = False
    rules: bool = False
    suspend: bool = False
    clock: bool = False
    slowness: float = 1.0

    @property
    def buckets(self) -> tuple[str, ...]:
        return SHAPES[self.shape]

    @property
    def destinations(self) -> dict[str, tuple[str, ...]]:
        """The buckets to which each bucket with users replicates."""
        sources = self.buckets[:1] if self.shape == "one-way" else self.buckets
        return {bucket: tuple(each for each in self.buckets if each != bucket) for bucket in sources}


@dataclass(slots=True)
class Outcome:
    """faults: states that are forbidden. unpromised: losses that `sharing = "link"` or a missing event explains."""

    faults: list[str] = field(default_factory=list)
    unpromised: list[str] = field(default_factory=list)
    deeds: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    versions: int = 0

    def lines(self) -> list[str]:
        return [
            f"{sum(self.deeds.values())} deeds, {self.kills} kills, {self.versions} versions",
            *(f"{count:6} {what}" for what, count in self.verdicts.most_common()),
            *(f"not promised: {each}" for each in self.unpromised),
            *(f"FAULT: {each}" for each in self.faults),
        ]


def run(home: Path, plan: Plan) -> Outcome:
    """Attack a new site below a folder. The site is left there."""
    regions = {bucket.partition("/")[0] for bucket in plan.buckets}
    places = {region: home / "site" / region for region in sorted(regions)}
    with Site(home, regions=places, buckets=(), replicate=False) as site, _stepping_clock(site, plan) as step_clock:
        _configure(site, plan)
        users = [
            Users(
                bucket,
                site.path(bucket=bucket),
                site.regions[bucket.partition("/")[0]] / ".aside",
                f"{plan.seed}{bucket[0]}",
                trees=plan.trees,
                slowness=plan.slowness,
            )
            for bucket in plan.destinations
        ]
        attack = _Attack(site, plan, step_clock)
        for each in users:
            each.start()
        try:
            attack.kill_and_start()
        finally:
            for each in users:
                each.stop()
        return attack.judge(users)


def _configure(site: Site, plan: Plan) -> None:
    path = site.root / "fsrepl.toml"
    text = path.read_text()
    for region in site.regions:
        text = text.replace(f"[regions.{region}]\n", f'[regions.{region}]\nsharing = "{plan.sharing}"\n')
    path.write_text(text)
    for bucket in plan.buckets:
        site.must("bucket", "create", bucket, "--versioning", *(["--trees"] if plan.trees else []))
    for bucket, others in plan.destinations.items():
        for other in others:
            site.must("replication", "enable", bucket, other, *([] if other == others[0] else ["--add"]))


@contextlib.contextmanager
def _stepping_clock(site: Site, plan: Plan) -> Iterator[Callable[[float], None]]:
    """The clock of all processes of a site; what it yields sets how far that is from the true time, in seconds."""
    if not plan.clock:
        yield lambda offset_s: None
        return
    path, end, offset = site.home / "clock", threading.Event(), [0.0]

    def write() -> None:
        now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=offset[0])
        aside = path.with_suffix(".new")
        aside.write_text(now.isoformat())
        aside.rename(path)

    def tick() -> None:
        while not end.wait(0.01):
            write()

    write()
    site.environ["FSREPL_CLOCK"] = str(path)
    thread = threading.Thread(target=tick, name="clock")
    thread.start()
    try:
        yield lambda offset_s: offset.__setitem__(0, offset_s)
    finally:
        end.set()
        thread.join()


class _Attack:
    """A site under attack, and what was observed of it."""

    def __init__(self, site: Site, plan: Plan, step_clock: Callable[[float], None]) -> None:
        self.site, self.plan, self.step_clock = site, plan, step_clock
        self.stores = Stores(site)
        self.history = History(groups_links=plan.trees)
        self.out = Outcome()
        self.chance = random.Random(plan.seed)
        self.disabled: set[str] = set()
        self.document = b""
        """The configuration of the source while it is removed, its versioning being suspended."""
        self.suspended_s = 0.0

    # -- users work

    def kill_and_start(self) -> None:
        """Kill the daemon now and then, sometimes with its journal, sometimes with a new start of the machine. At the
        end one runs."""
        until_s = time.monotonic() + self.plan.seconds
        uptimes_s = (0.1, 0.2, 0.5, 1.0) if self.plan.kills else (0.2, 1.0, 3.0, 10.0)
        while True:
            self.site.start("-v", timeout_s=START_DEADLINE_S)
            since_s = time.monotonic()
            self._administer()
            left_s = 10.0 if self.plan.kills else until_s - time.monotonic()
            time.sleep(max(0.0, min(self.chance.choice(uptimes_s), left_s)))
            self.history.up.append((since_s, time.monotonic()))
            if self.out.kills >= self.plan.kills if self.plan.kills else time.monotonic() >= until_s:
                return
            self.site.kill()
            self.out.kills += 1
            self._check(self.stores.read(self.plan.buckets))
            state, chance = self.site.root / ".fsrepl-site", self.chance.random()
            if chance < 0.2:
                for path in state.glob("journal.db*"):
                    path.unlink()
            elif chance < 0.4:
                note_another_boot(state / "journal.db")

    def _check(self, listing: history.Listing) -> None:
        """Check what the disks hold after a kill, against what they held after the one before."""
        pair = [*self.history.listings, listing]
        # of one whose record was lost, and whose content is another since, the digest is in the listing before alone
        found = history.check_listings(pair, overwritten=set().union(*map(self._shared, pair)))
        self.out.faults += [f"after {self.out.kills} kills: {each}" for each in found]
        self.history.listings = pair[-1:]

    def _shared(self, listing: history.Listing) -> set[str]:
        """Digests of stored versions that may be the views' own files, which users overwrite in place.

        While its rules are removed, a source that has replicas is a bucket that only receives them.
        """
        linked = {each.digest for found in listing.values() for each in found}
        received = {each.digest for each in listing[SOURCE] if each.maker != SOURCE}
        return linked if self.plan.sharing == "link" else received if self.plan.suspend else set()

    def _administer(self) -> None:
        if self.plan.clock:
            self.step_clock(self.chance.choice(_STEPS_S))
        if self.plan.rules and self.chance.random() < 0.5 and not self.document:
            bucket = self.chance.choice([*self.plan.destinations])
            if bucket in self.disabled:
                self._enable(bucket)
            else:
                self.site.must("replication", "disable", bucket)
                self.disabled.add(bucket)
        if self.plan.suspend and self.chance.random() < 0.5:
            if self.document:
                self._resume()
            elif SOURCE not in self.disabled:
                self.document = self.site.must("replication", "get", SOURCE).out.encode()
                self.site.must("replication", "rm", SOURCE)
                self.suspended_s = time.monotonic()
                self.site.must("versioning", "suspend", SOURCE)

    def _enable(self, bucket: str) -> None:
        self.site.must("replication", "enable", bucket)
        self.disabled.discard(bucket)

    def _resume(self) -> None:
        self.site.must("versioning", "enable", SOURCE)
        self.history.suspended.append((self.suspended_s, time.monotonic()))
        self.site.must("replication", "put", SOURCE, "-", stdin=self.document)
        self.document = b""

    # -- what became of it

    def judge(self, users: list[Users]) -> Outcome:
        site, plan, out = self.site, self.plan, self.out
        for user in users:
            out.deeds += user.deeds
            out.faults += [f"a deed failed: {error}" for error in user.errors]
            for digest, since_s in user.ledger.contents.items():
                self.history.contents[digest] = min(since_s, self.history.contents.get(digest, since_s))
            self.history.copied |= user.ledger.copied
        if plan.sharing == "link" or plan.suspend:
            self.history.overwritten = {digest for each in users for digest, _ in each.ledger.overwritten}
        since_s = time.monotonic()
        self._restore_rules()
        self._come_to_rest("running on")
        self.history.up.append((since_s, time.monotonic()))
        site.kill()
        site.start("-v", timeout_s=START_DEADLINE_S)
        self._come_to_rest("after a scan")
        for user in users:
            self.history.rests += user.ledger.close(time.monotonic())
        destroyed = self._verify({user.ledger.bucket: user.ledger.overwritten for user in users})
        site.stop()
        last = self.stores.read(plan.buckets, again=True)
        self.history.listings.append(last)
        out.versions = len(last[SOURCE])
        out.faults += [str(each) for each in history.check(self.history)]
        for each in history.out_of_step(last, plan.destinations):
            (out.unpromised if (each.bucket, each.key) in {at[:2] for at in destroyed} else out.faults).append(
                str(each)
            )
        for _, verdict in history.verdicts(self.history):
            out.verdicts[verdict.value] += 1
        self._look_for_leftovers({key for _, key, _ in destroyed} if plan.sharing == "link" else set())
        log = site.log.read_text(errors="replace")
        if "Traceback" in log:
            out.faults.append("a traceback in the log: " + log[log.index("Traceback") :][:2000])
        return out

    def _restore_rules(self) -> None:
        if not (self.plan.rules or self.plan.suspend):
            return
        if self.document:
            self._resume()
        for bucket in sorted(self.disabled):
            self._enable(bucket)
        statuses = [word for status in ("NONE", "FAILED", "COMPLETED", "REPLICA") for word in ("--status", status)]
        # Also what is there already, since its metadata may have been edited. An edit travels to the replicas of the
        # bucket that made the version, and from there to replicas of these: what came that way, while a rule was
        # disabled, has it after a second round.
        for bucket in [*self.plan.destinations] * (len(self.plan.buckets) - 1):
            self.site.run("wait", "--timeout", REST_DEADLINE_S, timeout_s=2 * REST_DEADLINE_S)
            done = self.site.run("replication", "backfill", bucket, *statuses, "--wait", timeout_s=REST_DEADLINE_S)
            if done.code:
                out = self.out.unpromised if self.plan.sharing == "link" and done.code == 1 else self.out.faults
                out.append(f"backfill of {bucket} exits {done.code}: {done.err[:500]}")

    def _is_at_rest(self) -> bool:
        if self.plan.rules or self.plan.suspend:  # then a marker may be here, and not there
            lost = self.history.overwritten if self.plan.sharing == "link" else ()
            return not history.out_of_step(self.stores.read(self.plan.buckets), self.plan.destinations, lost)
        trees = [self.site.tree(bucket) for bucket in self.plan.buckets]
        return all(tree == trees[0] for tree in trees)

    def _come_to_rest(self, when: str) -> None:
        """Wait until all sides are equal without any help. Only a site that is stuck reaches the time limit."""
        site, until_s = self.site, time.monotonic() + REST_DEADLINE_S
        while True:
            done = site.run("wait", "--timeout", 30, timeout_s=90)
            if done.code == 0 and self._is_at_rest():
                return
            if time.monotonic() > until_s or (done.code == 1 and time.monotonic() > until_s - REST_DEADLINE_S / 2):
                trees = {bucket: site.tree(bucket) for bucket in self.plan.buckets}
                every = set().union(*trees.values())
                differ = sorted(key for key in every if len({tree.get(key) for tree in trees.values()}) > 1)
                for key, bucket in itertools.product(differ[:3], self.plan.buckets):
                    self.out.faults.append(f"{bucket}: " + str(site.run("why", f"{bucket}/{key}").out)[:400])
                said = f"wait exits {done.code} {done.err.strip()[:500]!r}"
                self.out.faults.append(f"{when}: no rest: {said}; differ: {differ}")
                return
            time.sleep(0.2)

    def _verify(self, overwritten: Mapping[str, Mapping[tuple[str, int], set[str]]]) -> set[tuple[str, str, str]]:
        """Differences that are forbidden, and the stored versions that are destroyed, by bucket, key and version.

        overwritten: see Ledger, by bucket. With `sharing = "link"` a destroyed version is fetched from where it is
        whole, through whatever name its file was written into.
        """
        destroyed: dict[tuple[str, str, str], dict[str, Any]] = {}
        others: dict[tuple[str, str, str], str] = {}
        for source in self.plan.destinations:
            found = self.site.run("verify", source, "--json", timeout_s=300).json()
            for each in found["Differences"]:
                at = (each["Bucket"], each["Key"], each["VersionId"])
                if each["Problem"] == "DigestMismatch":
                    destroyed[at] = each
                else:
                    others[at] = each["Problem"]
        listing = self.stores.read(self.plan.buckets, again=True)
        there = {(bucket, v.key, v.id): v for bucket, versions in listing.items() for v in versions if v.is_whole}
        digests = {(b, v.key, v.id): v.digest for b, versions in listing.items() for v in versions}
        inos = {(b, v.key, v.id): v.ino for b, versions in listing.items() for v in versions}
        self._judge_others(others, digests)
        for bucket, key, version in sorted(destroyed):
            digest = digests.get((bucket, key, version), "")
            whole = [other for other in self.plan.buckets if (other, key, version) in there]
            line = f"destroyed: {bucket}/{key} version {version} {digest[:12]}"
            names = overwritten.get(bucket, {}).get((digest, inos.get((bucket, key, version), 0)), set())
            if self.plan.sharing != "link" or whole or digest not in self.history.overwritten:
                why = f"{whole[0]} has it whole" if whole else "nobody overwrote it in place"
                self.out.faults.append(f"{line}; {why}; overwritten at {sorted(names)}")
            else:
                self.out.unpromised.append(line)
        return set(destroyed)

    def _judge_others(
        self, problems: Mapping[tuple[str, str, str], str], digests: Mapping[tuple[str, str, str], str]
    ) -> None:
        """Differences in metadata, and of records. With `sharing = "link"`, an edit through another name of the file
        makes no event at the version's key, and none at all once that is gone; nor does a record that comes with the
        attributes of another file, after which nothing tells whose file it is."""
        names: dict[str, set[str]] = {}
        for rest in self.history.rests:
            names.setdefault(rest.file.digest, set()).add(rest.key)
        for at, problem in sorted(problems.items()):
            has_others = bool(names.get(digests.get(at, ""), set()) - {at[1]})
            is_unseen = self.plan.sharing == "link" and problem in _OF_METADATA and has_others
            line = f"verify: {problem} {'/'.join(at)}"
            (self.out.unpromised if is_unseen else self.out.faults).append(line)

    def _look_for_leftovers(self, destroyed: set[str]) -> None:
        """Files left in staging. destroyed: keys of versions that an intent says are still looked for elsewhere."""
        for bucket, name in itertools.product(self.plan.buckets, ("tmp", "displaced", "intents")):
            for path in self.site.path(f".fsrepl/{name}", bucket).iterdir():
                if path.name != "barrier" and not (name == "intents" and _is_search(path, destroyed)):
                    self.out.faults.append(f"left over: {path}")


def _is_search(path: Path, destroyed: set[str]) -> bool:
    return all(
        each["act"] == "fetch" and os.fsdecode(base64.b64decode(each["key"])) in destroyed
        for each in json.loads(path.read_bytes())
    )
