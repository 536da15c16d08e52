"""The outcomes of deliveries, and their status: s3-semantics, 1.5, 3.1, 3.2 and 3.3, row by row."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsrepl.commands import status, why
from fsrepl.errors import FsreplError, Refused
from fsrepl.model.version import DeliveryRecord, Origin, Status, shown_status
from fsrepl.region import limits
from tests.doubles import FailingFs
from tests.world import DESTINATION, SOURCE, Json, World, at, v1, v2

FAR = "north/far"
PENDING, COMPLETED, FAILED, REPLICA = Status.PENDING, Status.COMPLETED, Status.FAILED, Status.REPLICA


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, replicate=False, buckets=(SOURCE, DESTINATION, FAR)) as found:
        yield found


def outcome(world: World, key: str = "k", bucket: str = SOURCE) -> dict[str, tuple[Status, str]]:
    """Status and reason by destination, of a key's current version; the same in the record and in `why`."""
    version = world.current(key, bucket)
    said = why.why(world.engine.site, at(bucket, key.encode()), None, {"running": False})
    told = {d["Destination"]: (d["Status"], d["Reason"]) for d in said.document["Deliveries"]}
    found = {name: (d.status, d.reason) for name, d in version.deliveries.items()}
    assert {n: s for n, (s, _) in told.items()} == {n: str(s) for n, (s, _) in found.items()}
    assert all(told[n][1] == reason for n, (status, reason) in found.items() if status is FAILED)
    return found


# -- 3.1


@pytest.mark.parametrize(
    ("origin", "deliveries", "shown"),
    [
        (Origin.USER, [], None),
        (Origin.ADOPTED, [], None),
        (Origin.REPLICA, [], REPLICA),
        (Origin.USER, [PENDING], PENDING),
        (Origin.USER, [COMPLETED], COMPLETED),
        (Origin.USER, [FAILED], FAILED),
        (Origin.USER, [COMPLETED, PENDING], PENDING),
        (Origin.USER, [COMPLETED, FAILED], FAILED),
        (Origin.USER, [PENDING, FAILED], FAILED),
        (Origin.USER, [COMPLETED, PENDING, FAILED], FAILED),
        (Origin.REPLICA, [PENDING], PENDING),
        (Origin.REPLICA, [FAILED], FAILED),
        (Origin.REPLICA, [COMPLETED], REPLICA),
    ],
)
def test_the_shown_status_is_computed_from_those_per_destination(
    origin: Origin, deliveries: list[Status], shown: Status | None
) -> None:
    """3.1: FAILED before PENDING before COMPLETED; a replica without open deliveries is a REPLICA."""
    assert shown_status(origin, {str(i): DeliveryRecord("r", status) for i, status in enumerate(deliveries)}) == shown


def test_complete_is_read_as_completed() -> None:
    """3.1: SDKs list it as well."""
    assert Status("COMPLETE") is COMPLETED
    assert str(COMPLETED) == "COMPLETED"
    with pytest.raises(ValueError, match="DONE"):
        Status("DONE")


def test_one_destination_is_done_while_another_is_away(world: World) -> None:
    """3.1, several destinations; 3.2, first row: the other is delivered later by itself."""
    world.configure(v2("", 1), v2("", 2, to=FAR))
    world.away("north")
    world.write("k", b"data")
    world.settle()
    assert {n: s for n, (s, _) in outcome(world).items()} == {DESTINATION: COMPLETED, FAR: PENDING}
    assert world.current("k").status is PENDING
    world.back("north")
    world.settle()
    assert world.current("k").status is COMPLETED
    assert world.tree(FAR) == {"k": b"data"}


def test_one_that_failed_and_one_that_waits_show_failed(world: World) -> None:
    """3.1: FAILED comes first, and ends once it is tried again."""
    world.configure(v2("", 1), v2("", 2, to=FAR))
    world.away("north")
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    world.write("k", b"data")
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, "DstBucketUnversioned")
    assert outcome(world)[FAR][0] is PENDING
    assert world.current("k").status is FAILED
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")
    world.back("north")
    world.settle()
    assert {n: s for n, (s, _) in outcome(world).items()} == {DESTINATION: FAILED, FAR: COMPLETED}
    assert world.current("k").status is FAILED
    world.run("retry", scope=f"{SOURCE}/k")
    world.settle()
    assert world.current("k").status is COMPLETED


# -- 3.2: still pending


def _marker_file_gone(world: World) -> Callable[[], None]:
    at = world.settings.regions["west"].path / ".fsrepl-region.json"
    at.rename(at.with_name("aside"))
    return lambda: at.with_name("aside").rename(at) and None


