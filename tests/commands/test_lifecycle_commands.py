"""Lifecycle by command: documents are put, returned and removed; due actions are listed before anything is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.commands import lifecycle, why
from fsrepl.commands.reader import reader
from fsrepl.errors import Refused, Unavailable
from fsrepl.model import clock
from fsrepl.model.version import Status
from tests.world import DESTINATION, SOURCE, World, at, v2

Json = dict[str, Any]
RULES: Json = {"Rules": [{"ID": "old", "Filter": {"Prefix": "d/"}, "Status": "Enabled", "Expiration": {"Days": 2}}]}


@pytest.fixture
def now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that contains the current time."""
    path = tmp_path / "now"
    path.write_text("2026-05-01T10:00:00Z")
    monkeypatch.setenv("FSREPL_CLOCK", str(path))
    return path


@pytest.fixture
def world(tmp_path: Path, now: Path) -> Iterator[World]:
    with World(tmp_path / "world") as found:
        yield found


def previewed(world: World, moment: str, bucket: str = SOURCE) -> list[Json]:
    with reader(world.engine.site) as journal:
        return list(lifecycle.preview(world.engine.site, journal, bucket, clock.parse(moment)))


def test_a_configuration_is_put_returned_and_removed(world: World) -> None:
    """design, 2 and 5: stored beside the bucket's other documents, as S3 writes it; NoSuchLifecycleConfiguration
    without one, but the removal of none succeeds, as in S3."""
    assert world.run("lifecycle.rm", bucket=SOURCE) == {"Bucket": SOURCE, "Removed": False}
    assert world.refused("lifecycle.rm", bucket="east/none") == "NoSuchBucket"
    with pytest.raises(Refused, match=r"^NoSuchLifecycleConfiguration"):
        lifecycle.configuration(world.engine.site, SOURCE)
    assert world.run("lifecycle.put", bucket=SOURCE, document={"LifecycleConfiguration": RULES}) == RULES
    assert json.loads(world.path(".fsrepl/lifecycle.json").read_text()) == RULES
    assert lifecycle.configuration(world.engine.site, SOURCE).document == RULES
    world.restart()
    assert lifecycle.configuration(world.engine.site, SOURCE).document == RULES
    assert world.refused("lifecycle.put", bucket=SOURCE, document={"Rules": []}) == "MalformedXML"
    assert lifecycle.configuration(world.engine.site, SOURCE).document == RULES
    assert world.run("lifecycle.rm", bucket=SOURCE) == {"Bucket": SOURCE, "Removed": True}
    assert not world.path(".fsrepl/lifecycle.json").exists()
    assert world.run("lifecycle.rm", bucket=SOURCE) == {"Bucket": SOURCE, "Removed": False}


def test_a_configuration_that_s3_refuses_for_the_order_of_its_actions_is_not_put(world: World) -> None:
    """InvalidArgument; one that was saved before that was refused is followed as it was."""
    transitions = [{"Days": 1, "StorageClass": "GLACIER"}]
    early = {"Rules": [{**RULES["Rules"][0], "Expiration": {"Days": 1}, "Transitions": transitions}]}
    assert world.refused("lifecycle.put", bucket=SOURCE, document=early) == "InvalidArgument"
    with pytest.raises(Refused, match=r"^InvalidArgument"), reader(world.engine.site) as journal:
        list(lifecycle.preview(world.engine.site, journal, SOURCE, world.engine.site.now(), early))
    assert not world.path(".fsrepl/lifecycle.json").exists()
    world.path(".fsrepl/lifecycle.json").write_text(json.dumps(early))
    world.settle()
    assert lifecycle.configuration(world.engine.site, SOURCE).document == early
    world.write("k", b"data")
    world.settle()
    assert world.statuses() == {Status.COMPLETED}


def test_an_edit_of_the_document_is_in_effect_at_once(world: World) -> None:
    """design, 4: as for the other documents; one that cannot be read takes the bucket offline, and nothing expires."""
    path = world.path(".fsrepl/lifecycle.json")
    path.write_text(json.dumps(RULES))
    world.settle()
    bucket = world.engine.site.bucket(SOURCE)
    assert bucket.lifecycle is not None
    path.write_text('{"Rules": [{}]}')
    world.settle()
    assert not world.state().is_up
    with pytest.raises(Unavailable, match=r"lifecycle\.json is not valid: MalformedXML"), bucket.open():
        pass
    path.write_text(json.dumps(RULES))
    world.settle()
    assert world.state().is_up


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away")
def test_a_document_that_another_user_owns_is_refused(world: World) -> None:
    """design, 2: documents that belong to neither the daemon nor root are refused."""
    path = world.path(".fsrepl/lifecycle.json")
    path.write_text(json.dumps(RULES))
    os.chown(path, 65533, 65533)
    with pytest.raises(Unavailable, match=r"lifecycle\.json"), world.engine.site.bucket(SOURCE).open():
        pass


