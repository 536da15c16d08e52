"""Commands about regions that are S3 services."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fsrepl import settings
from fsrepl.commands import doctor, doctor_facts, services, sites, status, why
from fsrepl.commands import replication as replications
from fsrepl.commands.documents import buckets, regions
from fsrepl.errors import Refused, Usage
from fsrepl.model.address import Address
from fsrepl.model.version import Status, Versioning
from fsrepl.remote import client
from fsrepl.remote.bucket import RemoteBucket
from fsrepl.settings import reading
from fsrepl.settings.kinds import Credentials
from fsrepl.storage import listing
from fsrepl.storage.fs import Fs
from fsrepl.storage.site import Site
from tests.services import KEYS, THERE, RemoteWorld, Service, current
from tests.waiting import until
from tests.world import SOURCE

HEAD = '[regions.east]\npath = "east"\n[regions.aws]\n'


def parse(lines: str) -> settings.EndpointSettings:
    return reading.parse(HEAD + lines, Path("/site/fsrepl.toml")).endpoints["aws"]


# -- settings


def test_a_region_may_be_a_service() -> None:
    """an endpoint, and never keys in the file; the path of credentials is relative to it."""
    found = parse('endpoint = "https://s3.eu-west-1.amazonaws.com/"\ns3_region = "eu-west-1"\nprefix = "host7/"')
    assert (found.url, found.s3_region, found.prefix) == ("https://s3.eu-west-1.amazonaws.com", "eu-west-1", "host7/")
    assert (found.credentials, found.checksums, found.puts) == (Credentials("env"), "auto", 64)
    kept = parse('endpoint = "http://nas:9000"\ncredentials = "file:keys/nas"')
    assert kept.credentials == Credentials("file", "/site/keys/nas")


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3-eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://s3.dualstack.ap-south-1.amazonaws.com", "ap-south-1"),
        ("https://s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://bucket.vpce-1a2b-3c.s3.us-east-2.vpce.amazonaws.com", "us-east-2"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://s3.eu-west-1.amazonaws.com.example.org", "us-east-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
    ],
)
def test_the_region_in_an_address_is_the_one_that_is_signed_for(url: str, region: str) -> None:
    """`region add NAME=URL` is enough for a bucket to be made in that region; a setting comes first."""
    assert parse(f'endpoint = "{url}"').signing_region == region
    assert parse(f'endpoint = "{url}"\ns3_region = "eu"').signing_region == "eu"


def test_a_bucket_is_made_in_the_region_of_its_address(tmp_path: Path, service: Service) -> None:
    """AWS refuses one that is asked for without that region, or signed for another one."""
    with RemoteWorld(tmp_path, service, lines='s3_region = "eu-west-1"\n', replicate=False) as world:
        world.run("bucket.create", bucket=THERE, versioning=True)
        found = service.client().call("get_bucket_location", Bucket=THERE.partition("/")[2])
        assert found["LocationConstraint"] == "eu-west-1"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('endpoint = "s3.example.org"', r"line 4: \[regions.aws\] endpoint must be the address of an S3 service"),
        ('endpoint = "https://s3.example.org/bucket"', "endpoint must be the address of an S3 service"),
        ('endpoint = "https://key:secret@s3.example.org"', "endpoint must be the address of an S3 service"),
        ('endpoint = "http://nas"\ncredentials = "AKIA123:secret"', "keys themselves do not belong in this file"),
        ('endpoint = "http://nas"\nprefix = "host7"', 'prefix must be a path of at most 256 bytes that ends in a "/"'),
        ('endpoint = "http://nas"\npath = "aws"', r'line 5: \[regions.aws\] has no setting "path"'),
        ('endpoint = "http://nas"\nsharing = "link"', r'line 5: \[regions.aws\] has no setting "sharing"'),
        ('s3_region = "eu-west-1"', r"\[regions.aws\] needs a endpoint"),
        ('endpoint = "http://nas"\nputs = 0', "puts must be a whole number from 1 to 1,024"),
    ],
)
def test_mistakes_are_said_with_their_line(lines: str, message: str) -> None:
    """Settings: the file, the line and a valid value."""
    with pytest.raises(Usage, match=message):
        parse(lines)


@pytest.mark.parametrize(
    "line", ['endpoint = "http://x"\ncredentials = "AKIA:hush"', 'endpoint = "https://user:hush@example.org"']
)
def test_a_key_in_the_wrong_place_is_not_repeated(line: str) -> None:
    """SECURITY: what is wrong with the settings goes to the log, which others may read."""
    with pytest.raises(Usage, match=r"line \d: \[regions.aws\] (credentials|endpoint) must be ") as refused:
        parse(line)
    assert "hush" not in str(refused.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore is an extra; without it the daemon and `check` say what to install."""
    monkeypatch.setitem(__import__("sys").modules, "botocore.session", None)
    with pytest.raises(Usage, match=r"pip install 'fsrepl\[s3\]' brings it"):
        client.check_installed("aws")


