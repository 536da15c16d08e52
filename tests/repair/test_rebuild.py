"""Trees that lost their attributes: records are rebuilt, ids and history stay, and nothing is doubled."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fsrepl.model import attributes, keys, metadata
from fsrepl.model.rule import Replication, Rule
from fsrepl.model.version import NO_SHORTFALL, DeliveryRecord, Origin, Posix, Status, Version
from fsrepl.region.receiver import Receiver
from fsrepl.repair.evidence import Evidence, ViewEvidence, rebuild
from fsrepl.repair.rebuild import Rebuilder
from fsrepl.storage.bucket_documents import RuleSince
from fsrepl.storage.journal.rows import Delivery
from tests.doubles import DyingFs, PowerCut
from tests.world import DESTINATION, SOURCE, World

LONG = "x" * 240
"""A key that is stored under a digest."""


def strip(path: Path) -> None:
    for name in os.listxattr(path, follow_symlinks=False):
        if name.startswith("user."):
            os.removexattr(path, name, follow_symlinks=False)


def strip_all(top: Path) -> None:
    for path in sorted(top.rglob("*")):
        strip(path)


def restore_by_cp(top: Path) -> None:
    """Restore a tree with `cp -r` from a backup: other inodes, and no attributes."""
    copy = top.parent / "copy"
    shutil.copytree(top, copy, symlinks=True, copy_function=shutil.copyfile)
    for path in top.rglob("*"):
        if path.is_file():
            shutil.copymode(path, copy / path.relative_to(top))
    shutil.copymode(top / ".fsrepl", copy / ".fsrepl")
    for folder in ("versions", "tmp", "displaced", "intents"):
        shutil.copymode(top / ".fsrepl" / folder, copy / ".fsrepl" / folder)
    shutil.rmtree(top)
    copy.rename(top)


def fill(world: World) -> None:
    world.write("d/k", b"one")
    world.write("gone", b"soon gone")
    world.write(LONG, b"long")
    world.settle()
    world.write("d/k", b"two")
    os.setxattr(world.path("d/k"), "user.colour", b"blue")
    os.chmod(world.path(LONG), 0o640)
    world.path("gone").unlink()
    world.settle()
    world.run("tag.set", bucket=SOURCE, key=b"d/k", tags={"class": "x"})
    world.settle()


@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
@pytest.mark.parametrize("lose", [strip_all, restore_by_cp], ids=["stripped", "cp"])
@pytest.mark.parametrize("bucket", [SOURCE, DESTINATION])
def test_records_come_back(tmp_path: Path, bucket: str, lose: object, without_journal: bool) -> None:
    """Section 5: stripped attributes are rebuilt from name, content and the other side; ids and history stay."""
    with World(tmp_path) as world:
        fill(world)
        before = {b: world.history(b) for b in (SOURCE, DESTINATION)}
        trees = {b: world.tree(b) for b in (SOURCE, DESTINATION)}
        world.engine.close()
        lose(world.path(bucket=bucket))  # type: ignore[operator]
        world.restart(without_journal=without_journal)
        world.settle()
        assert {b: world.history(b) for b in (SOURCE, DESTINATION)} == before
        assert {b: world.tree(b) for b in (SOURCE, DESTINATION)} == trees
        assert os.getxattr(world.path("d/k", bucket), "user.colour") == b"blue"
        world.write("d/k", b"three")
        world.settle()
        assert world.ids(SOURCE) == world.ids(DESTINATION)
        assert len(world.ids(SOURCE)[b"d/k"]) == 3
        assert world.statuses() == {Status.COMPLETED}


def test_a_record_that_came_with_a_copy_of_another_file_is_no_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2, G5: `cp -a` gave a linked view the record of the version before, and its user removes that view while the
    start reads the store: the stored version keeps its own time and BLAKE3."""
    with World(tmp_path / "world") as world:
        world.set_sharing(east="link")
        for data in (b"one", b"two"):
            world.drop("k", data)
            world.settle()
        before = world.ids(SOURCE)[b"k"]
        one = world.path(f".fsrepl/versions/k;{before[0][0]}")
        for name in os.listxattr(one):
            os.setxattr(world.path("k"), name, os.getxattr(one, name))
        whole = Rebuilder.version

        def version(*given: Any, **more: Any) -> Version | None:
            world.path("k").unlink(missing_ok=True)
            return whole(*given, **more)

        monkeypatch.setattr(Rebuilder, "version", version)
        world.restart(without_journal=True)
        world.settle()
        assert not world.path("k").exists()
        assert world.ids(SOURCE)[b"k"][:2] == before


