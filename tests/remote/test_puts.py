"""Small objects: what is sent for one of them, without botocore's work around each request and with the same result."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from fsrepl.errors import FsreplError, Unavailable
from fsrepl.model.version import Status
from fsrepl.remote import puts
from fsrepl.remote.bucket import RemoteBucket, sums_of
from fsrepl.remote.failures import ServiceAway
from fsrepl.remote.puts import Body
from fsrepl.replicate.upload import Section
from tests.between import CUT, Between, Cut, Reply, Request, by_service, refusal
from tests.remote.conftest import EACH
from tests.services import KEYS, RemoteWorld, Service, current, found_in

VARYING = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request", "expect"}


def signed_by_botocore(request: Request, url: str) -> str:
    """The Authorization that botocore gives a request with the same headers at the same time."""
    names = request.headers["authorization"].split("SignedHeaders=")[1].split(",")[0].split(";")
    signer = S3SigV4Auth(Credentials(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]), "s3", "us-east-1")
    headers = {name: request.headers[name] for name in names if name not in ("host", "x-amz-date")}
    again = AWSRequest("PUT", url, headers | {"X-Amz-Date": request.headers["x-amz-date"]}, request.body)
    again.context["timestamp"] = request.headers["x-amz-date"]
    words = signer.string_to_sign(again, signer.canonical_request(again))
    scope, signature = signer.scope(again), signer.signature(words, again)
    return f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders={';'.join(names)}, Signature={signature}"


def put(bucket: RemoteBucket, name: str, data: bytes = b"data", **more: Any) -> str:
    return bucket.put(name, data, len(data), sums_of(data), {"mode": "100644"}, **more)


@pytest.mark.parametrize("name", ["k", "a/b c", "ü+&=;?#~*'()", "a%41", "a//b"])
def test_a_put_is_what_botocore_sends(service: Service, name: str) -> None:
    """G3, G5: checksums, metadata, tags and class, on the same path; but no `Expect`, which costs a round trip."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket = service.bucket(url=between.url)
        for _ in range(2):  # the first one is botocore's
            put(bucket, name, tags={"a b": "ü+"}, storage_class="STANDARD_IA")
        by_botocore, by_us = between.requests
        assert "expect" in by_botocore.headers
        assert "expect" not in by_us.headers
        assert (by_us.target, by_us.body) == (by_botocore.target, b"data")
        headers = [{n: v for n, v in each.headers.items() if n not in VARYING} for each in (by_us, by_botocore)]
        assert headers[0] == headers[1]
        assert unquote(by_us.path) == f"/copies/{name}"
        assert by_us.headers["authorization"] == signed_by_botocore(by_us, between.url + by_us.target)


def test_a_part_is_what_botocore_sends(service: Service) -> None:
    """G3: with the same checksums and the same place; its content is not read again for the signature."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket, data, reads = service.bucket(url=between.url), os.urandom(300_000), list[bool]()

        def read_at(count: int, at: int) -> bytes:
            reads.append(section.is_sent)
            return data[at : at + count]

        upload = bucket.begin_upload("a b", {}, tags={}, storage_class="STANDARD")
        between.requests.clear()
        for number in (1, 2):  # the first one is botocore's
            section = Section(read_at, 0, len(data), lambda count: count)
            assert bucket.put_part("a b", upload, number, section, len(data), sums_of(data)).etag
            if number == 1:
                reads.clear()
        assert all(reads)
        by_botocore, by_us = between.requests
        assert "expect" in by_botocore.headers
        assert "expect" not in by_us.headers
        assert by_us.body == by_botocore.body == data
        assert by_us.path == by_botocore.path
        assert parse_qs(by_us.target.partition("?")[2]) == {"partNumber": ["2"], "uploadId": [upload]}
        headers = [{n: v for n, v in each.headers.items() if n not in VARYING} for each in (by_us, by_botocore)]
        assert headers[0] == headers[1]
        assert by_us.headers["authorization"] == signed_by_botocore(by_us, between.url + by_us.target)


def test_what_stops_the_reading_of_a_part_stops_its_sending(service: Service) -> None:
    """Section 4, limit: a stop comes in the middle of a part, and the service has not got it."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket = service.bucket(url=between.url)
        put(bucket, "k")

        def claim(_: int) -> int:
            raise Unavailable("stopped")

        upload = bucket.begin_upload("big", {}, tags={}, storage_class="STANDARD")
        section = Section(lambda count, at: bytes(count), 0, 5 << 20, claim)
        with pytest.raises(Unavailable, match="stopped"):
            bucket.put_part("big", upload, 1, section, 5 << 20, sums_of(bytes(5 << 20)))
        assert not bucket.parts("big", upload)


