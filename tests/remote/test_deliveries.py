"""Deliveries to a bucket of an S3 service."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import pytest

from fsrepl.model import attributes
from fsrepl.model.version import Status
from fsrepl.region.limiter import Limiter
from fsrepl.remote import bucket as buckets
from fsrepl.remote import form
from fsrepl.remote.bucket import RemoteBucket
from fsrepl.remote.client import Client
from fsrepl.remote.failures import ServiceAway
from fsrepl.replicate import upload
from fsrepl.replicate.upload import Section
from fsrepl.storage.fs import Fs
from tests.backfills import deliver_late
from tests.between import Between, Cut, by_service
from tests.radosgw import only_with_radosgw
from tests.region.test_limiter import Time, assert_rate
from tests.remote.conftest import EACH
from tests.services import THERE, RemoteWorld, Service, current, found_in, sidecars
from tests.stored import stored
from tests.world import SOURCE


@EACH
def test_versions_and_markers_arrive_in_order(tmp_path: Path, service: Service) -> None:
    """G5: every version, with its id, content and time in metadata that any client reads; a deletion is a marker."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("2026/cat.jpg", b"one")
        world.settle()
        world.write("2026/cat.jpg", b"two")
        world.write("dog", b"dog")
        world.settle()
        world.unlink("2026/cat.jpg")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        found = [each for each in found_in(bucket) if each.key == "2026/cat.jpg"]
        assert [(each.data, each.marker, each.latest) for each in found] == [
            (b"one", False, False), (b"two", False, False), (b"", True, True),
        ]  # fmt: skip
        mine = [v for v in world.of("2026/cat.jpg")[::-1] if not v.marker]
        assert [each.id for each in found[:2]] == [v.id for v in mine]
        assert [each.metadata["fsrepl-blake3"] for each in found[:2]] == [v.digest.hex() for v in mine]
        assert found[0].metadata["fsrepl-origin"] == f"replica:{SOURCE}"
        assert current(bucket) == {"dog": b"dog"}


@EACH
def test_metadata_is_as_rclone_writes_it(tmp_path: Path, service: Service) -> None:
    """G5: mode, owner and time can be restored without fsrepl; attributes and tags are there too."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.drop("k", b"data", tags={"class": "blue green", "ünï": "ö"})
        path = world.path("k")
        path.chmod(0o640)
        os.utime(path, ns=(0, 1_700_000_000_123_456_700))
        os.setxattr(path, "user.comment", b"\xff\x00")
        world.settle()
        (found,) = found_in(bucket)
        assert found.metadata["mtime"] == "1700000000.1234567"
        assert found.metadata["mode"] == "100640"
        assert found.metadata["uid"] == str(os.geteuid())
        assert found.tags == {"class": "blue green", "ünï": "ö"}
        said = json.loads(base64.b64decode(found.metadata["fsrepl-attributes"]))
        assert said["user.comment"] == {"base64": base64.b64encode(b"\xff\x00").decode()}
        version = world.current("k")
        read = form.version_of(found.key, found.metadata, 4, tags=found.tags)
        assert (read.id, read.created_ns, read.digest) == (version.id, version.created_ns, version.digest)
        assert (read.posix, dict(read.attrs), dict(read.tags)) == (
            version.posix, dict(version.attrs), dict(version.tags),
        )  # fmt: skip


def test_what_metadata_cannot_hold_is_in_a_sidecar(tmp_path: Path, service: Service) -> None:
    """G5: S3 takes 2 KB of metadata; more is an object of its own, and is replaced and removed with its version."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("k", b"data")
        os.setxattr(world.path("k"), "user.long", b"x" * 3000)
        world.settle()
        (found,) = found_in(bucket)
        (name,) = sidecars(bucket)
        assert found.metadata["fsrepl-sidecar"] == name
        said = b"".join(bucket.content(name))
        read = form.version_of(found.key, found.metadata, 4, said, tags={})
        assert (read.key, read.attrs["user.long"]) == (b"k", b"x" * 3000)
        os.removexattr(world.path("k"), "user.long")
        world.settle()
        assert sidecars(bucket) == []
        assert [(each.data, "fsrepl-sidecar" in each.metadata) for each in found_in(bucket)] == [(b"data", False)]


