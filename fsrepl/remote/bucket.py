"""A bucket of an S3 service: its objects, their versions and markers, and uploads in parts.

Each method is one request, or the pages of one list. See client.py for what they raise.
"""

from __future__ import annotations

import binascii
import contextlib
import hashlib
import uuid
from collections.abc import Iterator, Mapping
from io import RawIOBase
from typing import Any
from urllib.parse import quote, urlencode

from msgspec import Struct

from fsrepl.errors import Failed, FsreplError, Unavailable
from fsrepl.model.address import Address
from fsrepl.model.version import Versioning
from fsrepl.remote import form
from fsrepl.remote.client import Client
from fsrepl.remote.failures import UNVERSIONED, Absent, ServiceRefused, stranger

COPY_MAX_BYTES = 5 << 30
"""The most that one request may copy. Source: AWS, CopyObject."""
COPY_PART_BYTES = 1 << 30


_UNSUPPORTED = frozenset({"NotImplemented", "MethodNotAllowed", "UnsupportedOperation"})
"""Answers of a service that has no tags."""


class Sums(Struct, frozen=True):
    """The checksums of some content, which the service compares. md5 and sha256 as bytes."""

    md5: bytes
    sha256: bytes

    @property
    def params(self) -> dict[str, str]:
        return {"ContentMD5": _b64(self.md5), "ChecksumSHA256": _b64(self.sha256)}


def sums_of(data: bytes) -> Sums:
    return Sums(hashlib.md5(data, usedforsecurity=False).digest(), hashlib.sha256(data).digest())


def _b64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


class Listed(Struct, frozen=True):
    """A version or marker in a list. id: the service's. modified_s: seconds since the epoch."""

    name: str
    id: str
    latest: bool
    marker: bool
    size: int
    modified_s: float


class Head(Struct, frozen=True):
    """The properties of one version, without its content."""

    metadata: Mapping[str, str]
    size: int
    storage_class: str

    @property
    def identity(self) -> form.Identity | None:
        return form.identity_of(self.metadata)


class Part(Struct, frozen=True):
    """An uploaded part of an object."""

    number: int
    etag: str
    size: int
    sha256: str


