#!/usr/bin/env bash
# moto 5.2.5 with botocore 1.43.106: the list of versions names another key than the object has, where the key has a
# carriage return. macOS makes such files: a folder with an icon of its own has one called `Icon` + carriage return.
#
# A parser of XML turns a carriage return into a line feed. S3 has `encoding-type=url` against that; botocore asks for
# it unasked and decodes the answer. moto obeys in ListObjectsV2 and not in ListObjectVersions, and botocore says
# nothing where an answer is not encoded. So both lists succeed, and disagree. A tool that goes by the list of versions
# finds that the object is missing, and that there is one which nobody made; when it reads or removes the latter, it is
# not there.
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

print("moto", moto.__version__, "botocore", botocore.__version__)
key = "Icon\r"
with moto.mock_aws():
    s3 = botocore.session.get_session().create_client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="bucket")
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket="bucket", Key=key, Body=b"picture")
    objects = [each["Key"] for each in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    versions = [each["Key"] for each in s3.list_object_versions(Bucket="bucket")["Versions"]]
print(f"ListObjectsV2: expected {[key]}, seen {objects}")
print(f"ListObjectVersions: expected {[key]}, seen {versions}")
if (objects, versions) != (["Icon\r"], ["Icon\n"]):
    sys.exit("no longer as described: compare the keys that the two lists give")
PY
