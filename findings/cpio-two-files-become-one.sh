#!/usr/bin/env bash
# cpio 2.13 (Debian 12): of two files that have hard links each, `cpio -o` and `cpio -i` make one, where their inode
# numbers agree in the last 16 bits. The content of the second is lost, without a message, with exit status 0.
#
# The format that cpio writes unless told otherwise has 16 bits for the inode's number (`-H odc` 18), and cpio writes
# the last 16 bits of it; a warning has to be asked for with `-W truncate`. A reader takes two names of one number for
# hard links, so that the second file becomes another name of the first. Only files with several links are concerned,
# so that most trees come back right. ext4 numbers inodes by groups of blocks and spreads folders over these, so that
# numbers a multiple of 65,536 apart are common in a large tree of such files (snapshots of hard links, the store of a
# package manager). The manual calls the format obsolete, and names 2 GiB as its limit. `-H newc` has 32 bits, and
# `--renumber-inodes` ends it for good.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root, no loop device, or no packages here. Unpacks
# the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home/at" 2>/dev/null || true; rm -rf "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
for package in e2fsprogs=1.47.0-2+b2 cpio=2.13+dfsg-7.1; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
truncate -s 4G "$home/image"
"$home/package/sbin/mkfs.ext4" -q -F -O ^has_journal -b 4096 -N 1048576 "$home/image"
mkdir "$home/at"
mount -o loop "$home/image" "$home/at" || { echo "no loop device here"; exit 77; }
uname -sr
"$home/package/bin/cpio" --version | sed -n 1p
python3 - "$home" <<'PY'
import os, subprocess, sys

home = sys.argv[1]
cpio, at = f"{home}/package/bin/cpio", f"{home}/at"
by_number = {}
for i in range(1000):  # ext4 spreads the folders of the top over its groups, and their files with them
    os.mkdir(f"{at}/{i}")
    with open(f"{at}/{i}/file", "w") as file:
        file.write(f"content {i}")
    number = os.stat(f"{at}/{i}/file").st_ino
    first, i_first = by_number.setdefault(number % 2**16, (number, i))
    if first != number:
        break
else:
    print("this filesystem gave no two inode numbers that are 65,536 apart")
    sys.exit(77)
os.mkdir(f"{at}/tree")
for name, folder in {"a": i_first, "b": i}.items():
    os.link(f"{at}/{folder}/file", f"{at}/tree/{name}")
print("inode numbers of a and b:", first, number)


def contents(folder):
    found = {}
    for name in sorted(os.listdir(folder)):
        with open(f"{folder}/{name}") as file:
            found[name] = file.read()
    return found


expected, seen = contents(f"{at}/tree"), {}
for words in ((), ("-H", "newc"), ("--renumber-inodes",)):
    folder = f"{home}/{len(seen)}"
    os.mkdir(folder)
    archive = subprocess.run([cpio, "--quiet", "-o", *words], cwd=f"{at}/tree", input=b"a\nb\n", stdout=subprocess.PIPE, check=True)
    subprocess.run([cpio, "--quiet", "-i"], cwd=folder, input=archive.stdout, check=True)
    seen[words] = contents(folder)
    print(f"{' '.join(('cpio -o', *words))}: expected {expected}, seen {seen[words]}")
if list(seen.values()) != [dict.fromkeys("ab", expected["a"]), expected, expected]:
    sys.exit("no longer as described: compare the files that come out of the archives")
PY