@pytest.mark.parametrize("without_journal", [False, True], ids=["", "without-journal"])
def test_both_sides_lost_their_records(tmp_path: Path, without_journal: bool) -> None:
    """Section 5: from names and contents alone, ids, order, contents and the direction of replication are rebuilt."""
    with World(tmp_path) as world:
        fill(world)
        before = world.ids(SOURCE)
        world.engine.close()
        strip_all(world.path(bucket=SOURCE))
        strip_all(world.path(bucket=DESTINATION))
        world.restart(without_journal=without_journal)
        world.settle()
        after = world.ids(SOURCE)
        assert world.ids(DESTINATION) == after
        assert _without_times(after) == _without_times(before)
        if not without_journal:
            assert after == before
        assert world.statuses() == {Status.COMPLETED}
        assert world.statuses(DESTINATION) == {Status.REPLICA}


def _without_times(ids: dict[bytes, list[tuple[str, int, bool, bytes]]]) -> dict[bytes, list[tuple[str, bool, bytes]]]:
    return {key: [(i, m, d) for i, _, m, d in versions] for key, versions in ids.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("without_journal", "size"), [(False, 3000), (True, 100)], ids=["with-sidecar", "without-journal"]
)
def test_power_cut_while_rebuilding(tmp_path: Path, memory: Path, without_journal: bool, size: int) -> None:
    """G7: a half-rebuilt record counts as lost, and is rebuilt again."""
    home = tmp_path if size > 1000 else memory  # a sidecar is made where the filesystem has no room for more attributes
    for calls in itertools.count():
        with World(home / str(calls)) as world:
            world.write("d/k", b"one")
            world.settle()
            os.setxattr(world.path("d/k"), "user.large", b"z" * size)
            world.run("tag.set", bucket=SOURCE, key=b"d/k", tags={f"tag {n}": "x" * 200 for n in range(4)})
            world.settle()
            assert len(list(world.path(".fsrepl/versions").rglob("*;meta.json"))) == (size > 1000)
            before = {b: _without_posix(world.history(b)) for b in (SOURCE, DESTINATION)}
            world.engine.close()
            restore_by_cp(world.path(bucket=SOURCE))
            for path in world.path(".fsrepl/versions").rglob("*;meta.json"):
                path.unlink()
            fs = DyingFs(calls)
            world.restart(fs=fs, without_journal=without_journal)
            with contextlib.suppress(PowerCut):
                world.settle()
            world.restart(without_journal=without_journal)
            world.settle()
            where = f"cut at {calls}, in {fs.died_in}"
            assert {b: _without_posix(world.history(b)) for b in (SOURCE, DESTINATION)} == before, where
            if not fs.died:
                return


def _without_posix(history: dict[bytes, list[Version]]) -> dict[bytes, list[Version]]:
    """A cut just after a view was marked makes the times that the copy gave it those of the object.

    And in another order of things a view has room for other attributes.
    """
    return {
        k: [replace(v, posix=None, edited={}, shortfall=NO_SHORTFALL) for v in versions]
        for k, versions in history.items()
    }


def test_no_record_is_guessed_while_a_region_is_away(tmp_path: Path) -> None:
    """G8, section 5: data that only an absent region has is read when it is back, and nothing is doubled until then."""
    with World(tmp_path) as world:
        fill(world)
        before = world.history(SOURCE)
        west = world.settings.regions["west"].path
        world.engine.close()
        restore_by_cp(world.path(bucket=SOURCE))
        west.rename(tmp_path / "away")
        world.restart(without_journal=True)
        world.settle()
        stored = world.path(".fsrepl/versions")
        assert sum(p.is_file() for p in stored.rglob("*")) == sum(map(len, before.values()))
        assert not [p for p in stored.rglob("*") if p.is_file() and os.listxattr(p)]
        (tmp_path / "away").rename(west)
        world.look()
        world.settle()
        assert world.history(SOURCE) == before
        assert world.tree(SOURCE) == world.tree(DESTINATION)


