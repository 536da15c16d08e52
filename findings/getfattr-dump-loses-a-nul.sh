#!/usr/bin/env bash
# attr 2.5.1 (Debian 12): `getfattr --dump` and `setfattr --restore` take the last NUL byte off a value.
#
# For each value getfattr decides whether it is text or goes as base64, and does not count a NUL at the end, for the
# sake of programs that store strings of C with it. A value that is text apart from that is then printed without it,
# though the format could say it (`\000`). Restored it is a byte shorter, and the value of a single NUL is empty. A NUL
# elsewhere makes it base64, which is right. So what counts bytes (a digest or flags that happen to be printable, a
# field of fixed width, a string of C) comes back other than it was, with exit status 0 of both. With `-e hex` and
# `-e base64` nothing is lost.
#
# fsrepl's own attributes are text without NUL, and it copies others byte by byte.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here, or no attributes.
# Unpacks the package into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
(cd "$home" && apt-get download attr=1:2.5.1-4 >/dev/null 2>&1) || { echo "attr 1:2.5.1-4 cannot be fetched here"; exit 77; }
dpkg -x "$home"/attr_*.deb "$home/package"
"$home/package/usr/bin/getfattr" --version
mkdir "$home/files"
python3 - "$home" <<'PY'
import os, subprocess, sys

home = sys.argv[1]
tools, file = f"{home}/package/usr/bin", "file"
os.chdir(f"{home}/files")
VALUES = {"user.text": b"a\n\"\\", "user.c-string": b"text\0", "user.flag": b"\0", "user.inside": b"a\0b", "user.two": b"ab\0\0"}


def values():
    return {name: os.getxattr(file, name) for name in VALUES}


with open(file, "w"):
    pass
seen = {}
for words in ((), ("-e", "hex"), ("-e", "base64")):
    try:
        for name, value in VALUES.items():
            os.setxattr(file, name, value)
    except OSError:
        print("no user attributes in the temporary folder")
        sys.exit(77)
    dump = subprocess.run([f"{tools}/getfattr", "--dump", *words, file], check=True, capture_output=True).stdout
    for name in VALUES:
        os.removexattr(file, name)
    subprocess.run([f"{tools}/setfattr", "--restore=-"], input=dump, check=True)
    other = {name: value for name, value in values().items() if value != VALUES[name]}
    seen[" ".join(words)] = other
    print(f"{' '.join(words) or 'by default'}, values that are not as they were: expected none, seen {other or 'none'}")
if seen != {"": {"user.c-string": b"text", "user.flag": b""}, "-e hex": {}, "-e base64": {}}:
    sys.exit("no longer as described: compare the values that come back from a dump")
PY
