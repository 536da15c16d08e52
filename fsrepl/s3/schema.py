"""The form of S3's bucket settings, with the names of S3's own schema.

replication.py and lifecycle.py check what types cannot express. A field is optional unless Required; s3/conform.py
checks documents against these types.
"""

from __future__ import annotations

from typing import Annotated, Literal, Never, Required, TypedDict

EnabledOrDisabled = Literal["Enabled", "Disabled"]


class Switch(TypedDict, total=False):
    Status: Required[EnabledOrDisabled]


class Tag(TypedDict, total=False):
    Key: Required[str]
    Value: Required[str]


class And(TypedDict, total=False):
    Prefix: str
    Tags: list[Tag]


class Filter(TypedDict, total=False):
    Prefix: str
    Tag: Tag
    And: And


class SourceSelectionCriteria(TypedDict, total=False):
    ReplicaModifications: Switch
    SseKmsEncryptedObjects: Switch


class AccessControlTranslation(TypedDict, total=False):
    Owner: Required[Literal["Destination"]]


class EncryptionConfiguration(TypedDict, total=False):
    ReplicaKmsKeyID: str


class TimeValue(TypedDict, total=False):
    Minutes: Required[int]


class Metrics(TypedDict, total=False):
    Status: Required[EnabledOrDisabled]
    EventThreshold: TimeValue


class ReplicationTime(TypedDict, total=False):
    Status: Required[EnabledOrDisabled]
    Time: Required[TimeValue]


class Destination(TypedDict, total=False):
    Bucket: Required[str]
    Account: str
    StorageClass: str
    AccessControlTranslation: AccessControlTranslation
    EncryptionConfiguration: EncryptionConfiguration
    Metrics: Metrics
    ReplicationTime: ReplicationTime


class ReplicationRule(TypedDict, total=False):
    ID: str
    Priority: int
    Prefix: str
    Filter: Filter
    Status: Required[EnabledOrDisabled]
    SourceSelectionCriteria: SourceSelectionCriteria
    ExistingObjectReplication: Annotated[
        Never, "S3 has withdrawn it; `fsrepl replication backfill` sends what was there before"
    ]
    Destination: Required[Destination]
    DeleteMarkerReplication: Switch


class ReplicationConfiguration(TypedDict, total=False):
    Role: Required[str]
    Rules: Required[list[ReplicationRule]]


class VersioningConfiguration(TypedDict, total=False):
    Status: Literal["Enabled", "Suspended"]
    MFADelete: Literal["Disabled"]  # as `aws s3api` prints it; there is no MFA to enable


# -- lifecycle


class LifecycleAnd(TypedDict, total=False):
    Prefix: str
    Tags: list[Tag]
    ObjectSizeGreaterThan: int
    ObjectSizeLessThan: int


class LifecycleFilter(TypedDict, total=False):
    Prefix: str
    Tag: Tag
    ObjectSizeGreaterThan: int
    ObjectSizeLessThan: int
    And: LifecycleAnd


class Expiration(TypedDict, total=False):
    Date: str
    Days: int
    ExpiredObjectDeleteMarker: bool


class Transition(TypedDict, total=False):
    Date: str
    Days: int
    StorageClass: Required[str]


class NoncurrentVersionExpiration(TypedDict, total=False):
    NoncurrentDays: Required[int]
    NewerNoncurrentVersions: int


class NoncurrentVersionTransition(TypedDict, total=False):
    NoncurrentDays: Required[int]
    StorageClass: Required[str]
    NewerNoncurrentVersions: int


class AbortIncompleteMultipartUpload(TypedDict, total=False):
    DaysAfterInitiation: Required[int]


class LifecycleRule(TypedDict, total=False):
    Expiration: Expiration
    ID: str
    Prefix: str
    Filter: LifecycleFilter
    Status: Required[EnabledOrDisabled]
    Transitions: list[Transition]
    NoncurrentVersionTransitions: list[NoncurrentVersionTransition]
    NoncurrentVersionExpiration: NoncurrentVersionExpiration
    AbortIncompleteMultipartUpload: AbortIncompleteMultipartUpload


class LifecycleConfiguration(TypedDict, total=False):
    Rules: Required[list[LifecycleRule]]
    TransitionDefaultMinimumObjectSize: Literal["all_storage_classes_128K", "varies_by_storage_class"]