def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    """G11: status of a site without a journal counts stripped versions too, and leaves them unchanged."""
    from fsrepl.commands import status

    with World(tmp_path) as world:
        world.write("k", b"one")
        world.settle()
        strip_all(world.path(bucket=SOURCE))
        world.engine.close()
        for path in Path(world.engine.site.state).glob("journal.db*"):
            path.unlink()
        found = status.status(world.engine.site, {"running": False})
        assert next(b for b in found["buckets"] if b["bucket"] == SOURCE)["versions"] == 1
        assert [os.listxattr(p) for p in world.path(".fsrepl/versions").iterdir()] == [[]]
        world.restart()


# -- the rule by itself

NAME = keys.StoredName(b"k", "01KB7Z00000000000000000000", False, False)
POSIX = Posix(0o644, 1, 2, 3)
BORN_NS = attributes.id_time(NAME.id, POSIX)
RULE = Rule("r", True, b"", "west/dst")
HERE = Version(
    b"k", NAME.id, BORN_NS + 5, size=3, digest=bytes(32), posix=POSIX, attrs={"user.a": b"1"}, tags={"t": "v"}
)
SENT = replace(HERE, deliveries={"west/dst": DeliveryRecord("r", Status.COMPLETED)})
REPLICA = replace(HERE, origin=Origin.REPLICA, source="east/src")


def evidence(**more: object) -> Evidence:
    values: dict[str, object] = {"size": 3, "digest": bytes(32), "inode": Posix(0o600, 0, 0, 9)}
    return Evidence("east/src", b"k", NAME, **{**values, **more})  # type: ignore[arg-type]


def rules(since_ns: int) -> dict[str, object]:
    from fsrepl.model import clock

    return {
        "replication": Replication("role", (RULE,)),
        "since": {"r": RuleSince("", since_ns, clock.stamp(since_ns))},
    }


def test_a_source_learns_from_its_replica() -> None:
    """Section 5: the replica has the version, so the delivery is COMPLETED; metadata and time are those of the
    replica."""
    found = rebuild(evidence(elsewhere={"west/dst": REPLICA}, seen_in=frozenset({"west/dst"}), **rules(0)))
    assert found == SENT


def test_a_replica_learns_from_its_source() -> None:
    """Section 5: storage class and owner as its delivery says."""
    sent = DeliveryRecord("r", Status.COMPLETED, storage_class="GLACIER_IR", owner="Destination")
    found = rebuild(evidence(elsewhere={"up/src": replace(HERE, deliveries={"east/src": sent})}, owner=(7, 8)))
    posix = replace(POSIX, uid=7, gid=8)
    assert found == replace(HERE, origin=Origin.REPLICA, source="up/src", storage_class="GLACIER_IR", posix=posix)


def test_replicas_learn_from_each_other() -> None:
    """Section 5: the source is permanently away, and another replica has the version."""
    other = replace(HERE, origin=Origin.REPLICA, source="lost/src")
    assert rebuild(evidence(elsewhere={"west/dst": other})) == other


@pytest.mark.parametrize(
    ("since_ns", "status"), [(BORN_NS - 10**9, Status.PENDING), (BORN_NS + 10**9, None)], ids=["owed", "older"]
)
def test_a_version_without_replicas_is_sent_by_the_rules_of_its_time(since_ns: int, status: Status | None) -> None:
    """G7: it is rather sent once more than lost; but no rule applies to versions from before it."""
    found = rebuild(evidence(**rules(since_ns)))
    assert found.status is status
    assert (found.created_ns, found.origin, found.digest) == (BORN_NS, Origin.USER, bytes(32))


