"""The course of an attack: users work and the daemon is killed, then everything stops, and the faults are listed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.attack.ledger import Rest, Verdict, judge
from tests.attack.users import Users
from tests.site import DESTINATION, SOURCE, Site

BUCKETS = (SOURCE, DESTINATION)
REST_DEADLINE_S = 120.0


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


def run(home: Path, *, seed: int, seconds: float, sharing: str) -> Outcome:
    """Attack a new site below a folder. The site is left there."""
    with Site(home, replicate=False) as site:
        _configure(site, sharing)
        users = [
            Users(bucket, site.path(bucket=bucket), site.regions[bucket.split("/")[0]] / ".aside", f"{seed}{bucket[0]}")
            for bucket in BUCKETS
        ]
        for each in users:
            each.start()
        try:
            up = _kill_and_start(site, random.Random(seed), seconds)
        finally:
            for each in users:
                each.stop()
        return _judge(site, users, up, sharing)


def _configure(site: Site, sharing: str) -> None:
    path = site.root / "fsrepl.toml"
    text = path.read_text()
    for region in site.regions:
        text = text.replace(f"[regions.{region}]\n", f'[regions.{region}]\nsharing = "{sharing}"\n')
    path.write_text(text)
    site.must("replication", "enable", SOURCE, DESTINATION)
    site.must("replication", "enable", DESTINATION, SOURCE)


def _kill_and_start(site: Site, chance: random.Random, seconds: float) -> list[tuple[float, float]]:
    """Kill the daemon now and then, sometimes with its journal. Returns the periods in which a daemon was ready."""
    until_s = time.monotonic() + seconds
    up = []
    while True:
        site.start("-v")
        since_s = time.monotonic()
        time.sleep(max(0.0, min(chance.choice((0.2, 1.0, 3.0, 10.0)), until_s - since_s)))
        up.append((since_s, time.monotonic()))
        if time.monotonic() >= until_s:
            return up
        site.kill()
        if chance.random() < 0.2:
            for path in (site.root / ".fsrepl-site").glob("journal.db*"):
                path.unlink()


def _judge(site: Site, users: list[Users], up: list[tuple[float, float]], sharing: str) -> Outcome:
    out = Outcome(kills=len(up) - 1)
    for each in users:
        out.deeds += each.deeds
        out.faults += [f"a deed failed: {error}" for error in each.errors]
    since_s = time.monotonic()
    _come_to_rest(site, out, "running on")
    up.append((since_s, time.monotonic()))
    site.kill()
    site.start("-v")
    _come_to_rest(site, out, "after a scan")
    destroyed = _verify(site, out, sharing, {digest for each in users for digest in each.ledger.overwritten})
    _compare(site, out, destroyed)
    for each in users:
        versions = _digests(site, each.ledger.bucket)
        rests = each.ledger.close(time.monotonic())
        for rest in rests:
            _judge_rest(out, rest, up, versions.get(rest.key, {}), destroyed, each.ledger.overwritten, sharing)
    _look_for_leftovers(site, out, {key for _, key, _ in destroyed} if sharing == "link" else set())
    site.stop()
    log = site.log.read_text(errors="replace")
    if "Traceback" in log:
        out.faults.append("a traceback in the log: " + log[log.index("Traceback") :][:2000])
    return out


def _judge_rest(
    out: Outcome, rest: Rest, up: list[tuple[float, float]], versions: dict[str, str],
    destroyed: set[tuple[str, str, str]], overwritten: set[str], sharing: str,
) -> None:  # fmt: skip
    whole = {d for version, d in versions.items() if (rest.bucket, rest.key, version) not in destroyed}
    verdict = judge(rest, up, whole, {*versions.values()} - whole, overwritten if sharing == "link" else ())
    out.verdicts[verdict.value] += 1
    if verdict is Verdict.LOST:
        out.faults.append(
            f"lost: {rest.bucket}/{rest.key} {rest.file.digest[:12]} rested {rest.until_s - rest.since_s:.1f} s"
        )


def _come_to_rest(site: Site, out: Outcome, when: str) -> None:
    """Wait until both sides are equal without any help. Only a site that is stuck reaches the time limit."""
    until_s = time.monotonic() + REST_DEADLINE_S
    while True:
        done = site.run("wait", "--timeout", 30, timeout_s=90)
        if done.code == 0 and site.tree(SOURCE) == site.tree(DESTINATION):
            return
        if time.monotonic() > until_s or (done.code == 1 and time.monotonic() > until_s - REST_DEADLINE_S / 2):
            trees = [site.tree(bucket) for bucket in BUCKETS]
            differ = sorted(k for k in trees[0].keys() | trees[1].keys() if trees[0].get(k) != trees[1].get(k))
            for key in differ[:3]:
                out.faults += [f"{bucket}: " + str(site.run("why", f"{bucket}/{key}").out)[:400] for bucket in BUCKETS]
            out.faults.append(f"{when}: no rest: wait exits {done.code} {done.err.strip()[:500]!r}; differ: {differ}")
            return
        time.sleep(0.2)


def _verify(site: Site, out: Outcome, sharing: str, overwritten: set[str]) -> set[tuple[str, str, str]]:
    """Differences that are forbidden, and the stored versions that are destroyed, by bucket, key and version."""
    destroyed: dict[tuple[str, str, str], dict[str, Any]] = {}
    others: set[str] = set()
    for source in BUCKETS:
        found = site.run("verify", source, "--json", timeout_s=300).json()
        for each in found["Differences"]:
            at = (each["Bucket"], each["Key"], each["VersionId"])
            if each["Problem"] == "DigestMismatch":
                destroyed[at] = each
            else:
                others.add(f"verify: {each['Problem']} {'/'.join(at)}")
    out.faults += sorted(others)
    digests = {bucket: _digests(site, bucket) for bucket in BUCKETS}
    for bucket, key, version in sorted(destroyed):
        digest = digests[bucket].get(key, {}).get(version, "")
        there = [b for b in BUCKETS if digests[b].get(key, {}).get(version) and (b, key, version) not in destroyed]
        line = f"destroyed: {bucket}/{key} version {version} {digest[:12]}"
        if sharing != "link" or there or digest not in overwritten:
            why = f"{there[0]} has it whole" if there else "nobody overwrote it in place"
            out.faults.append(f"{line}; {why}")
        else:
            out.unpromised.append(line)
    return set(destroyed)


def _compare(site: Site, out: Outcome, destroyed: set[tuple[str, str, str]]) -> None:
    histories = [site.history(bucket) for bucket in BUCKETS]
    gone = {(os.fsencode(key), version) for _, key, version in destroyed}
    out.versions = sum(map(len, histories[0].values()))
    for key in sorted(histories[0].keys() | histories[1].keys()):
        one, two = ({row for row in h.get(key, []) if (key, row[0]) not in gone} for h in histories)
        if one != two:
            out.faults.append(f"histories differ: {os.fsdecode(key)}: {sorted(one ^ two)}")
    for bucket in BUCKETS:
        for each in site.json("ls", bucket, "--versions")["Versions"]:
            at = (os.fsencode(each["Key"]), each["VersionId"])
            if each.get("ReplicationStatus") not in ("COMPLETED", "REPLICA"):
                line = f"{each.get('ReplicationStatus')}: {bucket}/{each['Key']} version {each['VersionId']}"
                (out.unpromised if at in gone else out.faults).append(line)


def _digests(site: Site, bucket: str) -> dict[str, dict[str, str]]:
    """The recorded BLAKE3 of each version, by key and version id."""
    out: dict[str, dict[str, str]] = {}
    for each in site.json("ls", bucket, "--versions")["Versions"]:
        out.setdefault(each["Key"], {})[each["VersionId"]] = each.get("ETag", "").strip('"')
    return out


def _look_for_leftovers(site: Site, out: Outcome, destroyed: set[str]) -> None:
    """Files left in staging. destroyed: keys of versions that an intent says are still looked for in other regions."""

    def is_search(path: Path) -> bool:
        return all(
            each["act"] == "fetch" and os.fsdecode(base64.b64decode(each["key"])) in destroyed
            for each in json.loads(path.read_bytes())
        )

    def left() -> list[str]:
        folders = [
            site.path(f".fsrepl/{name}", bucket) for bucket in BUCKETS for name in ("tmp", "displaced", "intents")
        ]
        found = [path for folder in folders for path in folder.iterdir() if path.name != "barrier"]
        return [str(path) for path in found if not (path.parent.name == "intents" and is_search(path))]

    with contextlib.suppress(AssertionError):
        site.until(lambda: not left(), "nothing is left over", timeout_s=20)
    out.faults += [f"left over: {name}" for name in left()]
