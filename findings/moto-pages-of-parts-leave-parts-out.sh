#!/usr/bin/env bash
# moto 5.2.5: ListParts, read page by page, leaves parts out where the numbers of the parts have gaps.
#
# `PartNumberMarker` is a part number: the next page begins with the first part above it. moto takes it for a number of
# parts to pass over. Both are the same while parts 1, 2, 3 ... have arrived in order, as in most tests. After an upload
# by several threads was cut off there are gaps, and the pages then lack parts that are there, without an error. A tool
# that resumes sends them again; one that ends the upload with the parts that were listed makes an object without a
# piece of its content.
#
# fsrepl compares by part number, sends each part that was not listed, and ends an upload with all parts of the content
# (replicate/upload.py), so that a short list costs time only.
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
    upload = {"Bucket": "bucket", "Key": "film"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]

    def listed(page_size):
        pages = s3.get_paginator("list_parts").paginate(**upload, PaginationConfig={"PageSize": page_size})
        return [part["PartNumber"] for page in pages for part in page.get("Parts", [])]

    sent = [1, 3, 5, 7]
    for number in sent:
        s3.upload_part(**upload, PartNumber=number, Body=b"data")
    print("parts that were sent:", sent)
    whole, paged = listed(1000), listed(2)
    print(f"all in one page: expected {sent}, seen {whole}")
    print(f"two in a page: expected {sent}, seen {paged}")
if (whole, paged) != ([1, 3, 5, 7], [1, 3, 7]):
    sys.exit("no longer as described: pages of parts are another")
PY
