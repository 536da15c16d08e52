#!/usr/bin/env bash
# moto 5.2.5: a replication rule and a lifecycle rule that choose a part of a bucket come back as rules for all of it.
#
# Of a replication rule's filter, `And` with a prefix and tags is dropped: read back, the rule has an empty prefix. Of a
# lifecycle rule's filter the sizes are dropped; a rule for large objects only has no filter then. Both are accepted
# with 200. Whoever changes one rule has to read, edit and put the whole document, so that against this service a tool
# that touches another rule sends everything to the destination, and expires everything: the opposite of what a lost
# field is expected to do. A test that compares only how many rules there are, or their ids, sees nothing.
#
# fsrepl keeps these documents itself (s3/replication.py, s3/lifecycle.py) and gives them back as they were put.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Installs into a
# temporary folder, and removes that. No server is started.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m pip install -q --no-compile --target "$home/packages" moto==5.2.5 botocore==1.43.106 2>"$home/log" ||
    { echo "moto 5.2.5 and botocore 1.43.106 cannot be fetched here"; exit 77; }
unset "${!AWS_@}"
export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
PYTHONPATH="$home/packages" python3 - <<'PY'
import sys

import botocore.session
import moto

print("moto", moto.__version__)
chosen = {"And": {"Prefix": "public/", "Tags": [{"Key": "class", "Value": "open"}]}}
large = {"ObjectSizeGreaterThan": 1_000_000_000}
with moto.mock_aws():
    s3 = botocore.session.get_session().create_client("s3", region_name="us-east-1")
    for bucket in ("source", "copies"):
        s3.create_bucket(Bucket=bucket)
        s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})

    rule = {
        "ID": "open", "Priority": 1, "Status": "Enabled", "Filter": chosen,
        "DeleteMarkerReplication": {"Status": "Disabled"}, "Destination": {"Bucket": "arn:aws:s3:::copies"},
    }
    role = "arn:aws:iam::123456789012:role/copier"
    s3.put_bucket_replication(Bucket="source", ReplicationConfiguration={"Role": role, "Rules": [rule]})
    replicated = s3.get_bucket_replication(Bucket="source")["ReplicationConfiguration"]["Rules"][0]["Filter"]
    print("replication, expected:", chosen)
    print("replication, seen:    ", replicated)

    rule = {"ID": "large", "Status": "Enabled", "Filter": large, "Expiration": {"Days": 30}}
    s3.put_bucket_lifecycle_configuration(Bucket="source", LifecycleConfiguration={"Rules": [rule]})
    expired = s3.get_bucket_lifecycle_configuration(Bucket="source")["Rules"][0]["Filter"]
    print("lifecycle, expected:", large)
    print("lifecycle, seen:    ", expired)
if (replicated, expired) != ({"Prefix": ""}, {}):
    sys.exit("no longer as described: compare the filters that are read back")
PY
