#!/usr/bin/env bash
# restic 0.14.0 (Debian 12): where the target of a symlink or the name of an attribute is not UTF-8, restic stores
# another one. The restored link leads nowhere, and of two attributes one is left.
#
# Names on Linux are bytes; folders from before UTF-8 have them in Latin-1. restic quotes the names of files, and these
# come back right. Targets and attributes' names go into JSON as they are, where each byte that is not UTF-8 becomes
# U+FFFD. So the link names a file that does not exist, two attributes whose names differ in such a byte have one name,
# and the bytes are in no snapshot. backup, restore and check exit with 0 and say nothing. Later releases store the
# target's bytes beside it; snapshots made with this one stay as they are.
#
# fsrepl keeps targets and names as bytes (tests/views/test_links.py, model/attributes.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here, or no attributes.
# Unpacks the package into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
(cd "$home" && apt-get download restic=0.14.0-1+b5 >/dev/null 2>&1) || { echo "restic 0.14.0-1+b5 cannot be fetched here"; exit 77; }
dpkg -x "$home"/restic_*.deb "$home/package"
unset "${!RESTIC_@}"
export RESTIC_PASSWORD=any RESTIC_REPOSITORY="$home/repository" RESTIC_CACHE_DIR="$home/cache"
"$home/package/usr/bin/restic" version
mkdir "$home/source" "$home/copy"
python3 - "$home" <<'PY'
import os, subprocess, sys

home = os.fsencode(sys.argv[1])
restic = home + b"/package/usr/bin/restic"
NAMES = (b"user.caf\xe8", b"user.caf\xe9", b"user.plain")


def seen(folder):
    """What the link says, whether it leads to a file, and the names of the attributes, as bytes."""
    os.chdir(folder)
    attributes = sorted(os.fsencode(name) for name in os.listxattr(b"caf\xe9.txt"))
    return os.readlink(b"link"), os.path.exists(b"link"), attributes


os.chdir(home + b"/source")
with open(b"caf\xe9.txt", "w") as file:
    file.write("data")
os.symlink(b"caf\xe9.txt", b"link")
try:
    for name in NAMES:
        os.setxattr(b"caf\xe9.txt", name, b"1")
except OSError:
    print("no user attributes in the temporary folder")
    sys.exit(77)
codes = []
for words in (["init"], ["backup", "."], ["check"], ["restore", "latest", "--target", home + b"/copy"]):
    codes.append(subprocess.run([restic, "--quiet", *words]).returncode)
original, restored = seen(home + b"/source"), seen(home + b"/copy")
print("exit status of init, backup, check, restore:", *codes)
print("target, target exists, attributes; expected:", *original)
print("target, target exists, attributes; seen:    ", *restored)
REPLACED = b"\xef\xbf\xbd"
if any(codes) or restored != (b"caf" + REPLACED + b".txt", False, [b"user.caf" + REPLACED, b"user.plain"]):
    sys.exit("no longer as described: compare the restored link and attributes with the source")
PY