def _region_gone(world: World) -> Callable[[], None]:
    world.away("west")
    return lambda: world.back("west")


def _region_is_empty(world: World) -> Callable[[], None]:
    world.away("west")
    world.settings.regions["west"].path.mkdir()

    def mend() -> None:
        assert list(world.settings.regions["west"].path.iterdir()) == []  # G8
        world.settings.regions["west"].path.rmdir()
        world.back("west")

    return mend


def _another_region_is_there(world: World) -> Callable[[], None]:
    world.away("west")
    other = world.settings.regions["west"].path
    other.mkdir()
    (other / ".fsrepl-region.json").write_text('{"uuid": "other", "name": "west", "created": "2026-01-01T00:00:00Z"}')
    (other / "dst").mkdir()

    def mend() -> None:
        assert os.listdir(other / "dst") == []
        shutil.rmtree(other)
        world.back("west")

    return mend


def _document_unreadable(world: World) -> Callable[[], None]:
    at = world.path(".fsrepl/versioning.json", DESTINATION)
    text = at.read_text()
    at.write_text("{")
    return lambda: at.write_text(text) and None


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize(
    "outage",
    [_marker_file_gone, _region_gone, _region_is_empty, _another_region_is_there, _document_unreadable],
    ids=lambda outage: outage.__name__.strip("_"),
)
def test_an_outage_keeps_it_pending(
    world: World, outage: Callable[[World], Callable[[], None]], restarted: bool
) -> None:
    """3.2, first row; G7, G8: no limit of attempts, and deliveries resume by themselves; versions and markers alike."""
    world.configure(v1())
    world.write("gone", b"gone")
    world.settle()
    mend = outage(world)
    world.write("k", b"data")
    world.unlink("gone")
    for _ in range(5):
        world.settle()
    if restarted:
        world.restart()
        world.settle()
    assert outcome(world)[DESTINATION][0] is PENDING
    assert outcome(world, "gone")[DESTINATION][0] is PENDING
    mend()
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"data"}
    assert world.statuses() == {COMPLETED}


@pytest.mark.parametrize("number", ["EIO", "ENOSPC", "EDQUOT", "EROFS", "ESTALE", "ETIMEDOUT", "EBUSY", "EMFILE"])
def test_a_passing_fault_keeps_it_pending(world: World, number: str) -> None:
    """3.2, first row: whichever call of the filesystem fails."""
    world.configure(v1())
    world.away("west")
    world.write("k", b"data")
    world.settle()
    fs = FailingFs(1, getattr(errno, number), for_ever=True)
    world.restart(fs=fs)
    world.back("west")
    world.settle()
    assert fs.failed
    assert outcome(world)[DESTINATION][0] is PENDING
    fs.mend()
    world.settle()
    assert world.current("k").status is COMPLETED
    assert world.tree(DESTINATION) == {"k": b"data"}


# -- 3.2 and 1.5: permanent failures


def _bucket_folder_gone(world: World) -> Callable[[], None]:
    at = world.path(bucket=DESTINATION)
    at.rename(at.with_name("aside"))
    return lambda: at.with_name("aside").rename(at) and None


def _suspended(world: World) -> Callable[[], None]:
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    return lambda: world.run("versioning.set", bucket=DESTINATION, status="Enabled") and None


def _role_path(world: World) -> Path:
    return world.settings.roles / "courier-east-src.json"


def _edited(world: World, edit: Callable[[str], str]) -> Callable[[], None]:
    text = _role_path(world).read_text()
    assert edit(text) != text
    _role_path(world).write_text(edit(text))
    return lambda: _role_path(world).write_text(text) and None


def _role_gone(world: World) -> Callable[[], None]:
    text = _role_path(world).read_text()
    world.run("role.rm", name="courier-east-src")
    return lambda: _role_path(world).write_text(text) and None


def _role_unreadable(world: World) -> Callable[[], None]:
    return _edited(world, lambda text: text[:-10])


def _role_not_for_us(world: World) -> Callable[[], None]:
    return _edited(world, lambda text: text.replace("s3.amazonaws.com", "ec2.amazonaws.com"))


def _may_not_write(world: World) -> Callable[[], None]:
    return _edited(world, lambda text: text.replace("s3:ReplicateObject", "s3:PutObject"))


def _may_not_read(world: World) -> Callable[[], None]:
    return _edited(world, lambda text: text.replace("s3:GetObjectVersionForReplication", "s3:GetObject"))


