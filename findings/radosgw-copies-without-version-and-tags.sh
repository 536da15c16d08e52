#!/usr/bin/env bash
# radosgw 16.2.15 (Debian 12): CopyObject into a versioned bucket makes a version, and tells neither its id nor keeps its tags.
#
# 1. S3 answers CopyObject with x-amz-version-id where the bucket keeps versions. radosgw does so for PutObject only. A client
#    that takes a missing id for "versioning is off" is wrong; the id is that of the current version, by HEAD.
# 2. With TaggingDirective REPLACE and a Tagging header the copy has no tags at all; PutObjectTagging sets them.
# 3. A space that the Tagging header spells as + (as forms do, and as S3 decodes it) becomes a + in the tag; %20 is a space.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched. Needs root and apt-get.
# Some 90 packages are unpacked into a temporary folder, which is removed; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
pids=()
trap 'kill -9 "${pids[@]}" 2>/dev/null; wait 2>/dev/null || true; rm -rf "$home"' EXIT
version=16.2.15+ds-0+deb12u2 root=$home/root lib=$home/root/usr/lib/x86_64-linux-gnu
mkdir -p "$home/archives/partial" "$root" "$home/mon" "$home/osd" "$home/run"
apt-get install -qq -y --no-install-recommends --download-only -o "Dir::Cache::archives=$home/archives" \
    "radosgw=$version" "ceph-mon=$version" "ceph-osd=$version" >/dev/null 2>&1 || { echo "radosgw $version cannot be fetched here"; exit 77; }
for package in "$home"/archives/*.deb; do dpkg -x "$package" "$root"; done
python3 -m venv "$home/venv"
"$home/venv/bin/python" -m pip install -q --disable-pip-version-check botocore==1.35.99
export PATH=$root/usr/bin:$root/usr/sbin:$PATH LD_LIBRARY_PATH=$lib:$lib/ceph PYTHONPATH=$root/usr/lib/python3/dist-packages

read -r port monitor < <(python3 -c 'import socket; s = [socket.create_server(("127.0.0.1", 0)) for _ in "ab"]; print(*(x.getsockname()[1] for x in s))')
fsid=$(python3 -c 'import uuid; print(uuid.uuid4())') store=$(python3 -c 'import uuid; print(uuid.uuid4())')
cat >"$home/ceph.conf" <<CONF
[global]
fsid = $fsid
keyring = $home/keyring
mon host = v2:127.0.0.1:$monitor
mon initial members = a
mon data = $home/mon
mon data avail crit = 0
auth allow insecure global id reclaim = false
osd data = $home/osd
osd objectstore = memstore
osd class dir = $lib/rados-classes
erasure code dir = $lib/ceph/erasure-code
plugin dir = $lib/ceph
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
run dir = $home/run
admin socket = $home/run/\$name.asok
log file = $home/run/\$name.log
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw run sync thread = false
CONF
conf=(-c "$home/ceph.conf")
create=-C
for name in mon. client.admin client.rgw osd.0; do
    ceph-authtool "$home/keyring" $create --gen-key -n "$name" --cap mon 'allow *' --cap osd 'allow *' >/dev/null
    create=
done
monmaptool "${conf[@]}" --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor]" "$home/monmap" >/dev/null
ceph-mon "${conf[@]}" -i a --mkfs --monmap "$home/monmap" --keyring "$home/keyring"
ceph-mon "${conf[@]}" -i a -f >/dev/null 2>&1 & pids+=($!)
ceph "${conf[@]}" osd new "$store" >/dev/null
ceph-osd "${conf[@]}" -i 0 --mkfs --osd-uuid "$store" >/dev/null 2>&1
ceph-osd "${conf[@]}" -i 0 -f >/dev/null 2>&1 & pids+=($!)
until ceph "${conf[@]}" osd stat | grep -q '1 up'; do sleep 0.5; done
radosgw-admin "${conf[@]}" -n client.rgw user create --uid=u --display-name=u --access-key=AKIATEST --secret-key=secret >/dev/null 2>&1
radosgw "${conf[@]}" -n client.rgw -f >/dev/null 2>&1 & pids+=($!)
until python3 -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$port', timeout=5)" 2>/dev/null; do sleep 0.5; done
radosgw --version
env -u LD_LIBRARY_PATH -u PYTHONPATH "$home/venv/bin/python" - "$port" <<'PY'
import sys

import botocore.session

print("botocore", botocore.__version__)
s3 = botocore.session.get_session().create_client(
    "s3", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{sys.argv[1]}",
    aws_access_key_id="AKIATEST", aws_secret_access_key="secret",
)
s3.create_bucket(Bucket="bucket")
s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})


def tags(version):
    return {tag["Key"]: tag["Value"] for tag in s3.get_object_tagging(Bucket="bucket", Key="k", VersionId=version).get("TagSet", ())}


put = s3.put_object(Bucket="bucket", Key="k", Body=b"data", Tagging="colour=light+blue&size=very%20big")
print("PutObject tells the version id:", "VersionId" in put, "; tags sent as light+blue and very%20big:", tags(put["VersionId"]))
copy = s3.copy_object(
    Bucket="bucket", Key="k", CopySource={"Bucket": "bucket", "Key": "k", "VersionId": put["VersionId"]},
    MetadataDirective="REPLACE", Metadata={"mode": "0600"}, TaggingDirective="REPLACE", Tagging="colour=red",
)
newest = s3.head_object(Bucket="bucket", Key="k")
print("CopyObject tells the version id:", "VersionId" in copy, "; it made another version:", newest["VersionId"] != put["VersionId"])
print("metadata of the copy:", newest["Metadata"], "; its tags, sent as colour=red:", tags(newest["VersionId"]))
as_described = (
    "VersionId" in put and tags(put["VersionId"]) == {"colour": "light+blue", "size": "very big"}
    and "VersionId" not in copy and newest["VersionId"] != put["VersionId"]
    and newest["Metadata"] == {"mode": "0600"} and tags(newest["VersionId"]) == {}
)
sys.exit(0 if as_described else 1)
PY