def test_the_journal_remembers_deliveries() -> None:
    """Section 5: status, reason and rule of a delivery, and the exact time."""
    delivery = Delivery("east/src", b"k", NAME.id, "west/dst", "old", "FAILED", "DstBucketNotFound", 0, 3, False, "", 4)
    found = rebuild(evidence(deliveries={"west/dst": delivery}, known_ns=BORN_NS + 77, known_digest=b"\1" * 32))
    assert found.deliveries == {"west/dst": DeliveryRecord("old", Status.FAILED, "DstBucketNotFound", since_ns=4)}
    assert (found.created_ns, found.digest) == (BORN_NS + 77, b"\1" * 32)


@pytest.mark.parametrize(("face_ns", "created_ns"), [(BORN_NS + 123, BORN_NS + 123), (BORN_NS + 10**9, BORN_NS)])
def test_a_view_gives_metadata_and_the_id_gives_the_time(face_ns: int, created_ns: int) -> None:
    """Section 2: attributes on a view decide nothing that matters; the id has the time, to the millisecond."""
    found = rebuild(evidence(view_evidence=ViewEvidence(POSIX, {"user.a": b"1"}, {"t": "v"}, face_ns)))
    assert found == replace(HERE, created_ns=created_ns)


def test_what_a_view_does_not_show_of_the_other_record_was_not_removed_by_its_user() -> None:
    """Section 2: the lost record may have said that the view has no room for it. What the view shows remains its
    user's, and of a view that lost all its attributes nothing is known."""
    other = replace(REPLICA, attrs={"user.a": b"1", "user.b": b"2"}, tags={"t": "v", "u": "w"})

    def seen_with(attrs: dict[str, bytes], tags: dict[str, str]) -> tuple[object, object]:
        found = rebuild(evidence(elsewhere={"west/dst": other}, view_evidence=ViewEvidence(POSIX, attrs, tags)))
        seen = metadata.seen(found, POSIX, attrs, tags, labelled=False)
        return seen.attrs, seen.tags

    assert seen_with({"user.a": b"9"}, {"t": "v"}) == ({"user.a": b"9", "user.b": b"2"}, {"t": "v", "u": "w"})
    assert seen_with(dict(other.attrs), dict(other.tags)) == (other.attrs, other.tags)
    assert not rebuild(
        evidence(elsewhere={"west/dst": other}, view_evidence=ViewEvidence(POSIX, {}, {}))
    ).shortfall.lacks


def test_fields_that_are_left_count_first() -> None:
    """Section 5: only missing fields are taken from elsewhere."""
    left = {"user.fsrepl.tag.t": b"mine", "user.fsrepl.blake3": (b"\2" * 32).hex().encode()}
    found = rebuild(evidence(left=left, elsewhere={"west/dst": REPLICA}))
    assert found.tags == {"t": "mine"}
    assert found.digest == b"\2" * 32


def test_a_source_that_lost_its_record_too_is_still_the_source() -> None:
    """Section 5: two stripped trees do not both claim to have made a version."""
    found = rebuild(evidence(sources=("up/src",), seen_in=frozenset({"up/src"})))
    assert (found.origin, found.source) == (Origin.REPLICA, "up/src")


def test_markers() -> None:
    """Section 2: a marker has no content to rebuild from."""
    name = replace(NAME, marker=True)
    found = rebuild(Evidence("west/dst", b"k", name, elsewhere={"east/src": Version(b"k", name.id, 5, True, deliveries={
        "west/dst": DeliveryRecord("r", Status.COMPLETED)})}))  # fmt: skip
    assert found == Version(b"k", name.id, 5, True, origin=Origin.REPLICA, source="east/src")


def test_what_failed_before_its_record_was_rebuilt_is_sent_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rebuilt record says PENDING again, and that is true without a restart, too."""
    with World(tmp_path) as world:
        world.write("k", b"data")
        world.capture(SOURCE)
        version = world.current("k")
        strip(world.path(f".fsrepl/versions/k;{version.id}"))
        world.engine.recent.forget(SOURCE, b"k", version.id)
        monkeypatch.setattr(Receiver, "have_record_rebuilt", lambda *_: False)  # it was asked for often enough
        assert world.engine.run_until_idle()
        assert "reason=SrcObjectNotEligible" in caplog.text
        assert world.statuses() == {Status.COMPLETED}
        assert world.tree(DESTINATION) == {"k": b"data"}