def _rules(world: World, *rules: Json) -> Callable[[], None]:
    was = [dict(rule) for rule in world.engine.site.buckets[SOURCE].replication.document["Rules"]]  # type: ignore[union-attr,call-overload]
    if rules:
        world.configure(*rules)
    else:
        world.run("replication.rm", source=SOURCE)
    return lambda: world.configure(*was)


def _configuration_gone(world: World) -> Callable[[], None]:
    return _rules(world)


def _rule_gone(world: World) -> Callable[[], None]:
    return _rules(world, {**v1(), "ID": "another"})


def _rule_disabled(world: World) -> Callable[[], None]:
    return _rules(world, {**v1(status="Disabled"), "ID": "one"})


def _destination_changed(world: World) -> Callable[[], None]:
    return _rules(world, {**v1(to=FAR), "ID": "one"})


FAULTS = {
    _bucket_folder_gone: "DstBucketNotFound",
    _suspended: "DstBucketUnversioned",
    _role_gone: "AssumeRoleNotPermitted",
    _role_unreadable: "AssumeRoleNotPermitted",
    _role_not_for_us: "AssumeRoleNotPermitted",
    _may_not_write: "DstPutObjectNotPermitted",
    _may_not_read: "SrcGetObjectNotPermitted",
    _configuration_gone: "SrcBucketReplicationConfigMissing",
    _rule_gone: "SrcObjectNotEligible",
    _rule_disabled: "SrcObjectNotEligible",
    _destination_changed: "SrcObjectNotEligible",
}


def _pending_at(world: World, key: str = "k") -> None:
    """A version that a rule chose, and that has not arrived yet."""
    world.configure({**v1(), "ID": "one"})
    world.away("west")
    world.write(key, b"data")
    world.settle()
    assert outcome(world, key)[DESTINATION][0] is PENDING
    world.back("west")


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items(), ids=[f.__name__.strip("_") for f in FAULTS])
def test_a_fault_that_a_person_must_fix_fails_the_delivery_until_a_retry(
    world: World, fault: Callable[[World], Callable[[], None]], reason: str
) -> None:
    """Section 0, 8; 1.5; 3.2; G11: with the cause fixed, after a restart, without the journal: FAILED until `retry`."""
    _pending_at(world)
    mend = fault(world)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, reason)
    mend()
    world.settle()
    world.restart()
    world.settle()
    world.restart(without_journal=True)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, reason)
    assert world.tree(DESTINATION) == {}
    assert world.run("retry", scope=f"{SOURCE}/k") == {"Retried": 1}
    world.settle()
    assert outcome(world)[DESTINATION] == (COMPLETED, "")
    assert world.tree(DESTINATION) == {"k": b"data"}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items(), ids=[f.__name__.strip("_") for f in FAULTS])
def test_a_new_version_is_delivered_while_the_former_stays_failed(
    world: World, fault: Callable[[World], Callable[[], None]], reason: str
) -> None:
    """3.2: upload again; the former version's delivery stays FAILED."""
    _pending_at(world)
    mend = fault(world)
    world.settle()
    mend()
    world.settle()
    world.write("k", b"new")
    world.settle()
    assert [v.status for v in world.of("k")] == [COMPLETED, FAILED]
    assert world.tree(DESTINATION) == {"k": b"new"}


@pytest.mark.parametrize(
    "fault",
    [_configuration_gone, _rule_gone, _rule_disabled, _destination_changed],
    ids=lambda f: f.__name__.strip("_"),
)
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
def test_nothing_stays_pending_for_a_rule_that_is_gone(
    world: World, fault: Callable[[World], Callable[[], None]], restarted: bool
) -> None:
    """1.5: no delivery is stuck, not even while its destination is away."""
    _pending_at(world)
    world.away("west")
    world.settle()
    if restarted:
        world.restart()
    fault(world)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, FAULTS[fault])


def test_a_retry_without_a_rule_fails_at_once(world: World) -> None:
    """1.5: even a requested retry does not wait for a destination that is away."""
    _pending_at(world)
    _suspended(world)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, "DstBucketUnversioned")
    world.away("west")
    _rule_disabled(world)
    world.run("retry", scope=SOURCE)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, "SrcObjectNotEligible")


def test_a_destination_that_left_the_site_is_not_found(world: World) -> None:
    """3.2: its bucket was removed, or its region forgotten."""
    _pending_at(world)
    world.run("bucket.rm", bucket=DESTINATION, purge=True)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, "DstBucketNotFound")
    world.configure(v1(to=FAR))
    world.away("north")
    world.write("far", b"data")
    world.settle()
    world.run("region.forget", name="north")
    world.settle()
    assert outcome(world, "far")[FAR] == (FAILED, "DstBucketNotFound")


