"""What a service or the way to it may do to deliveries, each done by a server in between."""

from __future__ import annotations

import itertools
import shutil
import ssl
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fsrepl.capture import ingest
from fsrepl.commands import notes, status
from fsrepl.daemon.uplink import Uplink
from fsrepl.errors import Unavailable
from fsrepl.model.version import Status, Versioning
from fsrepl.region import delivery_queue
from tests.between import CUT, Between, Reply, Request, by_service, refusal
from tests.services import KEYS, THERE, RemoteWorld, Service, current, found_in
from tests.world import SOURCE


def uplink_of(world: RemoteWorld) -> Uplink:
    found = world.engine.receivers["aws"]
    assert isinstance(found, Uplink)
    return found


def is_put(request: Request) -> bool:
    return request.method == "PUT" and request.path.startswith("/copies/k")


def told(world: RemoteWorld) -> str:
    """What `status` says of the source and of its destination."""
    said: dict[str, Any] = {
        "running": True,
        "buckets": {THERE: uplink_of(world).states[THERE].describe()},
        "blocked": [b for queue in uplink_of(world).queues.values() if (b := queue.blocked(0.0))],
        "retrying": [each for queue in uplink_of(world).queues.values() for each in queue.reasons()],
    }
    found = status.status(world.engine.site, said)["buckets"]
    return "\n".join(note.text for row in found for note in notes.notes_of(row, None))


# -- the start


def test_a_bucket_is_looked_at_before_there_is_anything_to_send(tmp_path: Path, service: Service) -> None:
    """G11: `status` says from the start whether it can be used, and when that changes, without a delivery."""
    service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        between.answer = lambda _: CUT
        world.restart()
        world.settle()
        assert f"region aws: {between.url} cannot be reached" in told(world)
        between.answer = by_service
        world.settle()
        assert uplink_of(world).states[THERE].describe() == {"online": True, "trouble": "", "seen": True}
        before = len(between.requests)
        world.settle()
        assert len(between.requests) == before


def test_a_bucket_that_no_rule_names_any_more_is_left_alone(tmp_path: Path, service: Service) -> None:
    """A destination that was away when its rule was removed is neither asked again nor shown as away."""
    service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        between.answer = lambda _: CUT
        world.restart()
        world.settle()
        world.run("replication.rm", source=SOURCE)
        between.requests.clear()
        world.settle()
        assert between.requests == []
        assert uplink_of(world).states[THERE].why == ""
        assert uplink_of(world).next_s() is None


# -- too many requests


