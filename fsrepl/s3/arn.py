"""Names of buckets, regions and roles, and their ARNs in S3's documents. Pure.

A bucket's address is REGION/BUCKET. Its ARN here names the region, arn:aws:s3:REGION::BUCKET. S3's own ARN,
arn:aws:s3:::BUCKET, has no region, because bucket names are unique there. Source: design.md, sections 4 and 5.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from fsrepl.errors import Refused
from fsrepl.model.address import Address
from fsrepl.s3.conform import quoted
from fsrepl.settings import REGION_NAME

ACCOUNT = "000000000000"
"""The account of every user and bucket in a site."""

_BUCKET_NAME_RULES = {
    r".{3,63}": "it must have 3 to 63 characters",
    r"[a-z0-9.-]*": "it may have lower-case letters, digits, dots and hyphens, and nothing else",
    r"[a-z0-9].*[a-z0-9]": "it must begin and end with a letter or a digit",
    r"(?!.*\.\.).*": "it must not have two dots side by side",
    r"(?!.*(\.-|-\.)).*": "each part between dots must begin and end with a letter or a digit",
    r"(?!\d+(\.\d+){3}$).*": "it must not look like an IP address",
    r"(?!xn--|sthree-|amzn-s3-demo-).*": "xn--, sthree- and amzn-s3-demo- are reserved at its beginning",
    r".*(?<!-s3alias)(?<!--ol-s3)(?<!\.mrap)(?<!--x-s3)(?<!--table-s3)": (
        "-s3alias, --ol-s3, .mrap, --x-s3 and --table-s3 are reserved at its end"
    ),
}
_ROLE_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{1,64}")
_BUCKET_ARN = re.compile(rf"arn:aws[a-z-]*:s3:({REGION_NAME.pattern})?::([a-z0-9.-]{{3,63}})")
_ROLE_ARN = re.compile(rf"arn:aws[a-z-]*:iam::[0-9]{{12}}:role/(?:[!-~]*/)?({_ROLE_NAME.pattern})")


def check_bucket_name(name: str) -> None:
    """Check a bucket's name. Raises Refused(InvalidBucketName), with the broken rule.

    Source: S3 User Guide, bucket naming rules.
    """
    for pattern, rule in _BUCKET_NAME_RULES.items():
        if not re.fullmatch(pattern, name, re.DOTALL):
            raise Refused("InvalidBucketName", f"{quoted(name)} cannot name a bucket: {rule}")


def check_role_name(name: str) -> None:
    """Check a role's name. Raises Refused(ValidationError), which is IAM's code. Source: s3-semantics, 6.2."""
    if not _ROLE_NAME.fullmatch(name):
        raise Refused("ValidationError", f"{quoted(name)} cannot name a role: 1 to 64 of A-Z a-z 0-9 _ + = , . @ -")


def bucket_arn(address: str, *, aws: bool = False) -> str:
    """The ARN of a bucket; with aws, in the form S3 accepts, without the region. Raises Usage."""
    named = Address.parse_bucket(address)
    return f"arn:aws:s3:{'' if aws else named.region}::{named.name}"


def parse_bucket_arn(text: str, resolve: Callable[[str], list[str]], of: str = "") -> str:
    """The address in a bucket's ARN.

    resolve: returns the addresses of all buckets with a name. of: the owner of the ARN, for messages.

    Raises Refused: InvalidArgument for text that is no bucket ARN or may mean several buckets, InvalidRequest where
    only the name is given and no region has it. Source: s3-semantics, 1.4.
    """
    where = f"{of}: " if of else ""
    match = _BUCKET_ARN.fullmatch(text)
    if not match:
        raise Refused("InvalidArgument", f"{where}Invalid bucket ARN {quoted(text)}; write arn:aws:s3:REGION::BUCKET")
    region, bucket = match.groups()
    if region:
        return f"{region}/{bucket}"
    found = resolve(bucket)
    if not found:
        raise Refused(
            "InvalidRequest",
            f"{where}Destination bucket must exist: no region has a bucket {bucket}; create it with versioning",
        )
    if len(found) > 1:
        ways = " or ".join(map(bucket_arn, found))
        raise Refused("InvalidArgument", f"{where}{text} may be {' or '.join(found)}; name the region: {ways}")
    return found[0]


def role_arn(name: str) -> str:
    """The ARN of a role of this site."""
    return f"arn:aws:iam::{ACCOUNT}:role/service-role/{name}"


def parse_role_arn(text: str) -> str:
    """The name in a role's ARN; the other parts do not count. Raises Refused(InvalidArgument)."""
    match = _ROLE_ARN.fullmatch(text)
    if not match:
        raise Refused(
            "InvalidArgument",
            f"Invalid Role specified in replication configuration: {quoted(text)}; write {role_arn('NAME')}",
        )
    return match[1]
