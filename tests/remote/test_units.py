"""What a refusal means, the form of a version, and parts: without a service."""

from __future__ import annotations

import io
from typing import Any

import botocore.loaders
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsrepl.daemon.uplink import _grouped
from fsrepl.errors import BucketMissing, Failed, Unavailable
from fsrepl.model.version import Origin, Posix, Version
from fsrepl.remote import form
from fsrepl.remote.bucket import RemoteBucket, sums_of
from fsrepl.remote.client import Client
from fsrepl.remote.failures import Absent, ServiceAway, ServiceRefused, error_of, tls_trouble
from fsrepl.replicate import upload
from fsrepl.replicate.remote import Task
from fsrepl.settings import EndpointSettings
from fsrepl.storage.journal.rows import Delivery

# -- refusals


@pytest.mark.parametrize(
    ("code", "status", "kind", "words"),
    [
        ("SlowDown", 503, ServiceAway, "the service is busy"),
        ("InternalError", 500, ServiceAway, "the service is busy"),
        ("", 502, ServiceAway, "the service is busy"),
        ("TooManyRequests", 429, ServiceAway, "the service is busy"),
        ("RequestTimeTooSkewed", 403, ServiceAway, "set this machine's clock"),
        ("RequestExpired", 400, ServiceAway, "set this machine's clock"),
        ("Unauthorized", 401, ServiceAway, "it does not accept the credentials"),
        ("", 401, ServiceAway, "not that of an S3 service, but of a proxy"),
        ("ExpiredToken", 400, ServiceAway, "its credentials have expired: renew them"),
        ("InvalidAccessKeyId", 403, ServiceAway, "correct the credentials"),
        ("SignatureDoesNotMatch", 403, ServiceAway, "correct the credentials"),
        ("QuotaExceeded", 403, ServiceAway, "make room there"),
        ("InsufficientStorage", 507, ServiceAway, "make room there"),
        ("NoSuchBucket", 404, BucketMissing, "NoSuchBucket"),
        ("NoSuchVersion", 404, Absent, "NoSuchVersion"),
        ("404", 404, Absent, "404"),
        ("BadDigest", 400, Unavailable, "is sent again"),
        ("AccessDenied", 403, ServiceRefused, "AccessDenied: no"),
        ("InvalidStorageClass", 400, ServiceRefused, "InvalidStorageClass: no"),
    ],
)
def test_what_a_code_means(code: str, status: int, kind: type[Exception], words: str) -> None:
    """An outage, which concerns all deliveries and ends; a failure of one; or nothing there."""
    error = error_of("aws", "put_object", code, "no", status)
    assert isinstance(error, kind)
    assert words in str(error)
    assert isinstance(error, Failed) == (kind is ServiceRefused)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", "does not speak TLS"),
        ("TLS connect error: error:0A00010B:SSL routines::wrong version number", "http:// instead of https://"),
        ("certificate verify failed: certificate has expired (_ssl.c:1006)", "not valid today"),
        ("certificate verify failed: Hostname mismatch, certificate is not valid for 'a'", "name the host"),
        ("SSL: no alternative certificate subject name matches target host name 'a'", "for another name"),
        ("SSL certificate problem: self-signed certificate", "AWS_CA_BUNDLE names a file"),
        ("certificate verify failed: unable to get local issuer certificate", "is not trusted"),
    ],
)
def test_what_tls_refuses_is_said_with_what_mends_it(said: str, words: str) -> None:
    """In OpenSSL's words and in libcurl's: only an unknown authority is mended with a file of certificates."""
    assert words in tls_trouble(said)


@pytest.mark.parametrize(
    ("operation", "code", "recorded"),
    [
        ("put_object", "AccessDenied", "DstPutObjectNotPermitted (AccessDenied: not yours)"),
        ("delete_object", "AccessDenied", "DstDelObjNotPermitted (AccessDenied: not yours)"),
        ("put_object_tagging", "AccessDenied", "DstPutTaggingNotPermitted (AccessDenied: not yours)"),
        ("upload_part", "AccessDenied", "DstMultipartUploadNotPermitted (AccessDenied: not yours)"),
        ("put_object", "InvalidTag", "InvalidTag: not yours"),
    ],
)
def test_a_failure_has_the_reason_and_the_words(operation: str, code: str, recorded: str) -> None:
    """S3's reason of failed replication where it has one, and always what the service said."""
    error = error_of("aws", operation, code, "not\nyours", 403 if code == "AccessDenied" else 400)
    assert isinstance(error, ServiceRefused)
    assert error.recorded == recorded