def test_a_busy_service_gets_fewer_requests_at_once(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 SlowDown halves them, answers raise them again; only what was refused waits, and status tells of it."""
    bucket = service.make_bucket()
    monkeypatch.setattr(ingest, "STEP_S", 60.0)  # all of them are captured in one step, however slow the machine is
    monkeypatch.setattr(delivery_queue, "retry_delay_s", lambda *_: 3600.0)
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        world.write("first", b"1")
        world.settle()
        refused = itertools.count()
        between.answer = lambda r: refusal("SlowDown", 503) if is_put(r) and next(refused) < 3 else None
        for number in range(20):
            world.write(f"k{number}", b"data")
        world.settle()
        uplink = uplink_of(world)
        assert uplink._window.most(64) == 32  # they were under way together
        pending = [
            v for n in range(20) for v in world.of(f"k{n}") for d in v.deliveries.values() if d.status == "PENDING"
        ]
        assert len(pending) == 3
        text = told(world)
        assert f"{THERE}: 32 of 64 requests at once: region aws: the service is busy (SlowDown: no)" in text
        assert f"{SOURCE} to {THERE}: 3 deliveries wait: region aws: the service is busy (SlowDown: no)" in text
        uplink.retry_now(THERE)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert len(current(bucket)) == 21
        for _ in range(2000):
            uplink._window.answered()
        assert "at once" not in told(world)


def test_a_service_that_stays_busy_is_left_alone_for_longer_and_longer(tmp_path: Path, service: Service) -> None:
    """G7: once a single request is too many, all deliveries wait, with a growing delay."""
    service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url, lines="puts = 8") as world:
        world.write("first", b"1")
        world.settle()
        between.answer = lambda r: refusal("SlowDown", 503) if is_put(r) else None
        for number in range(12):
            world.write(f"k{number:02}", b"data")
        asked = []
        for _ in range(7):
            between.requests.clear()
            world.settle()
            asked.append(sum(map(is_put, between.requests)))
        assert asked == sorted(asked, reverse=True)
        assert asked[-3:] == [1] * 3
        (queue,) = uplink_of(world).queues.values()
        assert "the service is busy" in queue.blocked_why
        assert queue.blocked_until_s > time.monotonic()
        between.answer = by_service
        for _ in range(5):
            world.settle()
        assert world.statuses() == {Status.COMPLETED}


def test_a_worker_asks_a_service_that_is_away_once(tmp_path: Path, service: Service) -> None:
    """G7: a request may take a minute to fail. What else a worker has waits as well, and arrives later."""
    bucket = service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url, lines="puts = 1") as world:
        world.write("first", b"1")
        world.settle()
        between.answer = lambda r: CUT if is_put(r) else None
        between.requests.clear()
        for number in range(8):
            world.write(f"k{number}", b"data")
        world.look()
        world.engine.run_until_idle(50)
        assert 1 <= sum(map(is_put, between.requests)) < 4
        between.answer = by_service
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert len(current(bucket)) == len(found_in(bucket)) == 9


# -- what a person has to mend

LOGIN = b"<!DOCTYPE html><html><head><meta charset=utf-8><body>Log in here<br>"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (refusal("RequestTimeTooSkewed", 403), "set this machine's clock (RequestTimeTooSkewed: no)"),
        (refusal("ExpiredToken", 400), "its credentials have expired: renew them (ExpiredToken: no)"),
        (refusal("InvalidAccessKeyId", 403), "it does not know the access key: correct the credentials"),
        (refusal("SignatureDoesNotMatch", 403), "it does not accept the secret key: correct the credentials"),
        (refusal("QuotaExceeded", 403), "has no room left (QuotaExceeded: no): make room there"),
        (refusal("InternalError", 500), "the service is busy (InternalError: no)"),
        (CUT, "cannot be reached"),
        (Reply(407, LOGIN), "not that of an S3 service, but of a proxy or another server (it says: 407"),
        (Reply(511, LOGIN), "not that of an S3 service"),
        (Reply(302, b"", (("Location", "/login"),)), "not that of an S3 service"),
        (Reply(200, LOGIN), "not that of an S3 service"),
    ],
)
def test_what_concerns_the_whole_service_is_waited_for(
    tmp_path: Path, service: Service, reply: Reply, words: str
) -> None:
    """G7: PENDING, with one request a try after a growing delay, and what to mend; made by itself once that is done."""
    bucket = service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        world.write("first", b"1")
        world.settle()
        between.answer = lambda r: reply if is_put(r) else None
        for number in range(3):
            world.write(f"k{number}", b"data")
        world.settle()
        assert {d.status for n in range(3) for v in world.of(f"k{n}") for d in v.deliveries.values()} == {
            Status.PENDING
        }
        assert f"{SOURCE} to {THERE}: region aws" in told(world)
        assert words in told(world)
        (queue,) = uplink_of(world).queues.values()
        assert (queue.attempts, queue.blocked_until_s > time.monotonic()) == (1, True)
        between.answer = by_service
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert [len(rows) for rows in (bucket.versions_of(f"k{n}") for n in range(3))] == [1, 1, 1]


def test_a_network_that_asks_for_a_login_is_an_outage(
    tmp_path: Path, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """G7: it answers everything with 200 and a page; nothing is FAILED or COMPLETED by that."""
    bucket = service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        between.answer = lambda _: Reply(200, LOGIN)
        world.write("k", b"data")
        world.settle()
        assert world.statuses() == {Status.PENDING}
        assert "region aws" in told(world)
        assert "unexpected" not in caplog.text
        between.answer = by_service
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
    assert current(bucket) == {"k": b"data"}


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "ExpiredToken"])
def test_corrected_credentials_are_used_without_a_restart(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """What `status` says is true: it goes on by itself once the file has others, before and after the first put."""
    service.make_bucket()
    for name in KEYS:
        monkeypatch.delenv(name)
    keys = tmp_path / "keys"

    def have(name: str) -> None:
        keys.write_text(f"[default]\naws_access_key_id = {name}\naws_secret_access_key = secret\n")
        keys.chmod(0o600)

    accepted = "Credential=AKIAONE/"
    have("AKIAOLD")
    with Between(service.port) as between:
        between.answer = lambda r: None if accepted in r.headers["authorization"] else refusal(code, 403)
        settings = f'credentials = "file:{keys}"'
        with RemoteWorld(tmp_path / "site", service, url=between.url, lines=settings, replicate=False) as world:
            with pytest.raises(Unavailable, match=code):
                world.run("replication.enable", source=SOURCE, destination=THERE)
            have("AKIAONE")
            world.run("replication.enable", source=SOURCE, destination=THERE)
            world.write("k1", b"one")
            world.settle()
            accepted = "Credential=AKIATWO/"
            world.write("k2", b"two")
            world.settle()
            assert world.current("k2").deliveries[THERE].status is Status.PENDING
            have("AKIATWO")
            world.settle()
            assert world.statuses() == {Status.COMPLETED}


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_bucket_that_was_deleted_is_failed_and_retried(tmp_path: Path, service: Service, when: str) -> None:
    """DstBucketNotFound, as S3 says it, also where the bucket goes between the look at it and the put."""
    bucket = service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        world.write("k", b"one")
        world.settle()
        if when == "while":
            between.answer = lambda r: refusal("NoSuchBucket", 404) if is_put(r) else None
        else:
            for row in bucket.all_versions():
                bucket.remove(row.name, row.id)
            bucket.client.call("delete_bucket", Bucket=bucket.name)
        world.write("k2", b"two")
        world.settle()
        (recorded,) = world.current("k2").deliveries.values()
        assert (recorded.status, recorded.reason) == (Status.FAILED, "DstBucketNotFound")
        between.answer = by_service
        if when == "before":
            service.make_bucket()
        world.run("retry", scope=SOURCE)
        world.settle()
        assert world.current("k2").deliveries[THERE].status is Status.COMPLETED


def test_a_bucket_that_says_that_it_keeps_versions_and_does_not_is_failed(tmp_path: Path, service: Service) -> None:
    """Some servers answer Enabled, and give no version an id: nothing there is COMPLETED."""
    service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        world.write("first", b"1")
        world.settle()
        between.answer = lambda r: Reply(200, headers=(("ETag", '"0"'),)) if is_put(r) else None
        world.write("k", b"data")
        world.settle()
        (recorded,) = world.current("k").deliveries.values()
        assert recorded.status is Status.FAILED
        assert recorded.reason.startswith("DstBucketUnversioned (the bucket keeps no versions")


@pytest.mark.parametrize("service", ["moto", "ministack"], indirect=True)
def test_a_bucket_that_keeps_no_versions_any_more_gets_one_object_at_most(tmp_path: Path, service: Service) -> None:
    """Suspended between a look at it and a put: an object without a version id replaces what had none before. The
    rest is not sent, and what is there is found again once the versioning is enabled."""
    bucket = service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        world.write("first", b"1")
        world.settle()

        def answer(request: Request) -> Reply | None:
            if is_put(request) and "suspended" not in found:
                found.append("suspended")
                bucket.set_versioning(Versioning.SUSPENDED)
            return None

        found: list[str] = []
        for number in range(40):
            world.write(f"k{number:02}", b"data")
        between.answer = answer
        world.settle()
        assert found
        outcomes = Counter(
            (recorded.status, recorded.reason.partition(" ")[0])
            for number in range(40)
            for recorded in world.current(f"k{number:02}").deliveries.values()
        )
        assert outcomes == {(Status.FAILED, "DstBucketUnversioned"): 40}
        assert len([each for each in found_in(bucket) if each.key.startswith("k")]) == 1
        bucket.set_versioning(Versioning.ENABLED)
        world.run("retry", scope=SOURCE)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert len([each for each in found_in(bucket) if each.key.startswith("k")]) == 40


# -- the way there


def test_a_proxy_is_used_for_every_request(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY, as every program reads it, for botocore's requests and for those that puts.py makes."""
    bucket = service.make_bucket()
    with Between(service.port) as between:
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, between.url)
        with RemoteWorld(tmp_path, service, url="http://127.0.0.1:9") as world:
            for number in range(3):
                world.write(f"k{number}", b"data")
                world.settle()
            assert world.statuses() == {Status.COMPLETED}
            puts = [each for each in between.requests if is_put(each) or "/copies/k" in each.target]
            assert len([each for each in puts if each.method == "PUT"]) == 3
            assert all(each.target.startswith("http://127.0.0.1:9/copies") for each in between.requests)
    assert len(current(bucket)) == 3


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of an authority of one's own for this machine, and what serves it."""
    key, made = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=tests", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)],
        check=True, capture_output=True,
    )  # fmt: skip
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(made, key)
    return made, served


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_is_verified(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown authority is refused, and said; AWS_CA_BUNDLE names one's own, for every kind of request."""
    bucket = service.make_bucket()
    made, served = certificate(tmp_path)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with Between(service.port, tls=served) as between:
        with (
            RemoteWorld(tmp_path / "site", service, url=between.url, replicate=False) as world,
            pytest.raises(Unavailable, match=r"the certificate is not trusted.*AWS_CA_BUNDLE names"),
        ):
            world.run("replication.enable", source=SOURCE, destination=THERE)
        assert between.requests == []
        monkeypatch.setenv("AWS_CA_BUNDLE", str(made))
        with RemoteWorld(tmp_path / "trusting", service, url=between.url) as world:
            for number in range(3):
                world.write(f"k{number}", b"data")
                world.settle()
            assert world.statuses() == {Status.COMPLETED}
    assert len(current(bucket)) == 3
