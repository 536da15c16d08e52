"""The meaning of an S3 service's refusal: an outage, a failed delivery, or something that is not there. Pure.

An outage ends by itself, or when a person mends what concerns all deliveries (credentials, clock, network): deliveries
stay PENDING. A refusal of one delivery is FAILED, with S3's words. Source: S3's list of error codes.
"""

from __future__ import annotations

from fsrepl.errors import BucketMissing, Failed, FsreplError, Unavailable

_WORDS_MAX = 200

_BUSY = frozenset(
    {
        "SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded",
        "BandwidthLimitExceeded", "TooManyRequests", "RequestThrottled", "RequestThrottledException", "ServerBusy",
    }
)  # fmt: skip
"""Codes that say that there are too many requests; so do the statuses 429 and 503."""
_FAULTY = frozenset({"InternalError", "RequestTimeout", "OperationAborted"})
_MENDED = {
    "ExpiredToken": "its credentials have expired: renew them",
    "TokenRefreshRequired": "its credentials have expired: renew them",
    "InvalidToken": "its session token is not valid: renew the credentials",
    "InvalidAccessKeyId": "it does not know the access key: correct the credentials",
    "SignatureDoesNotMatch": "it does not accept the secret key: correct the credentials, or s3_region",
    "AuthorizationHeaderMalformed": "s3_region is wrong",
    "InvalidSecurity": "it does not accept the credentials",
    "NotSignedUp": "the account is not set up there",
    "AccountProblem": "there is a problem with the account there",
    "AllAccessDisabled": "all access to it is disabled there",
    "RequestTimeTooSkewed": "the clocks of this machine and of the service differ: set this machine's clock",
    "RequestExpired": "the clocks of this machine and of the service differ: set this machine's clock",
    "PermanentRedirect": "the bucket is in another region of the service: correct endpoint or s3_region",
    "IllegalLocationConstraintException": "the bucket is in another region of the service: correct s3_region",
}
"""Codes that concern every delivery until a person mends the cause, and what to mend."""
CREDENTIALS = frozenset(
    {
        "ExpiredToken", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId", "SignatureDoesNotMatch",
        "InvalidSecurity",
    }
)  # fmt: skip
"""The codes among them that other credentials remedy."""
_FULL = frozenset({"QuotaExceeded", "InsufficientStorage", "StorageFull", "XMinioStorageFull", "ServiceQuotaExceeded"})
_CORRUPT = frozenset(
    {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody"}
)
_NOT_OF_S3 = frozenset({301, 302, 303, 307, 308, 401, 407, 511})
"""Statuses with which S3 says nothing without a code: a redirect, or the demand of a proxy."""
_ABSENT = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload"})
_DENIED = {
    "delete_object": "DstDelObjNotPermitted",
    "put_object_tagging": "DstPutTaggingNotPermitted",
    "create_multipart_upload": "DstMultipartInitNotPermitted",
    "upload_part": "DstMultipartUploadNotPermitted",
    "upload_part_copy": "DstMultipartUploadNotPermitted",
    "complete_multipart_upload": "DstMultipartCompleteNotPermitted",
}
"""S3's reasons of failed replication, by the operation that was denied; else DstPutObjectNotPermitted."""


UNVERSIONED = "DstBucketUnversioned"
"""S3's reason where a bucket gives a new object no version id."""


class ServiceAway(Unavailable):
    """The service as a whole cannot be used now: all deliveries to it wait."""


class ServiceBusy(ServiceAway):
    """The service wants fewer requests at once."""


class ServiceRefused(Failed):
    """The service refuses one delivery, or one bucket. words: its message."""

    def __init__(self, reason: str, words: str, where: str) -> None:
        super().__init__(reason, f"{where}: {words}")
        self.words = words

    @property
    def recorded(self) -> str:
        """The reason as the delivery's record has it: S3's reason for replication, and the service's words."""
        return self.words if self.words.startswith(f"{self.reason}:") else f"{self.reason} ({self.words})"


class NoSuchBucket(BucketMissing):
    """The service has no such bucket."""


class Absent(FsreplError):
    """The service has no such object, version or upload."""


def words_of(code: str, message: str) -> str:
    """The service's code and message, on one line. radosgw leaves out most messages."""
    text = " ".join(f"{code}: {message or 'the service says no more'}".split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _WORDS_MAX else text[: _WORDS_MAX - 3] + "..."


def stranger(region: str, said: str) -> ServiceAway:
    """The error for an answer that no S3 service gives, as where a network asks for a login."""
    words = words_of("it says", said)
    return ServiceAway(
        f"region {region}: the answer is not that of an S3 service, but of a proxy or another server ({words}): "
        "correct the endpoint or the proxy; it goes on by itself then"
    )


_TLS_TROUBLES = {
    ("wrong version number", "packet length too long", "record layer failure", "http request", "unknown protocol"): (
        "what answers there does not speak TLS", "correct the endpoint: its port, or http:// instead of https://"
    ),
    ("has expired", "not yet valid"): (
        "the certificate is not valid today", "renew it there, or set this machine's clock"
    ),
    ("hostname mismatch", "ip address mismatch", "doesn't match", "no alternative certificate subject name"): (
        "the certificate is for another name", "name the host in the endpoint as the certificate does"
    ),
}  # fmt: skip
"""The reasons why TLS is refused, by words of OpenSSL, each with what to do. Any other is an unknown authority."""


def tls_trouble(words: str) -> str:
    """Why there is no TLS with a service, and what to do. words: what the library said."""
    said = words.lower().replace("_", " ")
    for signs, (what, advice) in _TLS_TROUBLES.items():
        if any(sign in said for sign in signs):
            return f"{what} ({words}); {advice}"
    return f"the certificate is not trusted ({words}); AWS_CA_BUNDLE names a file with that of its authority"


def error_of(region: str, operation: str, code: str, message: str, status: int) -> FsreplError:
    """The error for an answer that is no success, of a region to an operation."""
    words = words_of(code, message)
    if code in _MENDED:
        return ServiceAway(f"region {region}: {_MENDED[code]} ({words}); it goes on by itself then")
    if status in _NOT_OF_S3 and code in ("", str(status)):
        return stranger(region, f"{status} {message}".strip())
    if status == 401:  # S3 itself says 403 with one of the codes above; R2, B2 and others have codes of their own
        return ServiceAway(f"region {region}: {_MENDED['InvalidSecurity']} ({words}); it goes on by itself then")
    if code == "NoSuchBucket":
        return NoSuchBucket(f"region {region}: {words}")
    if code in _BUSY or (status in (429, 503) and code not in _FAULTY):
        return ServiceBusy(f"region {region}: the service is busy ({words})")
    if code in _FAULTY or (status >= 500 and status not in (501, 507)):
        return ServiceAway(f"region {region}: the service is busy ({words})")
    if code in _FULL or status == 507:
        return ServiceAway(f"region {region} has no room left ({words}): make room there; it goes on by itself")
    if code in _CORRUPT:
        return Unavailable(f"region {region}: it arrived damaged, and is sent again ({words})")
    if code in _ABSENT or (status == 404 and code == "404"):
        return Absent(f"region {region}: {words}")
    if status == 403:
        reason = _DENIED.get(operation, "DstPutObjectNotPermitted")
        return ServiceRefused(reason, words, f"region {region}: {operation}")
    return ServiceRefused(code or str(status), words, f"region {region}: {operation}")
