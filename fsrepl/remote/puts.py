"""Small objects, and the parts of large ones, are put by libcurl, which signs and sends a request in an eighth of the
processor time of botocore.

How a bucket is reached is taken from the first put that botocore made to it: the URL, the region that the request was
signed for, the name of the program. Every later put is signed and sent by libcurl, with botocore's credentials, proxies
and certificates, and its errors are read by botocore's parser. Connections stay open; libcurl waits for the answer
without the interpreter, where urllib3 needs it ten times. For the signature of a part libcurl takes the SHA-256 that is
sent anyway, where botocore reads the part once more; and it takes 256 KiB of it at a time, instead of 16. A bucket that
is reached in another way, as with signatures of another kind, is left to botocore, and so is everything where pycurl is
missing.
"""

from __future__ import annotations

import errno
import io
import os
import re
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from msgspec import Struct

SMALL_MAX_BYTES = 256 << 10
_LIBCURL_MIN = (8, 9)
"""Earlier ones sign some names and headers in ways of their own."""
_SCOPE = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/,]+)/s3/aws4_request, ")
_HEADERS = {
    "ContentMD5": "Content-MD5",
    "ChecksumSHA256": "x-amz-checksum-sha256",
    "ContentType": "Content-Type",
    "Tagging": "x-amz-tagging",
    "StorageClass": "x-amz-storage-class",
}
"""The headers of the parameters of a put. Source: AWS, PutObject."""
_KNOWN = {
    "put_object": _HEADERS.keys() | {"Bucket", "Key", "Body", "ContentLength", "Metadata"},
    "upload_part": {"Bucket", "Key", "Body", "ContentLength", "ContentMD5", "ChecksumSHA256", "UploadId", "PartNumber"},
}
"""The parameters that are known here, by operation. Source: AWS, PutObject and UploadPart."""
_NAMES = {"put_object": "PutObject", "upload_part": "UploadPart"}
_BUFFER_BYTES = 256 << 10
_ELSEWHERE = frozenset({"AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException"})
"""Answers that say that the bucket is in another region: botocore finds out which."""

_DOTS = re.compile(r"(^|/)\.\.?(/|$)")
"""Names that libcurl shortens, as if they were of a directory. Source: RFC 3986, section 5.2.4."""

Answer = dict[str, Any]


class Way(Struct, frozen=True):
    """How a bucket is reached. base: the URL of an empty name. region: what requests are signed for."""

    base: str
    region: str
    agent: str


class Body(io.RawIOBase):
    """The body of a request, which knows when it is sent: before that, a signature may read all of it."""

    is_sent = False


def is_put(operation: str, params: Mapping[str, Any]) -> bool:
    """Whether a request puts a small object or a part of one, and all of its parameters are known here."""
    if operation not in _KNOWN or not params.keys() <= _KNOWN[operation] or _DOTS.search(params["Key"]):
        return False
    body = params.get("Body")
    if operation == "upload_part":
        return isinstance(body, Body)
    return isinstance(body, bytes) and len(body) <= SMALL_MAX_BYTES


def way_of(name: str, url: str, headers: Mapping[str, Any]) -> Way | None:
    """How a put of botocore's reached a bucket; None where it was signed in another way, or has another URL."""
    signed = _SCOPE.match(_text(headers.get("Authorization")))
    tail = _escaped(name)
    if signed is None or not url.endswith("/" + tail) or "?" in url or headers.get("X-Amz-S3session-Token"):
        return None
    return Way(url.removesuffix(tail), signed[1], _text(headers.get("User-Agent")))


class _Handle:
    """A handle of libcurl with its connection, and what the answer to its last request was."""

    def __init__(self, curl: Any) -> None:
        self.curl = curl
        self.lines: list[bytes] = []
        self.body: list[bytes] = []
        self.signs_for: tuple[Way, str, str] | None = None
        """For which bucket, and with which keys, requests are signed."""


