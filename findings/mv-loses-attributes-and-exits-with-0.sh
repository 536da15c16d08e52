#!/usr/bin/env bash
# coreutils 9.1 (Debian 12): `mv` to another filesystem that cannot hold an attribute removes the source all the same,
# and exits with 0; `cp -a` exits with 0, too.
#
# xfs and btrfs take attributes of many kilobytes; ext4 has one block for all of a file's. mv copies, prints a line
# about the attribute, and removes the only file that had it. `cp -a` tolerates that as well, while `cp
# --preserve=xattr`, which asks for less, fails. So a script that moves files between disks, and looks at the exit
# status as it should, loses tags and checksums for good; and a tool that finds the file without them must not take that
# for somebody's wish.
#
# fsrepl writes what does not fit to a sidecar beside the version, before the version is published.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root, no loop device, or no packages here. Unpacks
# the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home/large" "$home/small" 2>/dev/null || true; rm -rf "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
for package in coreutils=9.1-1 e2fsprogs=1.47.0-2+b2 btrfs-progs=6.2-1+deb12u2; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
mkdir "$home/large" "$home/small"
truncate -s 160M "$home/large.image"
truncate -s 64M "$home/small.image"
"$home/package/sbin/mkfs.btrfs" -q "$home/large.image" || { echo "mkfs.btrfs does not run here"; exit 77; }
"$home/package/sbin/mkfs.ext4" -q -F "$home/small.image"
mount -o loop "$home/large.image" "$home/large" || { echo "no loop device or no btrfs here"; exit 77; }
mount -o loop "$home/small.image" "$home/small"
"$home/package/bin/mv" --version | sed -n 1p

python3 - "$home" <<'PY'
import os, subprocess, sys

home = sys.argv[1]
tools, source = f"{home}/package/bin", f"{home}/large/file"
with open(source, "w") as file:
    file.write("data")
os.setxattr(source, "user.note", b"n" * 8000)
codes = {}
for command in (["cp", "--preserve=xattr"], ["cp", "-a"], ["mv"]):
    target = f"{home}/small/{len(codes)}"
    done = subprocess.run([f"{tools}/{command[0]}", *command[1:], source, target], capture_output=True)
    words = " ".join(command)
    codes[words] = done.returncode
    print(f"{words}: expected another status than 0, seen {done.returncode}; attributes there: {os.listxattr(target)}")
left = os.path.exists(source)
print("the source, which alone has the attribute: expected to be left; seen", "left" if left else "removed")
if codes != {"cp --preserve=xattr": 1, "cp -a": 0, "mv": 0} or left:
    sys.exit("no longer as described: an attribute that does not fit is an error now, or its source is left")
PY
