"""Lifecycle configurations of a real client: the AWS CLI and botocore, against moto's service.

moto forgets NewerNoncurrentVersions; tests/s3/test_lifecycle_configuration.py has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.s3 import lifecycle
from tests.services import KEYS, Service
from tests.world import SOURCE, World

Json = dict[str, Any]
CONFIGURATIONS: dict[str, Json] = {
    "all actions": {
        "Rules": [
            {
                "ID": "archive", "Status": "Enabled", "Filter": {"Prefix": "scans/"},
                "Transitions": [
                    {"Days": 30, "StorageClass": "STANDARD_IA"}, {"Days": 90, "StorageClass": "GLACIER"},
                ],
                "NoncurrentVersionTransitions": [{"NoncurrentDays": 30, "StorageClass": "GLACIER"}],
                "NoncurrentVersionExpiration": {"NoncurrentDays": 365},
            },
            {
                "ID": "at a date", "Status": "Enabled", "Filter": {"Prefix": "old/"},
                "Transitions": [{"Date": "2030-01-01T00:00:00Z", "StorageClass": "GLACIER"}],
            },
            {
                "ID": "tidy", "Status": "Disabled", "Filter": {"Prefix": ""},
                "Expiration": {"ExpiredObjectDeleteMarker": True},
            },
            {
                "ID": "uploads", "Status": "Enabled", "Filter": {"Prefix": "tmp/"},
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
            },
        ]
    },
    "tags": {
        "Rules": [
            {
                "ID": "by tag", "Status": "Enabled", "Filter": {"Tag": {"Key": "keep", "Value": "no"}},
                "Expiration": {"Days": 7},
            },
            {
                "ID": "by both", "Status": "Enabled", "Expiration": {"Date": "2031-12-31T00:00:00Z"},
                "Filter": {
                    "And": {"Prefix": "logs/", "Tags": [{"Key": "a", "Value": "b"}, {"Key": "c", "Value": "d"}]}
                },
            },
        ]
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def rules(service: Service) -> None:
    service.make_bucket("aws/rules")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "world", replicate=False) as made:
        yield made


def aws(service: Service, *arguments: str) -> Json:
    """What the AWS CLI prints for a command of `s3api`."""
    environment = {
        **os.environ, **KEYS, "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }  # fmt: skip
    program = [sys.executable, "-m", "awscli", "--endpoint-url", service.url, "s3api", *arguments, "--bucket", "rules"]
    done = subprocess.run(program, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    printed: Json = json.loads(done.stdout or "{}")
    return printed


def got(world: World) -> Json:
    """What `fsrepl lifecycle get` prints."""
    with world.engine.site.bucket(SOURCE).open() as bucket:
        found = bucket.bucket.lifecycle
        assert found is not None
        return json.loads(json.dumps(dict(found.document)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_the_aws_cli_prints_is_taken_as_it_is_and_given_back_equal(
    service: Service, world: World, tmp_path: Path, name: str
) -> None:
    """`aws s3api get-bucket-lifecycle-configuration` to `fsrepl lifecycle put`, and `lifecycle get` to
    `put-bucket-lifecycle-configuration`: both say the same then."""
    (file := tmp_path / "rules.json").write_text(json.dumps(CONFIGURATIONS[name]))
    put = ("put-bucket-lifecycle-configuration", "--lifecycle-configuration", f"file://{file}")
    aws(service, *put)
    printed = aws(service, "get-bucket-lifecycle-configuration")
    world.run("lifecycle.put", bucket=SOURCE, document=printed)
    assert got(world) == printed
    given = got(world)
    smallest = given.pop("TransitionDefaultMinimumObjectSize")  # the client takes it as a parameter of its own
    file.write_text(json.dumps(given))
    aws(service, *put, "--transition-default-minimum-object-size", smallest)
    assert aws(service, "get-bucket-lifecycle-configuration") == printed


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_botocore_returns_has_the_same_rules(service: Service, name: str) -> None:
    """The rules read from the service's answer are those of the document that was put."""
    client = service.client()
    client.call("put_bucket_lifecycle_configuration", Bucket="rules", LifecycleConfiguration=CONFIGURATIONS[name])
    answer = client.call("get_bucket_lifecycle_configuration", Bucket="rules")
    answered = {key: value for key, value in answer.items() if key != "ResponseMetadata"}
    document = json.loads(json.dumps(answered, default=lambda value: value.isoformat()))
    assert lifecycle.read_lifecycle(document).rules == lifecycle.read_lifecycle(CONFIGURATIONS[name]).rules