@pytest.mark.parametrize("key", [b"caf\xe9", b"d/" * 700 + b"k"], ids=["not UTF-8", "long"])
def test_a_key_that_s3_cannot_hold_is_whole_in_metadata(tmp_path: Path, service: Service, key: bytes) -> None:
    """G5: such a name is a digest, and nothing else differs."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service, lines='prefix = "host7/"') as world:
        world.write(os.fsdecode(key), b"data")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        (found,) = [each for each in found_in(bucket) if not form.is_ours(each.key, "host7/")]
        assert found.key == form.name_of(key, "host7/")
        assert found.key.startswith("host7/.fsrepl/keys/")
        sidecar = b"".join(bucket.content("host7/" + name)) if (name := found.metadata.get(form.SIDECAR)) else b""
        assert form.version_of(found.key, found.metadata, 4, sidecar, tags={}, prefix="host7/").key == key
        world.path(os.fsdecode(key)).unlink()
        world.settle()
        assert found.key not in current(bucket)


@EACH
@pytest.mark.parametrize("name", ["a\x01b\ufffe", "a\rb", "a\nb", "a\r\n"])
def test_a_name_that_xml_cannot_hold_hides_no_other(tmp_path: Path, service: Service, name: str) -> None:
    """G5: such a name is a digest, so that the bucket can be listed also where a service does not encode names."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("other", b"other")
        world.write(name, b"data")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        digest = form.name_of(name.encode())
        assert current(bucket) == {"other": b"other", digest: b"data"}
        (found,) = [each for each in found_in(bucket) if each.key == digest]
        assert form.version_of(digest, found.metadata, 4, tags={}).key == name.encode()
        world.unlink(name)
        world.settle()
        assert current(bucket) == {"other": b"other"}
        world.restart(without_journal=True)
        world.settle()
        world.run("replication.backfill", source=SOURCE, statuses=["COMPLETED"])
        world.settle()
        assert sum(row.name == digest for row in bucket.all_versions()) == 2  # and nothing is sent again


@EACH
def test_edits_change_the_object_and_double_nothing(tmp_path: Path, service: Service) -> None:
    """G5: tags are changed in place; a mode can only be changed by a copy, whose former object is removed."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("k", b"one")
        world.settle()
        world.write("k", b"two")
        world.settle()
        before = {row.id for row in bucket.all_versions()}
        os.setxattr(world.path("k"), attributes.TAG + "class", b"blue")
        world.settle()
        assert {row.id for row in bucket.all_versions()} == before
        assert [each.tags for each in found_in(bucket)] == [{}, {"class": "blue"}]
        world.path("k").chmod(0o600)
        world.settle()
        found = found_in(bucket)
        assert [(each.data, each.latest) for each in found] == [(b"one", False), (b"two", True)]
        assert (found[1].metadata["mode"], found[1].tags) == ("100600", {"class": "blue"})
        assert world.statuses() == {Status.COMPLETED}


@pytest.mark.parametrize("service", ["moto", "ministack"], indirect=True)
def test_the_storage_class_is_passed_on(tmp_path: Path, service: Service) -> None:
    """a rule's storage class is the object's, also after an edit."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.run("replication.enable", source=SOURCE, destination=THERE, storage_class="STANDARD_IA", replace=True)
        world.write("k", b"data")
        world.settle()
        world.path("k").chmod(0o600)
        world.settle()
        assert [each.storage_class for each in found_in(bucket)] == ["STANDARD_IA"]


