#!/usr/bin/env bash
# moto 5.2.5: in a bucket whose versioning is Suspended, the next PUT of a key removes all versions that it had, and a
# DELETE leaves neither them nor a marker.
#
# Suspending promises the opposite: what was kept so far stays, and only the version `null` is replaced, by content or
# by a marker. Tests of a tool that suspends versioning, or that meets a suspended bucket, therefore run without the
# very versions that the tool must not lose: one that removes them by mistake passes, one that counts on them fails.
#
# fsrepl sends nothing to a bucket of a service whose versioning is not Enabled.
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
with moto.mock_aws():
    s3 = botocore.session.get_session().create_client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="bucket")

    def versioning(status):
        s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": status})

    def kept():
        """The number of versions that have an id, of versions `null`, and of markers."""
        found = s3.list_object_versions(Bucket="bucket")
        nulls = [each["VersionId"] == "null" for each in found.get("Versions", [])]
        return nulls.count(False), nulls.count(True), len(found.get("DeleteMarkers", []))

    versioning("Enabled")
    s3.put_object(Bucket="bucket", Key="report", Body=b"one")
    s3.put_object(Bucket="bucket", Key="report", Body=b"two")
    versioning("Suspended")
    print("suspended, nothing written since:", kept())
    s3.put_object(Bucket="bucket", Key="report", Body=b"three")
    after_put = kept()
    print("after a PUT: expected (2, 1, 0), seen", after_put)
    s3.delete_object(Bucket="bucket", Key="report")
    after_delete = kept()
    print("after a DELETE: expected (2, 0, 1), seen", after_delete)
if (after_put, after_delete) != ((0, 1, 0), (0, 0, 0)):
    sys.exit("no longer as described: read again what a suspended bucket keeps")
PY