class Connections:
    """Connections to one service, each used by one thread at a time. The connection used last is used next."""

    def __init__(
        self, proxy_for: Callable[[str], str | None], authorities: str, connect_s: float, idle_s: float
    ) -> None:
        """proxy_for: the proxy of a URL. authorities: the file of trusted certificates. connect_s, idle_s: how long a
        service may take to be reached, and be silent then."""
        self._proxy_for, self._authorities = proxy_for, authorities
        self._connect_s, self._idle_s = connect_s, idle_s
        self._idle: deque[_Handle] = deque()

    def _make(self) -> _Handle:
        import pycurl

        made = _Handle(pycurl.Curl())
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.UPLOAD, 1),
            (pycurl.UPLOAD_BUFFERSIZE, _BUFFER_BYTES),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.ACCEPT_ENCODING, "identity"),
            (pycurl.CAINFO, self._authorities),
            (pycurl.CONNECTTIMEOUT_MS, int(self._connect_s * 1000)),
            (pycurl.LOW_SPEED_LIMIT, 1),
            (pycurl.LOW_SPEED_TIME, max(1, int(self._idle_s))),
            # libcurl repeats a request on a connection that has just ended: the service may have carried it out
            (pycurl.SEEKFUNCTION, lambda offset, whence: pycurl.SEEKFUNC_FAIL),
            (pycurl.HEADERFUNCTION, made.lines.append),
            (pycurl.WRITEFUNCTION, made.body.append),
        ):
            made.curl.setopt(option, value)
        return made

    def _sign_for(self, handle: _Handle, way: Way, access_key: str, secret_key: str) -> None:
        import pycurl

        for option, value in (
            (pycurl.PROXY, self._proxy_for(way.base) or ""),
            (pycurl.USERAGENT, way.agent),
            (pycurl.AWS_SIGV4, f"aws:amz:{way.region}:s3"),
            (pycurl.USERNAME, access_key),
            (pycurl.PASSWORD, secret_key),
        ):
            handle.curl.setopt(option, value)
        handle.signs_for = way, access_key, secret_key

    def put(self, way: Way, credentials: Any, operation: str, params: Mapping[str, Any]) -> Answer | None:
        """Put an object or a part; S3's answer, as botocore has it. None where it was not made, and botocore is to be
        asked.

        credentials: botocore's. Raises ClientError, other errors of botocore, and what reading the body raises.
        """
        import pycurl

        keys, body = credentials.get_frozen_credentials(), params["Body"]
        headers = [f"{header}: {params[name]}" for name, header in _HEADERS.items() if name in params]
        headers += [f"x-amz-meta-{name}: {value}" for name, value in params.get("Metadata", {}).items()]
        headers += [f"x-amz-content-sha256: {b64decode(params['ChecksumSHA256']).hex()}", "Expect:", "Accept:"]
        if keys.token:
            headers.append(f"x-amz-security-token: {keys.token}")
        url, reading = way.base + _escaped(params["Key"]), None
        if operation == "upload_part":
            reading = _Reading(body)
            url += f"?partNumber={params['PartNumber']}&uploadId={quote(params['UploadId'], safe='~')}"
        try:
            handle = self._idle.pop()
        except IndexError:
            handle = self._make()
        if handle.signs_for != (way, keys.access_key, keys.secret_key):
            self._sign_for(handle, way, keys.access_key, keys.secret_key)
        curl, lines, answer = handle.curl, handle.lines, handle.body
        lines.clear()
        answer.clear()
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.INFILESIZE, len(body))
        curl.setopt(pycurl.READFUNCTION, reading.read if reading is not None else io.BytesIO(body).read)
        try:
            curl.perform()
        except pycurl.error as error:  # the handle goes, and whatever has become of its connection
            if reading is not None and reading.error is not None:
                raise reading.error from None
            code, words = error.args
            raise _unreachable(url, code, words, curl.getinfo(pycurl.OS_ERRNO)) from error
        status = curl.getinfo(pycurl.RESPONSE_CODE)
        found = _headers(lines)
        refusal = None if status in (200, 204) else _refusal(operation, status, found, b"".join(answer))
        self._idle.append(handle)
        if refusal is not None:
            raise refusal
        if status not in (200, 204):
            return None
        if operation == "upload_part":
            return {"ETag": found.get("etag"), "ChecksumSHA256": found.get("x-amz-checksum-sha256")}
        return {"VersionId": found.get("x-amz-version-id"), "ETag": found.get("etag")}