def test_a_source_version_removed_before_it_is_copied_leaves_nothing(world: World) -> None:
    """3.2: no version is left to have a status, and nothing is pending."""
    world.configure(v1())
    world.away("west")
    world.write("k", b"one")
    world.settle()
    world.write("k", b"two")
    world.write("other", b"data")
    world.settle()
    world.remove("k", version=world.of("k")[1].id)
    world.remove("other", version=world.current("other").id)
    world.back("west")
    world.settle()
    assert world.tree(DESTINATION) == {"k": b"two"}
    assert [len(v) for v in world.history(DESTINATION).values()] == [1]
    counted = status.status(world.engine.site, {"running": False})["buckets"]
    found = next(b for b in counted if b["bucket"] == SOURCE)
    assert (found["pending"], found["failed"]) == (0, 0)


@pytest.mark.parametrize("marker", [False, True], ids=["version", "marker"])
def test_a_marker_s_reason_is_its_own(world: World, marker: bool) -> None:
    """3.3: s3:ReplicateDelete for a marker, s3:ReplicateObject for data."""
    world.configure(v1())
    world.write("k", b"data")
    world.settle()
    _edited(world, lambda text: text.replace("s3:ReplicateDelete", "s3:DeleteObject"))
    world.unlink("k") if marker else world.write("k", b"new")
    world.settle()
    assert outcome(world)[DESTINATION] == ((FAILED, "DstDelObjNotPermitted") if marker else (COMPLETED, ""))
    assert world.tree(DESTINATION) == {"k": b"data" if marker else b"new"}
    if marker:
        assert world.current("k").status is FAILED


def test_a_large_object_s_reason_is_its_own(world: World) -> None:
    """3.3: DstMultipartInitNotPermitted."""
    world.configure(v1())
    _may_not_write(world)
    with world.path("large").open("wb") as file:
        file.truncate(world.engine.settings.replication.large_file_bytes)
    world.settle()
    assert outcome(world, "large")[DESTINATION] == (FAILED, "DstMultipartInitNotPermitted")


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda world: world.run("replication.disable", source=SOURCE), "SrcObjectNotEligible"),
        (lambda world: world.run("replication.rm", source=SOURCE), "SrcBucketReplicationConfigMissing"),
        (lambda world: world.run("versioning.set", bucket=DESTINATION, status="Suspended"), "DstBucketUnversioned"),
        (lambda world: _may_not_write(world), "DstMultipartInitNotPermitted"),
        (lambda world: world.remove("k", version=world.current("k").id), ""),
    ],
    ids=["disabled", "removed", "suspended", "refused", "gone"],
)
def test_a_delivery_that_was_called_off_during_the_copy_is_not_published(
    world: World, monkeypatch: pytest.MonkeyPatch, act: Callable[[World], object], reason: str
) -> None:
    """1.5, 3.2, section 0, 8: a copy takes hours; a decision made meanwhile applies, and FAILED stays so."""
    world.configure(v1())
    background: list[tuple[Callable[[], object], Callable[[object], None]]] = []
    with world.path("k").open("wb") as file:
        file.truncate(world.engine.settings.replication.large_file_bytes)
    world.capture(SOURCE)
    with monkeypatch.context() as patch:
        patch.setattr(
            world.region(DESTINATION), "in_background", lambda work, finish, **_: background.append((work, finish))
        )
        world.settle()
        ((work, finish),) = background
        staged = work()
        act(world)
        world.settle()
        finish(staged)
    world.settle()
    if reason:
        assert outcome(world)[DESTINATION] == (FAILED, reason)
    assert world.history(DESTINATION) == {}
    assert world.leftovers(DESTINATION) == []


def test_why_explains_files_without_a_version(world: World) -> None:
    """Section 2: for a file that is not captured yet, or that never is an object, the answer is more than "there is no
    such key"."""

    def said(key: str) -> str:
        with pytest.raises(Refused) as refused:
            why.why(world.engine.site, at(SOURCE, key.encode()), None, {"running": False})
        return str(refused.value)

    world.path("link").symlink_to("file")
    os.mkfifo(world.path("fifo"))
    world.write("d/file", b"data")
    assert said("d/file").startswith(f"NoSuchKey: {SOURCE}/d/file is a file, and not a version yet")
    assert said("link") == f"NoSuchKey: {SOURCE}/link is a link, and no object: it is not replicated"
    assert said("fifo").startswith(f"NoSuchKey: {SOURCE}/fifo is a FIFO")
    assert said("d").startswith(f"NoSuchKey: {SOURCE}/d is a directory, and no object")
    assert said("none") == f"NoSuchKey: there is no {SOURCE}/none"
    assert said("none/k") == f"NoSuchKey: there is no {SOURCE}/none/k"


