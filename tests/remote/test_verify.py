"""`fsrepl verify` with a bucket of an S3 service, and what `--repair` does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsrepl.errors import Refused
from fsrepl.model.version import Status
from fsrepl.remote.bucket import RemoteBucket, sums_of
from tests.remote.conftest import EACH
from tests.services import THERE, RemoteWorld, Service, current, found_in, sidecars
from tests.verifying import tally, verification, verify


def filled(world: RemoteWorld) -> None:
    for data in (b"one", b"two"):
        world.write("k", data)
        world.write("gone", data)
        world.settle()
    world.unlink("gone")
    world.drop("tagged", b"tagged", tags={"class": "blue"})
    world.write("long", b"long")
    os.setxattr(world.path("long"), "user.long", b"x" * 3000)
    world.settle()


@EACH
def test_what_is_as_it_should_be_has_no_difference(tmp_path: Path, service: Service) -> None:
    """Content is read and hashed there too; the counts say so, also after the journal is lost."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        filled(world)
        found = tally(world)
        assert (found.checked, found.differences, found.away) == (14, 0, {})
        world.restart(without_journal=True)
        world.settle()
        found = tally(world)
        assert (found.checked, found.differences, found.away) == (14, 0, {})


def harm(kind: str, bucket: RemoteBucket) -> str:
    """Do harm to an object of `k`, whose versions are there; the problem that it is."""
    newest, oldest = [row for row in bucket.versions_of("k") if not row.marker]
    head = bucket.head("k", newest.id)
    assert head is not None
    match kind:
        case "removed":
            bucket.remove("k", oldest.id)
            return "Missing"
        case "content":
            bucket.put("k", b"owt", 3, sums_of(b"owt"), head.metadata)
            bucket.remove("k", newest.id)
            return "DigestMismatch"
        case "metadata":
            metadata = {**head.metadata, "mode": "100777"}
            bucket.copy("k", newest.id, metadata, size=3, tags={}, storage_class="STANDARD")
            bucket.remove("k", newest.id)
            return "MetadataDiffers"
        case "tags":
            bucket.set_tags("k", newest.id, {"class": "red"})
            return "MetadataDiffers"
        case "sidecar":
            (name,) = sidecars(bucket)
            for row in bucket.versions_of(name):
                bucket.remove(name, row.id)
            return "MetadataDiffers"
        case _:
            (marker,) = [row for row in bucket.versions_of("gone") if row.marker]
            bucket.remove("gone", marker.id)
            return "Missing"


@EACH
@pytest.mark.parametrize("kind", ["removed", "content", "metadata", "tags", "sidecar", "marker"])
def test_harm_there_is_found_and_repaired(tmp_path: Path, service: Service, kind: str) -> None:
    """A removed version, other content, metadata or tags; it is sent again, and what is current stays so."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        filled(world)
        before, ids = current(bucket), sorted((each.key, each.id, each.data) for each in found_in(bucket))
        problem = harm(kind, bucket)
        key = {"marker": "gone", "sidecar": "long"}.get(kind, "k")
        assert verify(world) == [(THERE, key, problem, False)]
        assert verify(world, repair=True) == [(THERE, key, problem, True)]
        assert verify(world) == []
        assert current(bucket) == before
        assert sorted((each.key, each.id, each.data) for each in found_in(bucket)) == ids
        assert world.statuses() == {Status.COMPLETED}


def test_a_service_that_is_away_is_not_compared(tmp_path: Path, service: Service) -> None:
    """An outage is no difference, and says so."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("k", b"data")
        world.settle()
        service.stop()
        with verification(world) as found:
            assert list(found.differences()) == []
            assert "cannot be reached" in found.tally.away[THERE]


def test_one_destination_can_be_named(tmp_path: Path, service: Service) -> None:
    """`fsrepl verify SRC DST`; a bucket that nothing was sent to is refused."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("k", b"data")
        world.settle()
        with verification(world, THERE) as found:
            assert list(found.differences()) == []
            assert found.tally.checked == 2
        with pytest.raises(Refused, match="aws/other is no destination of"), verification(world, "aws/other"):
            pass