class _Reading:
    """A body as libcurl reads it. What reading it raises is kept, since libcurl only learns that it is to stop."""

    def __init__(self, body: Body) -> None:
        body.seek(0)
        body.is_sent = True
        self._body = body
        self.error: Exception | None = None

    def read(self, size: int) -> bytes | int:
        import pycurl

        try:
            return self._body.read(size) or b""
        except Exception as error:
            self.error = error
            return int(pycurl.READFUNC_ABORT)


def lacking() -> str:
    """Why libcurl is not used, for people; empty where it is."""
    try:
        import pycurl
    except ImportError as error:
        return f"the Python package pycurl cannot be loaded ({error})"
    version = str(pycurl.version_info()[1])
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _LIBCURL_MIN:
        return f"pycurl has libcurl {version}, and needs {'.'.join(map(str, _LIBCURL_MIN))} for this"
    return ""


def connections(session: Any, connect_s: float, idle_s: float) -> Connections | None:
    """Connections that are made as those of botocore's HTTP session; None where that has another form in this release
    of botocore, or libcurl is lacking."""
    if lacking():
        return None
    try:
        from botocore.httpsession import get_cert_path

        return Connections(session._proxy_config.proxy_url_for, get_cert_path(session._verify), connect_s, idle_s)
    except (ImportError, AttributeError):
        return None


def _headers(lines: list[bytes]) -> dict[str, str]:
    """The headers of an answer, without those of an earlier one such as a proxy's."""
    found: dict[str, str] = {}
    for line in b"".join(lines).decode("latin-1").split("\r\n"):
        name, colon, value = line.partition(":")
        if colon:
            found[name.lower()] = value.strip()
        elif name.startswith("HTTP/"):
            found.clear()
    return found


def _refusal(operation: str, status: int, headers: Mapping[str, str], body: bytes) -> Exception | None:
    """botocore's ClientError for an answer; None where the bucket is elsewhere, and botocore is to be asked."""
    from botocore.exceptions import ClientError
    from botocore.parsers import RestXMLParser

    parsed = RestXMLParser().parse({"body": body, "headers": headers, "status_code": status}, None)
    if 300 <= status < 400 or parsed.get("Error", {}).get("Code") in _ELSEWHERE:
        return None
    error: Exception = ClientError(parsed, _NAMES[operation])
    return error


def _unreachable(url: str, code: int, words: str, number: int) -> Exception:
    """botocore's error for one of libcurl's. number: the errno of its last system call, or 0."""
    import pycurl
    from botocore import exceptions

    cause = f"[Errno {number}] {os.strerror(number)}" if number and number != errno.EINPROGRESS else words
    kinds: dict[int, Callable[..., Exception]] = {
        pycurl.E_PEER_FAILED_VERIFICATION: exceptions.SSLError,
        pycurl.E_SSL_CONNECT_ERROR: exceptions.SSLError,
        pycurl.E_SSL_CACERT_BADFILE: exceptions.SSLError,
        pycurl.E_OPERATION_TIMEDOUT: exceptions.ReadTimeoutError,
        pycurl.E_COULDNT_CONNECT: exceptions.EndpointConnectionError,
        pycurl.E_COULDNT_RESOLVE_HOST: exceptions.EndpointConnectionError,
    }
    if code == pycurl.E_COULDNT_RESOLVE_PROXY:
        made: Exception = exceptions.ProxyConnectionError(proxy_url=url, error=words)
        return made
    kind: Callable[..., Exception] = kinds.get(code, exceptions.ConnectionClosedError)
    return kind(endpoint_url=url, error=cause)


def _escaped(name: str) -> str:
    """A name in a URL, as botocore writes it."""
    return quote(name, safe="/~")


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