def test_why_knows_when_a_retry_is_of_no_use(world: World) -> None:
    """3.2: a retry helps where the cause can be fixed; not for a rule that is gone, or a version that is permanently
    removed."""

    def next_() -> str:
        (told,) = why.why(world.engine.site, at(SOURCE, b"k"), None, {"running": False}).document["Deliveries"]
        return str(told["Next"])

    world.configure(v1() | {"ID": "one"})
    world.run("versioning.set", bucket=DESTINATION, status="Suspended")
    world.write("k", b"data")
    world.settle()
    assert next_() == f"`fsrepl retry {SOURCE}/k` once the cause is fixed"
    world.run("versioning.set", bucket=DESTINATION, status="Enabled")
    world.configure(v1() | {"ID": "two"})
    world.run("retry", scope=SOURCE)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, "SrcObjectNotEligible")
    assert next_().startswith(f"`fsrepl replication backfill {SOURCE} --status FAILED`")
    world.run("replication.backfill", source=SOURCE, statuses=["FAILED"])
    world.settle()
    assert outcome(world)[DESTINATION] == (COMPLETED, "")
    world.remove("k", DESTINATION, world.current("k").id)
    world.run("replication.backfill", source=SOURCE)
    world.settle()
    assert outcome(world)[DESTINATION] == (FAILED, "DstObjectHardDeleted")
    assert next_() == "this version is never sent there again"


def test_a_copy_whose_rule_is_disabled_is_stopped(world: World) -> None:
    """1.5: it does not continue for hours; other copies do."""
    world.configure(v1("k"))
    world.write("k", b"data")
    world.capture(SOURCE)
    at = world.current("k").id
    with (
        world.engine.progress(limits.Progress(b"k", at, SOURCE, DESTINATION, 4)) as unwanted,
        world.engine.progress(limits.Progress(b"k", at, SOURCE, FAR, 4)) as other,
    ):
        world.run("replication.disable", source=SOURCE)
        world.settle()
        assert (unwanted.stop, other.stop) == (True, False)
    assert outcome(world)[DESTINATION] == (FAILED, "SrcObjectNotEligible")


def _denying(role: Json, action: str, resource: str) -> Json:
    role["Policy"]["Statement"].append({"Effect": "Deny", "Action": action, "Resource": f"arn:aws:s3:{resource}"})
    return role


def test_one_failure_delays_no_other_delivery(world: World) -> None:
    """3.2: other keys, other destinations, and later ones continue."""
    world.configure(v2("", 1, markers=True), v2("", 2, to=FAR, markers=True))
    _edited(world, lambda text: json.dumps(_denying(json.loads(text), "s3:ReplicateObject", "west::dst/secret/*")))
    for key in ("a", "secret/b", "z"):
        world.write(key, key.encode())
    world.settle()
    assert set(world.tree(DESTINATION)) == {"a", "z"}
    assert set(world.tree(FAR)) == {"a", "secret/b", "z"}
    assert outcome(world, "secret/b") == {DESTINATION: (FAILED, "DstPutObjectNotPermitted"), FAR: (COMPLETED, "")}


def test_retry_tries_only_what_was_asked_for(world: World) -> None:
    """design.md, 5: a key, a folder, a bucket, everything; a delivery whose cause remains fails again."""
    _pending_at(world, "d/a")
    world.away("west")
    for key in ("d/b", "c", "da"):
        world.write(key, b"data")
    world.settle()
    world.back("west")
    mend = _suspended(world)
    world.settle()
    assert world.statuses() == {FAILED}
    assert world.run("retry", scope=f"{SOURCE}/d/a") == {"Retried": 1}
    world.settle()
    assert world.statuses() == {FAILED}
    mend()
    for scope, number in ((f"{SOURCE}/d/a", 1), (f"{SOURCE}/d/", 1), (SOURCE, 2), (None, 0)):
        assert world.run("retry", scope=scope) == {"Retried": number}
        world.settle()
    assert world.statuses() == {COMPLETED}
    with pytest.raises(FsreplError):
        world.run("retry", scope="east/nowhere")


def test_a_bucket_made_again_is_sent_nothing(world: World) -> None:
    """Section 2: destination deleted and recreated."""
    world.configure(v1())
    world.write("old", b"old")
    world.settle()
    world.run("bucket.rm", bucket=DESTINATION, purge=True)
    world.run("bucket.create", bucket=DESTINATION, versioning=True)
    world.write("new", b"new")
    world.settle()
    assert world.tree(DESTINATION) == {"new": b"new"}
    assert world.current("old").status is COMPLETED
