#!/usr/bin/env bash
# rclone 1.60.1 (Debian 12): `rclone copy` of a file whose time alone has changed takes Cache-Control,
# Content-Disposition, Content-Language and the storage class off the object, and says "There was nothing to transfer".
#
# S3 cannot change metadata in place: the object is copied onto itself, and what the request does not repeat is gone.
# rclone repeats the user metadata and the Content-Type. So a `touch` at the source, or a restored backup with other
# times, makes attachments open in the browser, lets caches keep what they must not, and moves content that is rarely
# read to the class for content that is often read, for each such file, with exit status 0.
#
# fsrepl also changes metadata by a copy, and gives tags and storage class again with each (remote/bucket.py, `copy`).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Installs into a
# temporary folder, and removes that. Starts moto 5.2.5 as the service, on a free port of this host only, and ends it.
set -euo pipefail
home=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$home"' EXIT
(cd "$home" && apt-get download rclone=1.60.1+dfsg-2+b5 >/dev/null 2>&1) || { echo "rclone 1.60.1+dfsg-2+b5 cannot be fetched here"; exit 77; }
dpkg -x "$home"/rclone_*.deb "$home/package"
python3 -m pip install -q --no-compile --target "$home/packages" 'moto[server]==5.2.5' botocore==1.43.106 2>"$home/log" ||
    { echo "moto 5.2.5 and botocore 1.43.106 cannot be fetched here"; exit 77; }
unset "${!AWS_@}"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$home/packages" AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
python3 -m moto.server -H 127.0.0.1 -p 0 >"$home/server" 2>&1 &
server=$!
for _ in {1..300}; do
    url=$(grep -o 'http://127.0.0.1:[0-9]*' "$home/server" | sed -n 1p || true)
    [ -z "$url" ] || break
    sleep 0.1
done
[ -n "$url" ] || { echo "moto does not start here"; exit 77; }
"$home/package/usr/bin/rclone" version | sed -n 1p
mkdir "$home/source"
echo data > "$home/source/file"
python3 - "$home" "$url" <<'PY'
import os, subprocess, sys

import botocore.session

home, url = sys.argv[1:]
s3 = botocore.session.get_session().create_client("s3", region_name="us-east-1", endpoint_url=url)
headers = {
    "CacheControl": "no-store", "ContentDisposition": "attachment", "ContentLanguage": "de", "ContentType": "text/css",
    "StorageClass": "STANDARD_IA",
}
s3.create_bucket(Bucket="bucket")
with open(f"{home}/source/file", "rb") as file:
    s3.put_object(Bucket="bucket", Key="file", Body=file, Metadata={"owner": "me"}, **headers)
remote = f":s3,provider=Other,env_auth=true,endpoint='{url}':bucket"
command = [f"{home}/package/usr/bin/rclone", "--config", "/dev/null", "copy", "-v", f"{home}/source", remote]
os.utime(f"{home}/source/file", (1_000_000_000, 1_000_000_000))
code = subprocess.run(command).returncode
head = s3.head_object(Bucket="bucket", Key="file")
seen = {name: head[name] for name in headers if name in head}
print("exit status", code, "user metadata", head["Metadata"])
print("headers, expected:", headers)
print("headers, seen:    ", seen)
if code or seen != {"ContentType": "text/css"} or head["Metadata"].get("owner") != "me":
    sys.exit("no longer as described: compare which headers are left")
PY