def test_credentials_in_a_file(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """a file that others may read is refused; one that is the daemon's own is used, and nothing else."""
    for name in KEYS:
        monkeypatch.delenv(name)
    path = tmp_path / "keys"
    path.write_text("[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = secret\n")
    path.chmod(0o644)
    found = replace(service.client().settings, credentials=Credentials("file", str(path)))
    with pytest.raises(Exception, match=f"others may read its credentials: `chmod 600 {path}`"):
        client.Client(found).call("list_buckets")
    path.chmod(0o600)
    assert "Buckets" in client.Client(found).call("list_buckets")


def test_missing_credentials_are_an_outage(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """what concerns all deliveries is no failure of one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in KEYS:
        monkeypatch.delenv(name)
    with pytest.raises(Exception, match="there are no credentials in the environment"):
        service.client().call("list_buckets")


# -- what is shown


def test_regions_and_buckets_are_shown(tmp_path: Path, service: Service) -> None:
    """`region ls`, `bucket ls`, `status` and `doctor` know them."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        world.write("k", b"data")
        world.settle()
        (found,) = services.look(world.engine.site)
        assert regions.of_service(found) == {
            "Name": "aws", "Path": service.url, "Online": True, "Buckets": ["copies"], "UUID": None,
        }  # fmt: skip
        (bucket,) = found["buckets"]
        assert buckets.of_service(bucket)["Versioning"] == "Enabled"
        said = {"running": True, "buckets": {THERE: world.engine.receivers["aws"].states[THERE].describe()}}  # type: ignore[attr-defined]
        rows = {row["bucket"]: row for row in status.status(world.engine.site, said)["buckets"]}
        assert (rows[THERE]["online"], rows[THERE]["objects"], rows[THERE]["bytes"]) == (True, 1, 4)
        assert rows[SOURCE].keys() - rows[THERE].keys() == {"scrub"}
        (rule,) = rows[SOURCE]["rules"]
        assert (rule["destination"], rule["completed"]) == (THERE, 1)
        facts = doctor_facts.facts(world.engine.site, {"running": False}, None)
        lines = [f.what for f in doctor.findings(facts) if f.where in ("aws", THERE)]
        assert lines == [
            f"{service.url} answers, and accepts the credentials", f"{service.url}/copies/, versioning Enabled",
        ]  # fmt: skip


@pytest.mark.parametrize("has", [None, "PycURL/7.45.2 libcurl/7.88.1"])
def test_the_doctor_says_that_libcurl_is_lacking(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch, has: str | None
) -> None:
    """Without the extra, or with Debian's pycurl: small objects cost more, which is no fault. Said once for all."""
    service.make_bucket()
    there = has and types.SimpleNamespace(version_info=lambda: (9, has.rpartition("/")[2]))
    monkeypatch.setitem(sys.modules, "pycurl", there)
    other = f'[regions.b2]\nendpoint = "{service.url}"\n'
    with RemoteWorld(tmp_path, service, lines=other) as world:
        world.write("k", b"data")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        found = doctor.findings(doctor_facts.facts(world.engine.site, {"running": False}, None))
        (finding,) = [each.document() for each in found if "botocore" in each.what]
        assert (finding["Level"], finding["Area"], finding["Where"]) == ("warning", "region", "aws, b2")
        assert ("7.88.1, and needs 8.9" if has else "pycurl cannot be loaded") in finding["What"]
        assert "pip install" in finding["Do"]
        assert not [each for each in found if each.level is doctor.Level.ERROR]


def test_objects_are_listed_where_they_are_replicated_from(tmp_path: Path, service: Service) -> None:
    """`ls` of the bucket that takes replicas says where to look; of a bucket that is none, that there is none."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        site = Site(world.settings, Fs())  # as a command opens it: no document is read yet
        for address, code in ((THERE, "InvalidRequest"), ("aws/nothere", "NoSuchBucket")):
            with pytest.raises(Refused, match=THERE.partition("/")[2]) as refused:
                listing.open_bucket(site, address)
            assert refused.value.code == code


def test_a_command_without_a_daemon_knows_the_destinations_there(tmp_path: Path, service: Service) -> None:
    """`region ls`, `bucket ls`, `doctor`: which buckets there take replicas is in the documents of their sources."""
    service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        (found,) = services.look(Site(world.settings, Fs()))
        assert [each["address"] for each in found["buckets"]] == [THERE]
        assert Site(world.settings, Fs()).sources_of(THERE) == [SOURCE]
        rows = {row["bucket"]: row for row in status.status(Site(world.settings, Fs()), {"running": False})["buckets"]}
        assert (rows[THERE]["seen"], rows[THERE]["versioning"]) == (False, "")  # nobody has asked for it


def test_versioning_there_is_shown(tmp_path: Path, service: Service) -> None:
    """`versioning show`: as the daemon sees it, whose credentials count, or as the service says now."""
    bucket = service.make_bucket(versioning=False)
    with RemoteWorld(tmp_path, service, replicate=False) as world:
        site = Site(world.settings, Fs())
        assert buckets.versioning_there(site, THERE, services.look(site)) == {}
        bucket.set_versioning(Versioning.ENABLED)
        assert buckets.versioning_there(site, THERE, []) == {"Status": "Enabled"}
        with pytest.raises(Refused, match="NoSuchBucket: there is no bucket aws/nothere at http"):
            buckets.versioning_there(site, "aws/nothere", [])
        world.run("replication.enable", source=SOURCE, destination=THERE)
        known = services.look(Site(world.settings, Fs()))
        world.run("versioning.set", bucket=THERE, status="Suspended")
        assert buckets.versioning_there(site, THERE, known) == {"Status": "Enabled"}  # nobody was asked again


def test_a_service_is_asked_for_its_buckets_only_where_they_are_offered(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that is as it should be needs no list of the others, which may be long, or not permitted."""
    service.make_bucket()
    call, asked = client.Client.call, list[str]()

    def counted(self: client.Client, operation: str, **params: Any) -> Any:
        asked.append(operation)
        return call(self, operation, **params)

    with RemoteWorld(tmp_path, service, replicate=False) as world:
        monkeypatch.setattr(client.Client, "call", counted)
        world.run("replication.enable", source=SOURCE, destination=THERE)
        assert "list_buckets" not in asked
        assert world.refused("replication.enable", source=SOURCE, destination=SOURCE, add=True) == "InvalidRequest"
        assert "list_buckets" in asked


@pytest.mark.parametrize("gone", ["bucket", "service"])
def test_what_is_missing_is_shown(tmp_path: Path, gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """with what to do."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with Service(tmp_path / "log") as service:
        bucket = service.make_bucket()
        with RemoteWorld(tmp_path / "site", service) as world:
            if gone == "bucket":
                bucket.client.call("delete_bucket", Bucket=bucket.name)
            else:
                service.stop()
            (found,) = services.look(world.engine.site)
            facts = doctor_facts.facts(world.engine.site, {"running": False}, None)
            (finding,) = [f for f in doctor.findings(facts) if f.where in ("aws", THERE) and f.level == "error"]
            if gone == "bucket":
                assert found["buckets"][0]["trouble"].startswith("NoSuchBucket: the bucket aws/copies does not exist; ")
                assert finding.do == f"`fsrepl bucket create {THERE} --versioning`; then `fsrepl retry --all`"
            else:
                assert f"{service.url} cannot be reached" in found["trouble"]
                assert "Connection refused" in found["trouble"]
                assert "cannot be reached" in finding.what


def test_why_says_what_a_delivery_waits_for(tmp_path: Path, service: Service) -> None:
    """`why` names the service's words, and helps with what they mean."""
    bucket = service.make_bucket()
    with RemoteWorld(tmp_path, service) as world:
        bucket.client.call("delete_bucket", Bucket=bucket.name)
        world.write("k", b"data")
        world.settle()
        said: dict[str, Any] = {"running": False}
        answer = why.why(world.engine.site, Address.parse(f"{SOURCE}/k"), None, said)
        text = "\n".join(answer.sentences)
        assert "FAILED to aws/copies" in text
        assert "DstBucketNotFound" in text


# -- what is changed


def test_a_bucket_is_made_there_and_keeps_versions(tmp_path: Path, service: Service) -> None:
    """`bucket create`, `versioning enable`, `suspend`; the state is read back. S3 lets a destination be suspended."""
    with RemoteWorld(tmp_path, service, replicate=False) as world:
        world.run("bucket.create", bucket=THERE, versioning=False)
        bucket = RemoteBucket(service.client(), THERE)
        assert bucket.versioning() is Versioning.OFF
        assert replications.candidates(world.engine.site, Address.parse_bucket(SOURCE)) == []
        world.run("versioning.set", bucket=THERE, status="Enabled")
        assert bucket.versioning() is Versioning.ENABLED
        assert replications.candidates(world.engine.site, Address.parse_bucket(SOURCE)) == [THERE]
        world.run("replication.enable", source=SOURCE, destination=THERE)
        suspended = world.run("versioning.set", bucket=THERE, status="Suspended")
        assert suspended == {"Bucket": THERE, "Status": "Suspended", "ReplicatedFrom": [SOURCE]}
        assert bucket.versioning() is Versioning.SUSPENDED
        assert world.refused("versioning.set", bucket="aws/nothere", status="Enabled") == "NoSuchBucket"
        assert world.refused("bucket.create", bucket="aws/A", versioning=True) == "InvalidBucketName"


def test_versioning_without_effect_is_refused(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """some services answer 200 to PutBucketVersioning, and keep no versions."""
    service.make_bucket(versioning=False)
    with RemoteWorld(tmp_path, service, replicate=False) as world:
        call = client.Client.call
        monkeypatch.setattr(
            client.Client, "call",
            lambda self, op, **params: {} if op == "put_bucket_versioning" else call(self, op, **params),
        )  # fmt: skip
        with pytest.raises(Refused, match=r"NotImplemented: .* the service does not support it"):
            world.run("versioning.set", bucket=THERE, status="Enabled")


@pytest.mark.parametrize(
    ("operation", "params"),
    [
        ("object.rm", {"bucket": THERE, "key": b"k"}),
        ("bucket.rm", {"bucket": THERE}),
        ("replication.enable", {"source": THERE, "destination": SOURCE}),
    ],
)
def test_what_only_a_bucket_here_can_do_is_refused(
    tmp_path: Path, service: Service, operation: str, params: dict[str, object]
) -> None:
    """a destination only."""
    service.make_bucket()
    with (
        RemoteWorld(tmp_path, service) as world,
        pytest.raises(Refused, match=r"is a bucket of the S3 service .* name the bucket that is replicated to it"),
    ):
        world.run(operation, **params)


def test_a_service_is_added_and_forgotten(tmp_path: Path, service: Service) -> None:
    """`region add NAME=URL`; the file keeps everything else, and a running engine follows."""
    service.make_bucket("nas/copies")
    with RemoteWorld(tmp_path, service) as world:
        service.make_bucket()
        answer = world.run("region.add", name="nas", path=service.url)
        assert (answer["Path"], answer["Trouble"]) == (service.url, "")
        assert world.engine.settings.endpoints["nas"].url == service.url
        world.run("replication.enable", source=SOURCE, destination="nas/copies", replace=True)
        world.write("k", b"data")
        world.settle()
        assert world.statuses() == {Status.COMPLETED}
        with pytest.raises(Usage, match="region nas is at"):
            world.run("region.add", name="nas", path=service.url)
        world.run("region.forget", name="nas")
        assert "nas" not in world.engine.receivers
        assert "nas" not in (world.settings.path.read_text())


def test_a_site_begins_with_directories(tmp_path: Path) -> None:
    """A service is added afterwards; its address is not taken for a path."""
    with pytest.raises(Usage, match=r"make the site first, then `fsrepl region add aws=https://s3\.example\.org`"):
        sites.init(tmp_path / "site", {"east": None, "aws": "https://s3.example.org"})
    assert not (tmp_path / "site").exists()


# -- a service that hangs


def test_a_service_that_hangs_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G7: the request ends, and the delivery is made once the service goes on."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    with Service(tmp_path / "log") as service:
        bucket = service.make_bucket()
        monkeypatch.setattr(client, "_READ_S", 0.5)  # for the site's requests
        with RemoteWorld(tmp_path / "site", service) as world:
            world.write("k", b"one")
            world.settle()
            service.hang()
            world.write("k", b"two")
            world.settle()
            assert Status.PENDING in world.statuses()
            (queue,) = world.engine.receivers["aws"].queues.values()
            assert "cannot be reached (ReadTimeoutError" in queue.blocked_why
            service.go_on()
            until(lambda: current(bucket), lambda: "the service goes on")
            world.settle()
            assert world.statuses() == {Status.COMPLETED}
            assert current(bucket) == {"k": b"two"}
            assert sum(not row.marker for row in bucket.all_versions()) == 2
