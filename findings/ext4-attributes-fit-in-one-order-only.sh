#!/usr/bin/env bash
# ext4 (seen with Linux 6.18, e2fsprogs 1.47.0 of Debian 12): whether attributes fit depends on the order in which they
# are set, so that `rsync -aX` (rsync 3.5.0) fails between two places of one filesystem.
#
# ext4 has two places for attributes: the rest of the inode, some 100 bytes, and one block. Each attribute goes to the
# first place with room for it, and none is moved over to make room for another. A short one that comes first takes the
# place that a longer one needs later, and the longer one is then refused with ENOSPC, though the same three attributes
# lie side by side in the file beside it. rsync sets them in the order of their names, whatever order the source had. So
# a good source and an equal filesystem with space are no promise that a copy can have the attributes of its source, and
# no retry helps: rsync exits with 23 each time.
#
# fsrepl takes ENOSPC for an attribute as "does not fit here", and writes the version's record to a sidecar file.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root, no loop device, or no packages here. Unpacks
# the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home/at" 2>/dev/null || true; rm -rf "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
for package in e2fsprogs=1.47.0-2+b2 rsync=3.5.0+ds1-0+deb12u1; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
truncate -s 64M "$home/image"
"$home/package/sbin/mkfs.ext4" -q -F -b 4096 -I 256 "$home/image"
mkdir "$home/at"
mount -o loop "$home/image" "$home/at" || { echo "no loop device here"; exit 77; }
uname -sr
"$home/package/usr/bin/rsync" --version | sed -n 1p
python3 - "$home/at" "$home/package/usr/bin/rsync" <<'PY'
import itertools, os, subprocess, sys

at, rsync = sys.argv[1:]
SIZES = {"user.a": 12, "user.b": 3979, "user.c": 60}


def fits(order):
    """Whether a new file takes the attributes, set in this order; that file's path."""
    path = f"{at}/{''.join(name[-1] for name in order)}"
    with open(path, "w"):
        pass
    try:
        for name in order:
            os.setxattr(path, name, b"v" * SIZES[name])
    except OSError as error:
        return error.strerror, path
    return "fits", path


found = {order: fits(order) for order in itertools.permutations(SIZES)}
for order, (answer, _) in found.items():
    print(*(f"{name} ({SIZES[name]} bytes)," for name in order), answer)
good = [path for answer, path in found.values() if answer == "fits"]
print(f"expected: one answer for all orders; seen: {len(good)} of {len(found)} orders fit")
code = 0
if good:
    code = subprocess.run([rsync, "-aX", good[0], f"{at}/copy"]).returncode
    print(f"rsync -aX of a file that has all three: expected 0, seen {code}; the copy has {os.listxattr(f'{at}/copy')}")
if not 0 < len(good) < len(found) or code != 23:
    sys.exit("no longer as described: the order of the attributes makes no difference, or not to rsync")
PY