@pytest.mark.parametrize("refused", ["MD5", "SHA256", ""])
def test_a_service_that_refuses_wrong_checksums_is_believed(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """G3: either checksum will do; what the test made where it was accepted is removed."""
    there: list[str] = []

    def call(self: Client, operation: str, **params: Any) -> dict[str, Any]:
        if operation == "delete_object":
            there.remove(params["VersionId"])
            return {}
        wrong = "SHA256" if params["ContentMD5"] == sums_of(b"probe").params["ContentMD5"] else "MD5"
        if wrong == refused:
            raise error_of("aws", operation, "BadDigest", "no", 400)
        there.append(f"v{len(there)}")
        return {"VersionId": there[-1]}

    monkeypatch.setattr(Client, "call", call)
    bucket = RemoteBucket(Client(EndpointSettings("aws", "http://localhost")), "aws/b")
    assert bucket.refuses_wrong_sums() == bool(refused)
    assert there == []


# -- form


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
VERSIONS = st.builds(
    Version,
    key=st.one_of(st.binary(min_size=1, max_size=40), TEXT.filter(bool).map(str.encode), st.just(b"k" * 1500)),
    id=st.sampled_from(["01KB7Z4W4W4W4W4W4W4W4W4W4W", "null"]),
    created_ns=st.integers(-(10**18), 4 * 10**18),
    size=st.integers(0, 10**13),
    digest=st.binary(min_size=32, max_size=32),
    origin=st.just(Origin.REPLICA),
    source=st.just("east/src"),
    posix=st.builds(
        Posix, mode=st.integers(0, 0o7777), uid=st.integers(0, 2**32 - 2), gid=st.integers(0, 2**32 - 2),
        mtime_ns=st.integers(-(10**19), 10**19), acl=st.one_of(st.none(), st.binary(min_size=4, max_size=60)),
    ),
    attrs=st.dictionaries(st.sampled_from(["user.a", "user.ünï"]), st.binary(max_size=3000), max_size=2),
    tags=st.dictionaries(TEXT.filter(bool), TEXT, max_size=3),
    edited=st.dictionaries(st.sampled_from(["posix", "attrs"]), st.just("17 east/src"), max_size=2),
)  # fmt: skip


@given(VERSIONS, st.sampled_from(["", "host7/"]))
def test_a_version_is_read_back_as_it_was(version: Version, prefix: str) -> None:
    """G5: identity and metadata, whatever is in them; within S3's 2 KB, in ASCII, and within its names."""
    made = form.form_of(version)
    assert sum(len(name) + len(value) for name, value in made.metadata.items()) <= 2048
    assert all(value.isascii() and value.isprintable() and value.strip() == value for value in made.metadata.values())
    name = form.name_of(version.key, prefix)
    assert len(name.encode()) <= 1024
    read = form.version_of(name, made.metadata, version.size, made.sidecar, tags=version.tags, prefix=prefix)
    assert read == version


def test_keys_that_are_escaped_do_not_collide() -> None:
    """A name that is not UTF-8 is no other key's."""
    found = {form.name_of(key) for key in (b"caf\xe9", b"caf%E9", b"caf\\xe9", b"x" * 1025, b"x" * 1026)}
    assert len(found) == 5


# -- parts


@pytest.mark.parametrize("size", [upload.PART_MIN_BYTES + 1, 1 << 30, 5 << 40])
@pytest.mark.parametrize("rate", [0.0, 100_000.0, 1e9])
def test_parts_are_as_s3_allows(size: int, rate: float) -> None:
    """At most 10,000 parts of at least 5 MiB; under a limit about a second's bytes."""
    found = upload.part_bytes(size, rate)
    assert found >= upload.PART_MIN_BYTES
    assert -(-size // found) <= upload.PARTS_MAX


def test_a_section_is_a_file_of_its_own() -> None:
    """What a request reads, seeks and measures is the section, wherever it lies."""
    data = bytes(range(200))
    section = upload.Section(lambda size, at: data[at : at + size], 50, 100, lambda _: None)
    assert (len(section), section.read(10), section.tell()) == (100, data[50:60], 10)
    assert section.seek(0, io.SEEK_END) == 100
    assert section.read() == b""
    assert b"".join(section.chunks()) == data[50:150]
    assert section.tell() == 0


def test_the_descriptions_of_s3_are_read_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them is most of what a client costs; a site may name several services, and reads its settings again."""
    with pytest.raises(ServiceAway):
        Client(EndpointSettings("one", "http://127.0.0.1:1")).call("list_buckets")
    monkeypatch.setattr(botocore.loaders.JSONFileLoader, "load_file", None)
    with pytest.raises(ServiceAway):
        Client(EndpointSettings("other", "http://127.0.0.1:2")).call("list_buckets")


@pytest.mark.parametrize(
    ("sizes", "free", "groups"),
    [
        ([10] * 3, 64, [1, 1, 1]),
        ([10] * 64, 64, [1] * 64),
        ([10] * 65, 64, [2] * 32 + [1]),
        ([10] * 20, 2, [8, 8, 4]),
        ([10] * 20, 0, [8, 8, 4]),
        ([600_000] * 3, 1, [1, 1, 1]),
        ([10, 20 << 20, 10, 10], 1, [1, 1, 2]),
        ([-1, -1, 1], 1, [3]),
    ],
)
def test_a_worker_takes_several_small_deliveries_where_there_are_more_than_workers(
    sizes: list[int], free: int, groups: list[int]
) -> None:
    """A large object is carried alone, and a few of any size at once. -1: a marker."""
    tasks = []
    for number, size in enumerate(sizes):
        delivery = Delivery("east/src", b"%d" % number, "id", "aws/copies", "", "", "", number, size, size < 0, "", 0)
        tasks.append(Task(delivery, (), False, True))
    found = _grouped(tasks, free, 8 << 20)
    assert [len(each) for each in found] == groups
    assert [task for each in found for task in each] == tasks
