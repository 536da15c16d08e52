#!/usr/bin/env bash
# rclone 1.60.1 (Debian 12): `rclone copy --metadata` from directory to directory changes the names of user attributes
# to lower case, and loses those called user.mtime, user.mode and the like, on filesystems that tell cases apart.
#
# rclone turns attributes into S3's kind of metadata in between, also where there is no S3 on either side: names without
# `user.`, in lower case, in one space with its own `mtime`, `mode`, `uid`, `gid`, `btime`. So user.DOSATTRIB, which
# Samba writes, is user.dosattrib in the copy, where Samba does not find it; of user.Tag and user.tag one is left; and
# an attribute that has the name of one of rclone's own is dropped. The exit status is 0. Names of tags in S3 are told
# apart by case, so a tool that keeps tags as attributes is concerned above all.
#
# fsrepl puts attributes into the metadata of an S3 object as one base64 text, with the exact bytes of their names.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here, or no attributes.
# Unpacks the package into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
(cd "$home" && apt-get download rclone=1.60.1+dfsg-2+b5 >/dev/null 2>&1) || { echo "rclone 1.60.1+dfsg-2+b5 cannot be fetched here"; exit 77; }
dpkg -x "$home"/rclone_*.deb "$home/package"
"$home/package/usr/bin/rclone" version | sed -n 1p
mkdir "$home/source" "$home/copy"
python3 - "$home" <<'PY'
import os, subprocess, sys

home = sys.argv[1]
source, copy = f"{home}/source/file", f"{home}/copy/file"
with open(source, "w") as file:
    file.write("data")
try:
    for name in ("user.DOSATTRIB", "user.Tag", "user.tag", "user.mode", "user.other"):
        os.setxattr(source, name, name.encode())
except OSError:
    print("no user attributes in the temporary folder")
    sys.exit(77)
command = [f"{home}/package/usr/bin/rclone", "--config", "/dev/null", "copy", "--metadata", f"{home}/source", f"{home}/copy"]
code = subprocess.run(command).returncode
print("exit status", code)
print("attributes of the copy, expected:", sorted(os.listxattr(source)))
print("attributes of the copy, seen:    ", sorted(os.listxattr(copy)))
if code or sorted(os.listxattr(copy)) != ["user.dosattrib", "user.other", "user.tag"]:
    sys.exit("no longer as described: compare the names of the attributes")
PY
