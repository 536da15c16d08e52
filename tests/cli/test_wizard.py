"""`fsrepl replication enable` on a terminal: the console's steps, what it offers, and how it uses the answers."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

from fsrepl.commands.versioning_cost import OLD_VERSIONS
from tests.site import SOURCE, Site
from tests.waiting import DEADLINE_S


def talk(site: Site, *steps: tuple[str, str], options: tuple[str, ...] = ()) -> tuple[int, str]:
    """Run the command on a terminal, and answer each question when it comes. Returns the exit status and all shown
    text."""
    program = [sys.executable, "-m", "fsrepl", "--site", str(site.root), "replication", "enable", *options]
    pid, fd = pty.fork()
    if pid == 0:
        os.execvpe(program[0], program, {**os.environ, "TERM": "dumb", "NO_COLOR": "1"})
    shown, asked = "", 0
    until_s = time.monotonic() + DEADLINE_S
    left = list(steps)
    try:
        while time.monotonic() < until_s:
            if select.select([fd], [], [], 0.1)[0]:
                try:
                    shown += os.read(fd, 65536).decode()
                except OSError:  # the other side is closed: the command has ended
                    break
            if left and left[0][0] in shown[asked:] and shown.rstrip().endswith(("]:", "):")):
                asked = len(shown)
                os.write(fd, left.pop(0)[1].encode())
    finally:
        os.close(fd)
    _, status = os.waitpid(pid, 0)
    assert not left, shown
    return os.waitstatus_to_exitcode(status), shown


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = tmp_path_factory.mktemp("wizard")
    regions = {name: home / name for name in ("east", "north", "west")}
    made = Site(home, regions=regions, buckets=(SOURCE, "north/far", "west/dst", "east/near"), replicate=False)
    made.must("bucket", "create", "west/plain")
    return made


@pytest.fixture(autouse=True)
def without_rules(site: Site) -> None:
    if site.run("replication", "get", SOURCE).code == 0:
        site.must("replication", "rm", SOURCE)


def test_the_whole_bucket_by_the_names_of_things(site: Site) -> None:
    """S8 to S21: source, region, bucket, whole bucket, class, role; only valid choices are offered."""
    code, shown = talk(
        site,
        ("Source bucket", f"{SOURCE}\n"),
        ("Destination region", "west\n"),
        ("Destination bucket", "dst\n"),
        ("Replicate", "\n"),
        ("Storage class", "\n"),
        ("Role", "\n"),
        ("tree buckets", "\n"),
        ("3 newest", "y\n"),
    )
    assert code == 0, shown
    assert "until a lifecycle rule removes it" in shown
    assert site.json("lifecycle", "get", SOURCE) == OLD_VERSIONS
    example = Path(__file__).parent.parent.parent / "examples/lifecycle/old-versions.json"
    assert json.loads(example.read_text()) == OLD_VERSIONS
    site.must("lifecycle", "rm", SOURCE)
    offered = shown.partition("Destination region")[2]
    assert "near" not in offered, "it is in the source's own region"
    assert "plain" not in shown, "it has no versioning"
    configuration = site.json("replication", "get", SOURCE)["ReplicationConfiguration"]
    assert configuration["Role"].endswith("/replication_role_for_src_to_dst")
    (rule,) = configuration["Rules"]
    assert (rule["Prefix"], rule["Destination"]) == ("", {"Bucket": "arn:aws:s3:west::dst"})


def test_prefixes_each_with_its_storage_class(site: Site) -> None:
    """S13, S14: more than one prefix, and a class for each."""
    code, shown = talk(
        site,
        ("Source bucket", "src\n"),
        ("Destination region", "1\n"),
        ("Destination bucket", "1\n"),
        ("Replicate", "keys\n"),
        ("Prefix", "Tax/\n"),
        ("Storage class of the replicas of Tax/", "STANDARD_IA\n"),
        ("Prefix", "logs/\n"),
        ("Storage class of the replicas of logs/", "as\n"),
        ("Prefix", "\n"),
        ("Role", "create\n"),
        ("tree buckets", "n\n"),
        ("3 newest", "\n"),
    )
    assert code == 0, shown
    rules = site.json("replication", "get", SOURCE)["ReplicationConfiguration"]["Rules"]
    assert [(r["Prefix"], r["Destination"].get("StorageClass")) for r in rules] == [
        ("Tax/", "STANDARD_IA"),
        ("logs/", None),
    ]
    assert {r["Destination"]["Bucket"] for r in rules} == {"arn:aws:s3:north::far"}


def test_prefixes_are_added_and_removed(site: Site) -> None:
    """S13: the list of prefixes is shown; one that overlaps is refused at once, and not after the last question."""
    code, shown = talk(
        site,
        ("Source bucket", "src\n"),
        ("Destination region", "west\n"),
        ("Destination bucket", "1\n"),
        ("Replicate", "2\n"),
        ("Prefix (a folder", "Tax\n"),
        ("Storage class of the replicas of Tax", "\n"),
        ("Prefixes so far: Tax", "Tax/2026\n"),
        ("Tax/2026 overlaps Tax;", "Tax\n"),
        ("Prefixes so far: none", "Tax/2026\n"),
        ("Storage class of the replicas of Tax/2026", "\n"),
        ("Prefixes so far: Tax/2026", "\n"),
        ("Role", "\n"),
        ("tree buckets", "y\n"),
        ("3 newest", "\n"),
    )
    assert code == 0, shown
    (rule,) = site.json("replication", "get", SOURCE)["ReplicationConfiguration"]["Rules"]
    assert rule["Prefix"] == "Tax/2026"
    for bucket in (SOURCE, "west/dst"):
        assert site.must("bucket", "trees", bucket).out == "on\n"
        site.must("bucket", "trees", bucket, "off")


@pytest.mark.parametrize("options", [("--prefix", "x/"), ("--storage-class", "GLACIER"), ("--add",), ("--role", "r")])
def test_an_option_that_an_answer_would_override_is_refused(site: Site, options: tuple[str, ...]) -> None:
    """Section 5: such an option is refused, and not silently ignored."""
    code, shown = talk(site, options=options)
    assert (code, "answer the questions" in shown) == (2, True)


@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["interrupt", "end of input"])
def test_interrupting_the_questions_changes_nothing(site: Site, key: str) -> None:
    """Section 5: no half-made change, and no traceback."""
    code, shown = talk(site, ("Source bucket", "99\n"), ("a number from 1 to", f"{SOURCE}\n"), ("Destination", key))
    assert code in (1, 130), shown
    assert "Traceback" not in shown
    site.refused("ReplicationConfigurationNotFoundError", "replication", "get", SOURCE)


def test_without_a_terminal_it_asks_nothing(site: Site) -> None:
    """Section 5: a script gets a message that names the missing arguments."""
    done = site.run("replication", "enable")
    assert (done.code, done.out) == (2, "")
    assert "SRC and DST are missing" in done.err