class RemoteBucket:
    """One bucket of a service."""

    def __init__(self, client: Client, address: str) -> None:
        self.client, self.address = client, address
        self.name = Address.parse_bucket(address).name
        self.prefix = client.settings.prefix

    def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        return self.client.call(operation, Bucket=self.name, **params)

    # -- the bucket

    def versioning(self) -> Versioning:
        """The state of its versioning. Raises BucketMissing."""
        try:
            return Versioning(str(self._call("get_bucket_versioning").get("Status") or ""))
        except Failed as error:
            raise Unavailable(
                f"bucket {self.address}: whether versioning is Enabled there cannot be seen ({error}); "
                "permit s3:GetBucketVersioning; it goes on by itself then"
            ) from error

    def create(self) -> None:
        region = self.client.settings.signing_region
        where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        self._call("create_bucket", **where)

    def set_versioning(self, wanted: Versioning) -> Versioning:
        """Set the state of its versioning; the state as read back, since some services answer 200 without effect."""
        self._call("put_bucket_versioning", VersioningConfiguration={"Status": str(wanted)})
        return self.versioning()

    def is_empty(self) -> bool:
        found = self._call("list_object_versions", Prefix=self.prefix, MaxKeys=1)
        return not found.get("Versions") and not found.get("DeleteMarkers")

    def refuses_wrong_sums(self) -> bool:
        """Whether the service refuses content that does not match its MD5, or its SHA-256. Leaves no object."""
        name = f"{self.prefix}.fsrepl/probe-{uuid.uuid4().hex}"
        data, good, wrong = b"probe", sums_of(b"probe"), sums_of(b"wrong")
        for sums in (Sums(wrong.md5, good.sha256), Sums(good.md5, wrong.sha256)):
            try:
                made = self._call("put_object", Key=name, Body=data, **sums.params)
            except ServiceRefused as error:
                if error.reason.startswith("Dst"):
                    raise
                return True  # in words of its own
            except Unavailable as error:
                if type(error) is not Unavailable:
                    raise
                return True
            if version := made.get("VersionId"):
                self.remove(name, version)
        return False

    # -- objects

    def put(
        self, name: str, body: bytes | RawIOBase, size: int, sums: Sums, metadata: Mapping[str, str], *,
        tags: Mapping[str, str] | None = None, storage_class: str = "",
    ) -> str:  # fmt: skip
        """Make a version; the service's id of it. Raises ServiceRefused where it kept none."""
        params = {**sums.params, **_settings(metadata, tags or {}, storage_class)}
        answer = self._call("put_object", Key=name, Body=body, ContentLength=size, **params)
        if not answer.get("ETag"):  # which every service gives, whether or not it keeps versions
            raise stranger(self.client.region, "200 without an ETag")
        return self._id(answer)

    def _id(self, answer: Mapping[str, Any]) -> str:
        found = str(answer.get("VersionId") or "")
        if found in ("", "null"):
            words = "the bucket keeps no versions: its versioning is not Enabled"
            raise ServiceRefused(UNVERSIONED, words, f"bucket {self.address}")
        return found

    def put_marker(self, name: str) -> str:
        """Add a delete marker; its id. A service that adds none to a deleted key gives that of the marker there."""
        answer = self._call("delete_object", Key=name)
        if answer.get("VersionId") in (None, "", "null"):
            markers = [each for each in self.versions_of(name) if each.marker and each.latest]
            answer = {"VersionId": markers[0].id} if markers else {}
        return self._id(answer)

    def remove(self, name: str, version: str) -> None:
        """Remove one version or marker for good."""
        self._call("delete_object", Key=name, VersionId=version)

    def copy(
        self, name: str, version: str, metadata: Mapping[str, str], *, size: int, tags: Mapping[str, str],
        storage_class: str,
    ) -> str:  # fmt: skip
        """Make a version with the content of another one of the same name, and new metadata; its id."""
        if size > COPY_MAX_BYTES:
            return self._copy_in_parts(name, version, metadata, size, tags, storage_class)
        answer = self._call(
            "copy_object",
            Key=name,
            CopySource={"Bucket": self.name, "Key": name, "VersionId": version},
            MetadataDirective="REPLACE",
            TaggingDirective="REPLACE",
            **_settings(metadata, tags, storage_class),
        )
        if answer.get("VersionId"):
            return self._id(answer)
        # radosgw tells the id of a put and not that of a copy, which is current now, and copies no tags.
        newest = self._call("head_object", Key=name)
        made = self._id(newest if newest["Metadata"] == metadata else {})
        if tags:
            self.set_tags(name, made, tags)
        return made

    def _copy_in_parts(
        self, name: str, version: str, metadata: Mapping[str, str], size: int, tags: Mapping[str, str],
        storage_class: str,
    ) -> str:  # fmt: skip
        """A copy in parts, for an object that is larger than one request may copy."""
        upload = self.begin_upload(name, metadata, tags=tags, storage_class=storage_class)
        try:
            parts = []
            for number, start in enumerate(range(0, size, COPY_PART_BYTES), 1):
                end = min(start + COPY_PART_BYTES, size)
                answer = self._call(
                    "upload_part_copy", Key=name, UploadId=upload, PartNumber=number,
                    CopySource={"Bucket": self.name, "Key": name, "VersionId": version},
                    CopySourceRange=f"bytes={start}-{end - 1}",
                )["CopyPartResult"]  # fmt: skip
                parts.append(Part(number, answer["ETag"], end - start, answer.get("ChecksumSHA256") or ""))
            return self.end_upload(name, upload, parts)
        except BaseException:
            with contextlib.suppress(FsreplError):
                self.abort_upload(name, upload)
            raise

    def head(self, name: str, version: str) -> Head | None:
        """A version by the service's id; None where there is none."""
        try:
            found = self._call("head_object", Key=name, VersionId=version)
        except Absent:
            return None
        metadata = {str(n).lower(): str(v) for n, v in found.get("Metadata", {}).items()}
        return Head(metadata, int(found.get("ContentLength", 0)), str(found.get("StorageClass") or ""))

    def content(self, name: str, version: str = "") -> Iterator[bytes]:
        """The content of a version, or of the current one."""
        return self.client.content(Bucket=self.name, Key=name, **({"VersionId": version} if version else {}))

    def tags(self, name: str, version: str) -> dict[str, str]:
        """The tags of a version. They are asked for, since few services say with an object how many it has."""
        try:
            found = self._call("get_object_tagging", Key=name, VersionId=version)
        except Absent:
            return {}
        except ServiceRefused as error:
            if error.reason in _UNSUPPORTED:
                return {}
            raise
        return {str(tag["Key"]): str(tag["Value"]) for tag in found.get("TagSet", ())}

    def set_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Replace the tags of a version, in place."""
        if not tags:  # some services take no empty set
            self._call("delete_object_tagging", Key=name, VersionId=version)
            return
        tag_set = [{"Key": key, "Value": value} for key, value in tags.items()]
        self._call("put_object_tagging", Key=name, VersionId=version, Tagging={"TagSet": tag_set})

    # -- lists

    def versions_of(self, name: str) -> list[Listed]:
        """The versions of one name, newest first, and its markers."""
        found = []
        for each in self._versions(name):
            if each.name != name:
                break  # names in a list are sorted, and this one is the first of those that begin with it
            found.append(each)
        return found

    def all_versions(self) -> Iterator[Listed]:
        """All versions and markers, by name, without fsrepl's own objects."""
        return (each for each in self._versions(self.prefix) if not form.is_ours(each.name, self.prefix))

    def _versions(self, prefix: str) -> Iterator[Listed]:
        after: dict[str, str] = {}
        while True:
            page = self._call("list_object_versions", Prefix=prefix, **after)
            rows = [_listed(row, marker=False) for row in page.get("Versions", ())]
            rows += [_listed(row, marker=True) for row in page.get("DeleteMarkers", ())]
            yield from sorted(rows, key=lambda row: row.name.encode())
            if not page.get("IsTruncated"):
                return
            after = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page.get("NextVersionIdMarker", "")}
            after = {key: value for key, value in after.items() if value}

    # -- uploads in parts

    def begin_upload(
        self, name: str, metadata: Mapping[str, str], *, tags: Mapping[str, str], storage_class: str
    ) -> str:
        """Begin an upload in parts; its id."""
        answer = self._call(
            "create_multipart_upload", Key=name, ChecksumAlgorithm="SHA256",
            **_settings(metadata, tags, storage_class),
        )  # fmt: skip
        return str(answer["UploadId"])

    def parts(self, name: str, upload: str) -> dict[int, Part] | None:
        """The parts of an upload that have arrived, by number; None where there is no such upload."""
        found: dict[int, Part] = {}
        after: dict[str, int] = {}
        while True:
            try:
                page = self._call("list_parts", Key=name, UploadId=upload, **after)
            except Absent:
                return None
            for row in page.get("Parts", ()):
                part = Part(int(row["PartNumber"]), row["ETag"], int(row["Size"]), row.get("ChecksumSHA256") or "")
                found[part.number] = part
            if not page.get("IsTruncated"):
                return found
            after = {"PartNumberMarker": int(page["NextPartNumberMarker"])}

    def put_part(self, name: str, upload: str, number: int, body: RawIOBase, size: int, sums: Sums) -> Part:
        answer = self._call(
            "upload_part", Key=name, UploadId=upload, PartNumber=number, Body=body, ContentLength=size, **sums.params
        )
        return Part(number, answer["ETag"], size, answer.get("ChecksumSHA256") or "")

    def end_upload(self, name: str, upload: str, parts: list[Part]) -> str:
        """Make the parts a version; the service's id of it."""
        rows = [
            {"PartNumber": p.number, "ETag": p.etag, **({"ChecksumSHA256": p.sha256} if p.sha256 else {})}
            for p in parts
        ]
        return self._id(
            self._call("complete_multipart_upload", Key=name, UploadId=upload, MultipartUpload={"Parts": rows})
        )

    def abort_upload(self, name: str, upload: str) -> None:
        self._call("abort_multipart_upload", Key=name, UploadId=upload)


def _settings(metadata: Mapping[str, str], tags: Mapping[str, str], storage_class: str) -> dict[str, Any]:
    out: dict[str, Any] = {"Metadata": dict(metadata)}
    if content_type := form.content_type_of(metadata):
        out["ContentType"] = content_type
    if tags:
        out["Tagging"] = urlencode(list(tags.items()), quote_via=quote)  # radosgw takes a + as it is
    return out | ({"StorageClass": storage_class} if storage_class else {})


def _listed(row: Mapping[str, Any], *, marker: bool) -> Listed:
    return Listed(
        str(row["Key"]), str(row["VersionId"]), bool(row["IsLatest"]), marker, int(row.get("Size", 0)),
        row["LastModified"].timestamp(),
    )  # fmt: skip
