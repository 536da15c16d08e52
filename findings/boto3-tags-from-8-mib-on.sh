#!/usr/bin/env bash
# boto3 1.44.8: `client.copy()` keeps the tags of an object below 8 MiB, and drops those of one of 8 MiB or more.
#
# Up to the threshold for multipart it is one CopyObject, which copies tags unless told otherwise. Above it is a
# multipart upload, whose object has what its requests say. This release makes up for the headers and the metadata of
# the source, and for the tags only where TaggingDirective is given. Given `Tagging` without a directive, it logs that
# the supplied tags will be ignored "and source tags will be preserved"; the large object has neither. So rules that
# choose by tag (what is replicated, what expires, who may read) lose hold of the large objects alone, and tests with
# small ones pass. With TaggingDirective=COPY both are right.
#
# fsrepl writes the tags of a version itself, at whatever size (remote/bucket.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Installs into a
# temporary folder, and removes that. No server is started.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m pip install -q --no-compile --target "$home/packages" boto3==1.44.8 botocore==1.44.8 s3transfer==0.19.3 moto==5.2.5 2>"$home/log" ||
    { echo "boto3 1.44.8, s3transfer 0.19.3 and moto 5.2.5 cannot be fetched here"; exit 77; }
unset "${!AWS_@}"
export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
PYTHONPATH="$home/packages" python3 - <<'PY'
import sys

import boto3
import moto
import s3transfer

print("boto3", boto3.__version__, "s3transfer", s3transfer.__version__)
WAYS = {
    "no arguments": {},
    "Tagging alone": {"Tagging": "class=new"},
    "TaggingDirective=COPY": {"TaggingDirective": "COPY"},
}
seen = {}
with moto.mock_aws():
    s3 = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="bucket")
    for size in (8 * 2**20 - 1, 8 * 2**20):
        s3.put_object(Bucket="bucket", Key="source", Body=bytes(size), Tagging="class=kept", CacheControl="no-store")
        for words, arguments in WAYS.items():
            s3.copy({"Bucket": "bucket", "Key": "source"}, "bucket", "copy", ExtraArgs=arguments)
            tags = s3.get_object_tagging(Bucket="bucket", Key="copy")["TagSet"]
            seen[size, words] = [f"{tag['Key']}={tag['Value']}" for tag in tags]
            headers = s3.head_object(Bucket="bucket", Key="copy").get("CacheControl")
            print(f"{size} bytes, {words}: expected ['class=kept'], seen {seen[size, words]}; Cache-Control {headers}")
kept = ["class=kept"]
if list(seen.values()) != [kept, kept, kept, [], [], kept]:
    sys.exit("no longer as described: compare the tags of copies below and above 8 MiB")
PY
