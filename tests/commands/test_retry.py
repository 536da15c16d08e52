"""`retry` prints what it tried again, what it could not try, and what does not exist."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fsrepl.cli import wait as cli_wait
from fsrepl.commands.why import reason_code, remedy
from fsrepl.errors import Usage
from fsrepl.model.version import Status
from tests.world import DESTINATION, SOURCE, World

app = typer.Typer()
cli_wait.register(app)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as made:
        yield made


def suspend(world: World) -> None:
    """Suspend versioning at the destination, so that deliveries to it fail."""
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")


def mend(world: World) -> None:
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")


def fail(world: World, *keys: str) -> None:
    suspend(world)
    for key in keys:
        world.write(key, b"data")
    world.settle()
    assert {world.current(key).status for key in keys} == {Status.FAILED}


def retry(world: World, scope: str) -> dict[str, object]:
    return world.run("retry", **({"scope": scope} if scope else {}))


def test_what_failed_is_pending_from_then_on_and_arrives(world: World) -> None:
    """Section 5, retry; G11: record, journal and count say PENDING before the delivery is sent."""
    fail(world, "a", "b")
    mend(world)
    assert world.run("retry", scope=f"{SOURCE}/a") == {"Retried": 1}
    assert (world.current("a").status, world.current("b").status) == ("PENDING", "FAILED")
    assert world.engine.journal.deliveries.count_pending(SOURCE, 1 << 62) == 1
    world.engine.run_until_idle()
    assert world.current("a").status == "COMPLETED"
    assert set(world.tree(DESTINATION)) == {"a"}
    assert world.run("retry", scope=f"{SOURCE}/a") == {"Retried": 0}
    assert world.run("retry") == {"Retried": 1}


def test_failures_of_one_kind_are_retried_alone(world: World) -> None:
    """What was mended is tried again; what has another reason, or goes elsewhere, stays FAILED."""
    fail(world, "a", "b")
    assert world.run("retry", scope=SOURCE, reason="AssumeRoleNotPermitted") == {"Retried": 0}
    assert world.run("retry", scope=SOURCE, destination="west/other") == {"Retried": 0}
    assert world.run("retry", scope=SOURCE, rule="other") == {"Retried": 0}
    mend(world)
    asked = {"reason": "DstBucketUnversioned", "destination": DESTINATION}
    assert world.run("retry", scope=SOURCE, **asked) == {"Retried": 2}
    world.settle()
    assert set(world.tree(DESTINATION)) == {"a", "b"}


def test_a_reason_that_is_misspelt_is_refused_with_the_known_ones(world: World) -> None:
    """Section 5, retry: `tried again: 0` would look as if nothing had failed for it."""
    fail(world, "a")
    with pytest.raises(
        Usage, match=r"'DstBucketUnversionned'; failures here have DstBucketUnversioned; known are .*Dst"
    ):
        world.run("retry", scope=SOURCE, reason="DstBucketUnversionned")
    with pytest.raises(Usage, match="no reason is called 'nonsense'; known are AssumeRole"):
        world.run("retry", scope=DESTINATION, reason="nonsense")


def test_words_of_a_service_belong_to_its_reason() -> None:
    """An S3 service's answer is recorded with S3's reason, by which people ask, and which the remedy is for."""
    recorded = "DstPutObjectNotPermitted (AccessDenied: Access Denied)"
    assert reason_code(recorded) == "DstPutObjectNotPermitted"
    assert "s3:ReplicateObject" in remedy(recorded)
    assert reason_code("EntityTooLarge: Your proposed upload exceeds the maximum") == "EntityTooLarge"


@pytest.mark.parametrize("scope", ["", SOURCE, f"{SOURCE}/k", f"{SOURCE}/d/", DESTINATION])
def test_where_nothing_failed_nothing_is_tried(world: World, scope: str) -> None:
    """Section 5, retry: a replica has no deliveries either."""
    world.write("k", b"data")
    world.settle()
    assert retry(world, scope) == {"Retried": 0}
    world.stays_quiet()


@pytest.mark.parametrize(
    ("scope", "code"),
    [(f"{SOURCE}/nothing", "NoSuchKey"), (f"{SOURCE}/d", "NoSuchKey"), ("east/nothing", "NoSuchBucket")],
)
def test_what_is_not_there_is_refused(world: World, scope: str, code: str) -> None:
    """Section 5, retry: also a folder that is named like a key."""
    world.write("d/k", b"data")
    world.settle()
    assert world.refused("retry", scope=scope) == code


def test_a_key_that_is_deleted_is_retried_by_its_name(world: World) -> None:
    """Section 5, retry: its versions and its marker still have deliveries."""
    fail(world, "k")
    world.unlink("k")
    world.settle()
    mend(world)
    assert world.run("retry", scope=f"{SOURCE}/k") == {"Retried": 2}
    world.settle()
    assert {v.status for v in world.of("k")} == {"COMPLETED"}
    assert world.ids(SOURCE) == world.ids(DESTINATION)


def test_what_is_broken_still_fails_again(world: World) -> None:
    """G11: with the reason, and once for each request."""
    fail(world, "k")
    for _ in range(2):
        assert world.run("retry", scope=SOURCE) == {"Retried": 1}
        world.settle()
        (recorded,) = world.current("k").deliveries.values()
        assert (recorded.status, recorded.reason) == ("FAILED", "DstBucketUnversioned")
    world.restart()
    world.settle()
    assert world.current("k").status == "FAILED"


def test_what_waits_for_its_next_try_is_tried_at_once(world: World) -> None:
    """Section 5, retry: PENDING counts, too."""
    world.away("west")
    world.write("k", b"data")
    world.settle()
    assert world.run("retry", scope=f"{SOURCE}/k") == {"Retried": 1}
    world.back("west")
    assert world.run("retry", scope=SOURCE) == {"Retried": 1}
    world.settle()
    assert world.run("retry", scope=SOURCE) == {"Retried": 0}


@pytest.mark.parametrize("scope", ["", SOURCE, f"{SOURCE}/k"])
def test_a_source_that_is_away_is_named_if_it_has_something_to_retry(world: World, scope: str) -> None:
    """Section 5, retry: `tried again: 0` would look as if nothing had failed."""
    fail(world, "k")
    mend(world)
    world.away("east")
    world.look()
    answer = retry(world, scope)
    (why,) = answer["LeftOut"]  # type: ignore[misc]
    assert answer["Retried"] == 0
    assert "east" in why
    world.back("east")
    world.look()
    assert retry(world, scope) == {"Retried": 1}
    world.settle()
    assert world.statuses() == {"COMPLETED"}
    world.away("east")
    world.look()
    assert retry(world, scope) == {"Retried": 0}
    world.back("east")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")
def test_a_bucket_that_is_offline_delays_no_other(tmp_path: Path) -> None:
    """Section 5, retry: with --all the offline bucket is named; asked for alone it is refused with the reason."""
    with World(tmp_path, buckets=(SOURCE, "east/other", DESTINATION)) as world:
        world.run("replication.enable", source="east/other", destination=DESTINATION)
        fail(world, "k")
        world.write("o", b"data", "east/other")
        world.settle()
        mend(world)
        world.path(".fsrepl", "east/other").chmod(0o777)
        world.look()
        answer = world.run("retry")
        (why,) = answer["LeftOut"]  # type: ignore[misc]
        assert (answer["Retried"], "east/other" in why) == (1, True)


@pytest.mark.parametrize(
    ("answer", "code", "out", "err"),
    [
        ({"Retried": 0}, 0, "tried again: 0 deliveries\n", ""),
        ({"Retried": 1}, 0, "tried again: 1 delivery\n", ""),
        (
            {"Retried": 2, "LeftOut": ["region east is away"]},
            1,
            "tried again: 2 deliveries\n",
            "left out: region east is away\n",
        ),
    ],
)
def test_what_it_prints(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, object], code: int, out: str, err: str
) -> None:
    """Section 5: skipped buckets are named on stderr and make the exit status 1; the JSON agrees."""
    monkeypatch.setattr(cli_wait, "await_daemon", lambda *_args, **_more: answer)
    said = CliRunner().invoke(app, ["retry", "--all"])
    assert (said.exit_code, said.stdout, said.stderr) == (code, out, err)
    said = CliRunner().invoke(app, ["retry", SOURCE, "--json"])
    assert (said.exit_code, json.loads(said.stdout), said.stderr) == (code, answer, err)


@pytest.mark.parametrize("arguments", [[], [SOURCE, "--all"]])
def test_retry_needs_an_address_or_all(arguments: list[str]) -> None:
    """Section 5: exactly one of the two, else the exit status is 2."""
    said = CliRunner().invoke(app, ["retry", *arguments])
    assert isinstance(said.exception, Usage)