@pytest.mark.parametrize("service", ["ministack"], indirect=True)
def test_a_small_file_is_one_request(tmp_path: Path, service: Service) -> None:
    """Where the service is believed, the answer to the put says all that is needed: no second request follows it."""
    service.make_bucket()
    with Between(service.port) as between, RemoteWorld(tmp_path, service, url=between.url) as world:
        world.write("first", b"1")
        world.settle()

        def asked() -> list[str]:
            """The requests about objects since the last call."""
            found = [each.method for each in between.requests if each.path.startswith("/copies/")]
            between.requests.clear()
            return found

        asked()
        for number in range(50):
            world.write(f"d/k{number}", os.urandom(3000))
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert asked() == ["PUT"] * 50
        for number in range(50):
            world.unlink(f"d/k{number}")
        world.settle()
        assert asked() == ["DELETE"] * 50


@EACH
def test_many_small_files_arrive_whole(tmp_path: Path, service: Service) -> None:
    """G3, G5: all after the first go the short way, up to the largest that do."""
    bucket = service.make_bucket()
    wanted = {f"d{n % 3}/ü{n}": os.urandom(n * 17) for n in range(40)}
    wanted |= {f"larger{n}": os.urandom(puts.SMALL_MAX_BYTES - n * 60_000) for n in range(4)}
    with RemoteWorld(tmp_path, service) as world:
        for name, data in wanted.items():
            world.write(name, data)
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        assert current(bucket) == wanted
        assert all(each.metadata["mode"] == "100644" for each in found_in(bucket))


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (refusal("SlowDown", 503), ServiceAway, "the service is busy (SlowDown: no)"),
        (refusal("RequestTimeTooSkewed", 403), ServiceAway, "set this machine's clock"),
        (refusal("AccessDenied", 403), FsreplError, "AccessDenied: no"),
        (Reply(502, b"<html>bad gateway"), ServiceAway, "the service is busy (502: Bad Gateway)"),
        (Reply(500), ServiceAway, "the service is busy (500: Internal Server Error)"),
        (CUT, ServiceAway, "cannot be reached"),
    ],
)
def test_a_refusal_is_read_as_botocore_reads_it(
    service: Service, reply: Reply, kind: type[Exception], words: str
) -> None:
    """Before and after the first put that succeeded, the same error comes of the same answer."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket, said = service.bucket(url=between.url), list[str]()
        for answer in (lambda _: reply, by_service, lambda _: reply):
            between.answer = answer
            if answer is by_service:
                put(bucket, "k")
                continue
            with pytest.raises(kind) as raised:
                put(bucket, "k")
            said.append(str(raised.value))
        assert words in said[0]
        assert words in said[1]
        assert said[0] == said[1] or reply is CUT  # of a connection that ends, each library speaks in its own words


def test_a_put_whose_answer_is_lost_is_not_sent_again(service: Service) -> None:
    """G6: the service has carried it out. libcurl repeats requests on a connection that was in use before."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket = service.bucket(url=between.url)
        for lost in ("answer", "request"):
            for _ in range(2):
                put(bucket, "k")
            before = len(between.requests)
            cut = Cut(1, lost)
            between.answer, between.after = cut.before, cut.after
            with pytest.raises(ServiceAway):
                put(bucket, "k")
            assert len(between.requests) == before + 1
            between.answer, between.after = by_service, by_service