@pytest.mark.slow
@only_with_radosgw
@pytest.mark.parametrize("service", ["radosgw"], indirect=True)
def test_a_class_that_the_service_does_not_have_is_failed(tmp_path: Path, service: Service) -> None:
    """radosgw has the classes that its operator made, and names none of them when it refuses."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.run("replication.enable", source=SOURCE, destination=THERE, storage_class="STANDARD_IA", replace=True)
        world.write("k", b"data")
        world.settle()
        (recorded,) = world.current("k").deliveries.values()
        assert (recorded.status, recorded.reason) == (
            Status.FAILED, "InvalidArgument: the service says no more",
        )  # fmt: skip


def test_a_refusal_is_failed_with_the_words_of_the_service(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAILED says what S3 said, and a retry sends it once the cause is mended."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.drop("k", b"data", tags={f"n{i}": "v" for i in range(11)})
        world.settle()
        (recorded,) = world.current("k").deliveries.values()
        assert recorded.status is Status.FAILED
        assert recorded.reason == "BadRequest: Object tags cannot be greater than 10"
        world.run("tag.rm", bucket=SOURCE, key=b"k", names=["n0"])
        world.run("retry", scope=SOURCE)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert len(found_in(bucket)) == 1


# -- the bucket


@pytest.mark.parametrize(("made", "words"), [(False, "does not exist"), (True, "must be Enabled")])
def test_a_rule_needs_a_bucket_that_keeps_versions(tmp_path: Path, service: Service, made: bool, words: str) -> None:
    """what is missing is said as S3 says it, before a rule is accepted."""
    if made:
        service.make_bucket(versioning=False)
    with RemoteWorld(tmp_path, service, replicate=False) as world:
        with pytest.raises(Exception, match=words) as caught:
            world.run("replication.enable", source=SOURCE, destination=THERE)
        assert str(caught.value).startswith("InvalidRequest: ")


@pytest.mark.parametrize("after", ["suspended", "removed"])
def test_a_bucket_that_keeps_no_versions_any_more_gets_nothing(tmp_path: Path, service: Service, after: str) -> None:
    """FAILED with S3's reason, and nothing there is overwritten."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        if after == "suspended":
            bucket.client.call(
                "put_bucket_versioning", Bucket=bucket.name, VersioningConfiguration={"Status": "Suspended"}
            )
        else:
            bucket.client.call("delete_bucket", Bucket=bucket.name)
        world.write("k", b"data")
        world.settle()
        (recorded,) = world.current("k").deliveries.values()
        reason = "DstBucketUnversioned" if after == "suspended" else "DstBucketNotFound"
        assert (recorded.status, recorded.reason) == (Status.FAILED, reason)


# -- outages


def test_a_service_that_is_away_is_an_outage(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: PENDING with the reason, and made once the service answers."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        call = Client.call

        def away(self: Client, operation: str, **params: Any) -> Any:
            raise ServiceAway("region aws: the service is busy (SlowDown: Please reduce your request rate.)")

        monkeypatch.setattr(Client, "call", away)
        world.write("k", b"data")
        world.settle()
        assert world.statuses() == {Status.PENDING}
        (queue,) = world.engine.receivers["aws"].queues.values()
        assert "SlowDown" in queue.blocked_why
        monkeypatch.setattr(Client, "call", call)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert current(bucket) == {"k": b"data"}


# -- crashes and a lost journal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "without_journal", "lost"),
    [("moto", False, "answer"), ("ministack", True, "answer"), ("ministack", False, "request")],
    indirect=["service"],
)
def test_a_crash_after_any_request_doubles_nothing(
    tmp_path: Path, service: Service, without_journal: bool, lost: str
) -> None:
    """G6, G7: a kill between any two requests; the journal survives, or is lost too.

    lost: the last request was carried out and its answer is lost, or it never arrived.
    """
    for number in range(1, 30):
        service.reset()
        bucket = service.make_bucket()
        home = tmp_path / str(number)
        with Between(service.port) as between, RemoteWorld(home, service, url=between.url) as world:
            world.write("k", b"one")
            world.settle()
            cut = Cut(number, lost)
            between.answer, between.after = cut.before, cut.after
            world.path("k").chmod(0o600)
            world.settle()
            world.write("k", b"two")
            world.settle()
            world.unlink("k")
            world.settle()
            between.answer = between.after = by_service
            world.restart(without_journal=without_journal)
            world.settle()
            assert world.statuses() == {Status.COMPLETED}, f"cut after {number}"
            found = found_in(bucket)
            assert [(each.data, each.marker, each.latest) for each in found] == [
                (b"one", False, False), (b"two", False, False), (b"", True, True),
            ], f"cut after {number}"  # fmt: skip
            assert found[0].metadata["mode"] == "100600"
            if cut.left > 0:
                assert number > 6
                return
    raise AssertionError("it was cut each time")


