"""A small object is put without most of what botocore does around a request: three quarters of the processor time that
its delivery took.

How a bucket is reached is taken from the first put that botocore made to it: the URL, the region that the request was
signed for, the headers that tell who asks. Every later put is signed by botocore's S3SigV4Auth, goes through the
connections of botocore's client, with its proxies and certificates, and its errors are read by botocore's parser. What
is left out is validation of parameters, resolution of the endpoint, its chains of hooks, and `Expect: 100-continue`. A
bucket that is reached in another way, as with signatures of another kind, is left to botocore.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from msgspec import Struct

SMALL_MAX_BYTES = 256 << 10
_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/,]+)/s3/aws4_request, ")
_HEADERS = {
    "ContentMD5": "Content-MD5",
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ContentType": "Content-Type",
    "Tagging": "x-amz-tagging",
    "StorageClass": "x-amz-storage-class",
}
"""The headers of the parameters of a put. Source: AWS, PutObject."""
_OTHER = frozenset({"Bucket", "Key", "Body", "ContentLength", "Metadata"})
_ELSEWHERE = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})
"""Answers that say that the bucket is in another region: botocore finds out which."""

Answer = dict[str, Any]


class Way(Struct, frozen=True):
    """How a bucket is reached. base: the URL of an empty name. region: what requests are signed for."""

    base: str
    region: str
    agent: str


def is_small(operation: str, params: Mapping[str, Any]) -> bool:
    """Whether a request is the put of a small object, all of whose parameters are known here."""
    body = params.get("Body")
    is_put = operation == "put_object" and isinstance(body, bytes) and len(body) <= SMALL_MAX_BYTES
    return is_put and params.keys() <= _HEADERS.keys() | _OTHER


def way_of(name: str, url: str, headers: Mapping[str, Any]) -> Way | None:
    """How a put of botocore's reached a bucket; None where it was signed in another way, or has another URL."""
    signed = _SCOPE.match(_text(headers.get("Authorization")))
    tail = _escaped(name)
    if signed is None or not url.endswith("/" + tail) or "?" in url or headers.get("X-Amz-S3session-Token"):
        return None
    return Way(url.removesuffix(tail), signed[1], _text(headers.get("User-Agent")))


def send(way: Way, session: Any, credentials: Any, params: Mapping[str, Any]) -> Answer | None:
    """Put an object; S3's answer, as botocore has it. None where it was not made, and botocore is to be asked.

    session: botocore's HTTP session; credentials: its credentials. Raises ClientError, other errors of botocore.
    """
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import ClientError
    from botocore.parsers import RestXMLParser

    headers = {header: params[name] for name, header in _HEADERS.items() if name in params}
    headers |= {f"x-amz-meta-{name}": value for name, value in params.get("Metadata", {}).items()}
    headers["User-Agent"] = way.agent
    request = AWSRequest("PUT", way.base + _escaped(params["Key"]), headers, params["Body"])
    S3SigV4Auth(credentials.get_frozen_credentials(), "s3", way.region).add_auth(request)
    answer = session.send(request.prepare())
    if answer.status_code in (200, 204):
        return {"VersionId": answer.headers.get("x-amz-version-id"), "ETag": answer.headers.get("etag")}
    raw = {"body": answer.content, "headers": answer.headers, "status_code": answer.status_code}
    parsed = RestXMLParser().parse(raw, None)
    if 300 <= answer.status_code < 400 or parsed.get("Error", {}).get("Code") in _ELSEWHERE:
        return None
    raise ClientError(parsed, "PutObject")


def _escaped(name: str) -> str:
    """A name in a URL, as botocore writes it."""
    return quote(name, safe="/~")


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