def test_due_actions_are_listed_before_anything_is_removed(world: World) -> None:
    """design, 5: key, version, action, due time and rule; at any given moment, and nothing is changed."""
    for key in ("d/a", "d/b", "other"):
        world.write(key, key.encode())
    world.settle()
    world.run("lifecycle.put", bucket=SOURCE, document=RULES)
    assert previewed(world, "2026-05-03T23:59:59Z") == []
    before = world.snapshot()
    items = previewed(world, "2026-05-04T00:00:00Z")
    assert world.snapshot() == before
    assert [item["Key"] for item in items] == ["d/a", "d/b"]
    assert items[0] == {
        "Key": "d/a",
        "VersionId": world.current("d/a").id,
        "Action": "Expiration",
        "StorageClass": None,
        "Due": "2026-05-04T00:00:00.000000000Z",
        "Rule": "old",
        "BlockedBy": None,
    }
    with pytest.raises(Refused, match=r"^NoSuchLifecycleConfiguration"):
        previewed(world, "2026-05-04T00:00:00Z", DESTINATION)


@pytest.mark.parametrize("without_journal", [False, True])
def test_tags_and_classes_are_those_of_the_record(world: World, without_journal: bool) -> None:
    """5.1, 5.4: also after a tag was edited, and without a journal."""
    tagged = {"Filter": {"Tag": {"Key": "keep", "Value": "no"}}}
    rules = {"Rules": [{**RULES["Rules"][0], **tagged}]}
    world.run("lifecycle.put", bucket=SOURCE, document=rules)
    for key in ("a", "b", "c"):
        world.drop(key, key.encode(), tags={"keep": "no" if key == "a" else "yes"})
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"a", tags={"keep": "yes"})
    world.run("tag.set", bucket=SOURCE, key=b"b", tags={"keep": "no"})
    if without_journal:
        world.restart(without_journal=True)
        world.settle()
    for bucket in (SOURCE, DESTINATION):
        world.settle()
        if bucket is DESTINATION:
            world.run("lifecycle.put", bucket=bucket, document=rules)
        assert [item["Key"] for item in previewed(world, "2027-01-01T00:00:00Z", bucket)] == ["b"]


@pytest.mark.parametrize("status", [Status.PENDING, Status.FAILED])
def test_a_version_that_is_not_replicated_yet_is_listed_as_waiting(world: World, status: Status) -> None:
    """5.5, 1; GUIDE: lifecycle actions do not resolve until replication has completed."""
    world.run("lifecycle.put", bucket=SOURCE, document=RULES)
    if status is Status.PENDING:
        world.away("west")
    else:
        world.run("replication.rm", source=SOURCE)
        world.configure(v2())
        next(world.settings.roles.glob("courier*")).unlink()
    world.write("d/k", b"data")
    world.settle()
    assert world.current("d/k").status is status
    assert [item["BlockedBy"] for item in previewed(world, "2027-01-01T00:00:00Z")] == [str(status)]
    answer = why.why(world.engine.site, at(SOURCE, b"d/k"), None, {"running": False})
    assert answer.document["Lifecycle"][0]["BlockedBy"] == str(status)


def test_why_says_when_a_rule_will_act(world: World) -> None:
    """design, 5: also for actions that are not due yet."""
    world.run("lifecycle.put", bucket=SOURCE, document=RULES)
    world.write("d/k", b"data")
    world.settle()
    answer = why.why(world.engine.site, at(SOURCE, b"d/k"), None, {"running": False})
    assert "lifecycle: Expiration by rule old is due 2026-05-04T00:00:00.000000000Z" in answer.sentences
    assert answer.document["Lifecycle"] == [
        {
            "Action": "Expiration",
            "StorageClass": None,
            "Due": "2026-05-04T00:00:00.000000000Z",
            "Rule": "old",
            "BlockedBy": None,
        }
    ]


def test_files_of_a_bucket_that_was_never_versioned(world: World) -> None:
    """5.2, the first column: each is its key's only version, as old as its file."""
    world.run("bucket.create", bucket="east/plain")
    world.write("d/e/k", b"data", "east/plain")
    os.utime(world.path("d/e/k", "east/plain"), (0, 0))
    world.run("lifecycle.put", bucket="east/plain", document=RULES)
    (item,) = previewed(world, "2026-05-01T00:00:00Z", "east/plain")
    assert (item["Key"], item["VersionId"], item["Due"]) == ("d/e/k", "null", "1970-01-03T00:00:00.000000000Z")