@EACH
def test_a_lost_journal_sends_nothing_again(tmp_path: Path, service: Service) -> None:
    """G6: a retry or a backfill after that finds the versions by their metadata, and the marker by its place."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        for data in (b"one", b"two"):
            world.write("k", data)
            world.settle()
        world.unlink("k")
        world.settle()
        before = {row.id for row in bucket.all_versions()}
        world.restart(without_journal=True)
        world.settle()
        world.run("replication.backfill", source=SOURCE, statuses=["COMPLETED"])
        world.settle()
        assert {row.id for row in bucket.all_versions()} == before
        assert world.statuses() == {Status.COMPLETED}
        assert world.engine.journal.remote.counts(THERE).versions == 2


@EACH
def test_a_version_that_comes_late_does_not_become_current(tmp_path: Path, service: Service) -> None:
    """G5: the newest is copied over it, once; a newest marker is put again."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        deliver_late(world)
        found = found_in(bucket)
        assert sorted(each.data for each in found if each.key == "k") == [b"one", b"three", b"two"]
        assert sorted((each.data, each.marker) for each in found if each.key == "gone") == [
            (b"", True), (b"one", False), (b"two", False),
        ]  # fmt: skip
        assert current(bucket) == {"k": b"three"}


# -- content


@pytest.mark.parametrize("where", ["k", ".fsrepl/meta/"])
def test_what_arrives_damaged_is_not_kept(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """G3: a service that accepts a wrong checksum is not believed; what it has is read back, a sidecar too."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        put, bad = RemoteBucket.put, [b"!"]

        def damage(self: RemoteBucket, name: str, body: Any, *args: Any, **more: Any) -> str:
            if bad and name.startswith(where):
                body = bad.pop() * len(body)  # the service waits for as many bytes as were announced
            return put(self, name, body, *args, **more)

        monkeypatch.setattr(RemoteBucket, "put", damage)
        world.drop("k", b"original", tags={})
        os.setxattr(world.path("k"), "user.long", b"x" * 3000)
        world.settle()
        assert [world.statuses(), found_in(bucket), bad] == [{Status.PENDING}, [], []]
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert [each.data for each in found_in(bucket)] == [b"original"]


@EACH
@pytest.mark.parametrize("size", [0, 1, 300_000, 6 << 20])
def test_content_of_any_size_arrives(tmp_path: Path, service: Service, size: int) -> None:
    """G3: in memory, as a stream, and in parts, with and without a limit."""
    bucket, data = service.make_bucket(), os.urandom(size)
    with RemoteWorld(tmp_path, service) as world:
        world.write("k", data)
        world.settle()
        world.engine.limiter.rate = 50 << 20
        world.write("again", data[::-1])
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert current(bucket) == {"k": data, "again": data[::-1]}
        assert size <= 1 << 20 or world.engine.limiter.position >= 2 * size


def test_what_a_crash_left_is_read_back(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """G3: between the request and the reading back; what is there is damaged, and is not taken for the version."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        put = RemoteBucket.put

        def cut(self: RemoteBucket, name: str, body: Any, *args: Any, **more: Any) -> str:
            put(self, name, b"damaged!" if name == "k" else body, *args, **more)
            raise ServiceAway("cut")

        monkeypatch.setattr(RemoteBucket, "put", cut)
        world.write("k", b"original")
        world.settle()
        assert [each.data for each in found_in(bucket)] == [b"damaged!"]
        monkeypatch.setattr(RemoteBucket, "put", put)
        world.restart()
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert [each.data for each in found_in(bucket)] == [b"original"]


def test_a_service_that_adds_no_second_marker(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ceph RGW: a marker for a deleted key is the marker that is there."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("k", b"data")
        world.settle()
        world.unlink("k")
        world.settle()
        call = Client.call
        monkeypatch.setattr(
            Client, "call", lambda self, op, **params: {} if op == "delete_object" else call(self, op, **params)
        )
        world.remove("k")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert len(world.of("k")) == 3
        assert sum(row.marker for row in bucket.all_versions()) == 1


def test_large_content_is_read_once(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """G3, section 9: its BLAKE3, the checksums of its parts and what is sent come of one reading."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        read_at, read = Fs.read_at, list[int]()

        def noted(self: Fs, fd: int, size: int, at: int) -> bytes:
            data = read_at(self, fd, size, at)
            if "/.fsrepl/versions/big;" in os.readlink(f"/proc/self/fd/{fd}"):
                read.append(len(data))
            return data

        monkeypatch.setattr(Fs, "read_at", noted)
        world.write("big", os.urandom(20 << 20))
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert sum(read) == 20 << 20


def test_parts_of_all_uploads_share_the_places_in_memory(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 9: several large objects at once take no more memory than one; each place is left, also by a part that is
    refused."""
    bucket, put_part = service.make_bucket(), RemoteBucket.put_part
    places, most, refused = BoundedSemaphore(2), list[int](), iter([True])

    def noted(self: RemoteBucket, *args: Any) -> Any:
        most.append(2 - places._value)
        if next(refused, False):
            raise ServiceAway("cut")
        return put_part(self, *args)

    monkeypatch.setattr(upload, "_PLACES", places)
    monkeypatch.setattr(RemoteBucket, "put_part", noted)
    wanted = {name: os.urandom(1 << 20) * 24 for name in ("a", "b", "c")}
    with RemoteWorld(tmp_path, service) as world:
        for name, data in wanted.items():
            world.write(name, data)
        world.settle()
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert current(bucket) == wanted
    assert max(most) == 2
    assert places._value == 2


def test_of_a_large_version_that_is_damaged_no_object_is_made(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G2, G3: all of its parts had arrived when the last one was read, and are removed."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        begin_upload = RemoteBucket.begin_upload

        def damaged(self: RemoteBucket, *args: Any, **more: Any) -> str:
            with stored(world, "big").open("r+b") as file:
                file.seek(19 << 20)
                file.write(b"damaged")
            return begin_upload(self, *args, **more)

        monkeypatch.setattr(RemoteBucket, "begin_upload", damaged)
        world.write("big", os.urandom(20 << 20))
        world.settle()
        assert world.statuses() == {Status.FAILED}
        assert not found_in(bucket)
        assert not bucket.client.call("list_multipart_uploads", Bucket=bucket.name).get("Uploads")


@EACH
def test_large_content_goes_in_parts_and_is_resumed(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: parts that arrived before a crash are not sent again, and one object comes of it."""
    bucket = service.make_bucket()
    data = os.urandom(1 << 20) * 12
    monkeypatch.setattr(upload, "_PART_BYTES", upload.PART_MIN_BYTES)
    monkeypatch.setattr(upload, "_PARTS_AT_ONCE", 1)
    with RemoteWorld(tmp_path, service) as world:
        put_part, sent = RemoteBucket.put_part, list[int]()

        def part(self: RemoteBucket, name: str, upload_id: str, number: int, *args: Any) -> Any:
            if len(sent) == 2:
                raise ServiceAway("cut")
            sent.append(number)
            return put_part(self, name, upload_id, number, *args)

        monkeypatch.setattr(RemoteBucket, "put_part", part)
        world.write("big", data)
        world.settle()
        assert world.statuses() == {Status.PENDING}
        monkeypatch.setattr(RemoteBucket, "put_part", put_part)
        world.restart()
        sent.clear()
        sent.append(0)

        def rest(self: RemoteBucket, name: str, upload_id: str, number: int, *args: Any) -> Any:
            sent.append(number)
            return put_part(self, name, upload_id, number, *args)

        monkeypatch.setattr(RemoteBucket, "put_part", rest)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert sent == [0, 3]
        assert current(bucket) == {"big": data}
        uploads = bucket.client.call("list_multipart_uploads", Bucket=bucket.name)
        assert not uploads.get("Uploads")


@pytest.mark.slow
def test_a_crash_after_any_request_of_an_upload_in_parts_doubles_nothing(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6, G7: also where the parts have become an object, and the answer to that is lost. No part is left: only an
    upload whose id was in a lost answer, which has none."""
    monkeypatch.setattr(upload, "_PART_BYTES", upload.PART_MIN_BYTES)
    data = os.urandom(1 << 20) * 9
    for number in range(1, 10):
        service.reset()
        bucket = service.make_bucket()
        with Between(service.port) as between, RemoteWorld(tmp_path / str(number), service, url=between.url) as world:
            world.write("k", b"small")
            world.settle()
            cut = Cut(number, "answer")
            between.answer, between.after = cut.before, cut.after
            world.write("big", data)
            world.settle()
            between.answer = between.after = by_service
            world.restart()
            world.settle()
            assert world.statuses() == {Status.COMPLETED}, f"cut after {number}"
            assert current(bucket) == {"k": b"small", "big": data}, f"cut after {number}"
            assert len(list(bucket.all_versions())) == 2, f"cut after {number}"
            left = bucket.client.call("list_multipart_uploads", Bucket=bucket.name).get("Uploads", ())
            assert not any(bucket.parts(each["Key"], each["UploadId"]) for each in left), f"cut after {number}"
            if cut.left > 0:
                assert number > 4  # begun, two parts, and the end
                return
    raise AssertionError("it was cut each time")


def test_an_upload_of_which_a_part_was_lost_begins_again(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G7: no person could do more about it. The parts that are left are not charged for."""
    bucket, data = service.make_bucket(), os.urandom(1 << 20) * 9
    with RemoteWorld(tmp_path, service) as world:
        call, lost = Client.call, iter([True])

        def losing(self: Client, operation: str, **params: Any) -> Any:
            if operation == "complete_multipart_upload" and next(lost, False):
                params["MultipartUpload"]["Parts"][0]["ETag"] = '"0"'
            return call(self, operation, **params)

        monkeypatch.setattr(Client, "call", losing)
        world.write("big", data)
        world.settle()
        assert world.statuses() == {Status.PENDING}
        assert not bucket.client.call("list_multipart_uploads", Bucket=bucket.name).get("Uploads")
        world.flush_settling()
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert current(bucket) == {"big": data}
        assert len(list(bucket.all_versions())) == 1


def test_an_upload_that_nobody_wants_any_more_is_aborted(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are charged for: they go when the version's delivery is settled otherwise."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        put_part = RemoteBucket.put_part

        def cut(*_: Any) -> Any:
            raise ServiceAway("cut")

        monkeypatch.setattr(RemoteBucket, "put_part", cut)
        world.write("big", os.urandom(1 << 20) * 9)
        world.settle()
        monkeypatch.setattr(RemoteBucket, "put_part", put_part)
        uploads = lambda: bucket.client.call("list_multipart_uploads", Bucket=bucket.name).get("Uploads", [])  # noqa: E731
        assert len(uploads()) == 1
        world.restart()
        world.settle()
        assert uploads() == []
        monkeypatch.setattr(RemoteBucket, "put_part", cut)
        world.write("other", os.urandom(1 << 20) * 9)
        world.settle()
        assert len(uploads()) == 1
        world.run("replication.rm", source=SOURCE)
        world.restart()
        world.settle()
        world.run("replication.enable", source=SOURCE, destination=THERE)
        world.write("k", b"k")
        world.settle()
        assert uploads() == []
        assert set(current(bucket)) == {"big", "k"}


def test_a_list_that_was_cut_short_counts_for_nothing(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G6: a key is only known once all that is there of it was looked at; else a version would be sent again."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        for data in (b"one", b"two"):
            world.write("k", data)
            world.settle()
        before = {row.id for row in bucket.all_versions()}
        world.restart(without_journal=True)
        world.settle()
        head, asked = RemoteBucket.head, [0]

        def cut(self: RemoteBucket, *args: str) -> Any:
            asked[0] += 1
            if asked[0] == 2:
                raise ServiceAway("cut")
            return head(self, *args)

        monkeypatch.setattr(RemoteBucket, "head", cut)
        world.run("replication.backfill", source=SOURCE, statuses=["COMPLETED"])
        for _ in range(3):
            world.settle()
        assert {row.id for row in bucket.all_versions()} == before
        assert world.statuses() == {Status.COMPLETED}


def test_a_limit_holds_for_what_is_under_way(tmp_path: Path, service: Service) -> None:
    """Not as many files as there may be requests are begun at once, but about a quarter of a second's bytes."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        for number in range(20):
            world.write(f"k{number}", os.urandom(50_000))
        world.capture(SOURCE)
        uplink = world.engine.receivers["aws"]
        world.engine.limiter.rate = 100_000
        uplink.turn()  # looks at the bucket
        begun: list[int] = []
        uplink.in_background = lambda *_, **__: begun.append(1)  # type: ignore[method-assign]
        for _ in range(50):
            uplink.turn()
        assert 0 < len(begun) <= 2


@pytest.mark.parametrize("rate", [40 << 10, 700 << 10])
def test_what_is_sent_to_a_service_keeps_the_limit_in_any_ten_seconds(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    """Settings, limit: within 5 %, by what the connection takes, in parts of 5 MiB and in one request; a signature that
    reads the content first is no sending."""
    service.make_bucket()
    time, real = Time(), Section.read
    sent: list[tuple[float, int]] = []

    def oversleep(seconds: float) -> None:
        time.sleep(seconds + 0.002)

    def read(section: Section, size: int = -1) -> bytes:
        data = real(section, size)
        if section.is_sent:
            sent.append((time.now_s, len(data)))
        return data

    monkeypatch.setattr(Section, "read", read)
    with RemoteWorld(tmp_path, service) as world:
        found = world.engine.limiter = Limiter(rate, time, oversleep)
        for name, size in (("in parts", 24 << 20), ("in one", 7 << 20)):
            time.sleep(found.wait_s(found.position))
            world.write(name, os.urandom(size))
            world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert found.position == 31 << 20
    assert sum(size for _, size in sent) >= 31 << 20
    assert_rate(sent, rate)


@EACH
def test_an_object_that_one_request_may_not_copy_is_copied_in_parts(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G5: an edit of an object over 5 GB."""
    bucket = service.make_bucket()
    monkeypatch.setattr(buckets, "COPY_MAX_BYTES", 6 << 20)
    monkeypatch.setattr(buckets, "COPY_PART_BYTES", 5 << 20)
    data = os.urandom(1 << 20) * 11
    with RemoteWorld(tmp_path, service) as world:
        world.write("big", data)
        world.settle()
        world.path("big").chmod(0o600)
        world.settle()
        (found,) = found_in(bucket)
        assert (found.data == data, found.metadata["mode"]) == (True, "100600")