@pytest.mark.parametrize("reply", [refusal("AuthorizationHeaderMalformed", 400), Reply(301), Reply(307)])
def test_a_bucket_that_is_elsewhere_now_is_asked_for_by_botocore(service: Service, reply: Reply) -> None:
    """Nothing was made by a put that was sent on: botocore finds the region, and later puts follow it there."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket = service.bucket(url=between.url)
        put(bucket, "k")
        between.answer = lambda request: None if "expect" in request.headers else reply
        before = len(between.requests)
        assert put(bucket, "k")
        assert ["expect" in each.headers for each in between.requests[before:]] == [False, True]


def test_what_is_signed_in_another_way_is_left_to_botocore() -> None:
    """As in S3 Express, or by an older signature, or where the bucket's URL does not end in the name."""
    good = {"Authorization": b"AWS4-HMAC-SHA256 Credential=AKIA/20261129/eu-west-1/s3/aws4_request, Signed"}
    assert puts.way_of("a b", "http://b.x/a%20b", good) == puts.Way("http://b.x/", "eu-west-1", "")
    for url, headers in (
        ("http://b.x/a%20b", {"Authorization": b"AWS AKIA:abc"}),
        ("http://b.x/a%20b", {"Authorization": good["Authorization"].replace(b"/s3/", b"/s3express/")}),
        ("http://b.x/a%20b?x-id=PutObject", good),
        ("http://b.x/other", good),
        ("http://b.x/a%20b", {}),
    ):
        assert puts.way_of("a b", url, headers) is None


def test_a_botocore_of_another_make_puts_all_by_itself(service: Service) -> None:
    """Its session is no part of its documented interface: without it there is the long way."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket = service.bucket(url=between.url)
        bucket.versioning()
        bucket.client._connections = None
        for _ in range(2):
            put(bucket, "k")
        assert ["expect" in each.headers for each in between.requests] == [False, True, True]


CALLS = 115
"""Function calls of the interpreter, those of built-in functions included."""


def test_a_put_costs_no_more_function_calls_than_before(service: Service) -> None:
    """What many small objects take of the processor goes into calls: its time varies, and their number does not."""
    service.make_bucket()
    bucket, counted = service.bucket(), Counter[str]()

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        counted[event] += 1

    for name in ("botocore's", "the first"):
        put(bucket, name)
    sys.setprofile(count)
    try:
        for number in range(20):
            put(bucket, f"k{number}")
    finally:
        sys.setprofile(None)
    assert (counted["call"] + counted["c_call"]) / 20 <= CALLS, counted


def test_where_pycurl_is_missing_botocore_puts_all(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to the extra, and may be missing, or be Debian's with an old libcurl: nothing fails."""
    service.make_bucket()
    with Between(service.port) as between:
        monkeypatch.setitem(sys.modules, "pycurl", None)
        bucket = service.bucket(url=between.url)
        for name in ("a", "b"):
            assert put(bucket, name)
        assert ["expect" in each.headers for each in between.requests] == [True, True]


def test_a_connection_is_kept_for_whichever_thread_puts_next(service: Service) -> None:
    """A new one costs round trips and the reading of all trusted certificates; workers end when they are idle."""
    service.make_bucket()
    bucket = service.bucket()
    put(bucket, "k")
    for number in range(5):
        thread = threading.Thread(target=put, args=(bucket, f"k{number}"))
        thread.start()
        thread.join()
    assert bucket.client._connections is not None
    assert len(bucket.client._connections._idle) == 1
    assert {each.key for each in found_in(bucket)} == {"k", *(f"k{number}" for number in range(5))}


def test_a_large_body_is_left_to_botocore() -> None:
    """A stream, and what a server may want to refuse before it is sent."""
    params = {"Bucket": "b", "Key": "k", "Body": b"x", "Metadata": {}}
    assert puts.is_put("put_object", params)
    assert not puts.is_put("put_object", params | {"Body": b"x" * (puts.SMALL_MAX_BYTES + 1)})
    assert not puts.is_put("put_object", params | {"ACL": "private"})
    assert not puts.is_put("upload_part", params)
    part = {"Bucket": "b", "Key": "k", "Body": Body(), "UploadId": "u", "PartNumber": 1, "ContentLength": 9}
    assert puts.is_put("upload_part", part)
    assert not puts.is_put("upload_part", part | {"RequestPayer": "requester"})
    assert puts.is_put("put_object", params | {"Key": ".a/b./...c/..."})
    for name in (".", "../k", "a/./k", "a/.."):
        assert not puts.is_put("put_object", params | {"Key": name})


def test_credentials_that_are_renewed_are_used(service: Service) -> None:
    """A token with an end: each request is signed with what holds then."""
    service.make_bucket()
    with Between(service.port) as between:
        bucket = service.bucket(url=between.url)
        put(bucket, "k")
        bucket.client._credentials.token = "renewed"
        put(bucket, "k")
        assert between.requests[-1].headers["x-amz-security-token"] == "renewed"
