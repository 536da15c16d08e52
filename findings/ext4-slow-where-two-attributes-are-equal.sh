#!/usr/bin/env bash
# ext4 (seen with Linux 6.18, e2fsprogs 1.47.0 of Debian 12): setxattr(2) takes the longer, the more files have two
# attributes of one value: after 6,000 files some 140 times as long as for values that differ.
#
# ext4 keeps the attributes that do not fit the inode in a block, and looks for an equal block of another file to share.
# It looks by a hash of 32 bits that XORs the words of all values, rotated by 16 bits at each word and each attribute. Words
# that occur twice at the right distance cancel each other out. So files with, say, a checksum, where they come from and a copy of
# the checksum all have one hash, however different the checksums are, and each new block is compared with thousands.
# Source: Linux, fs/ext4/xattr.c: ext4_xattr_hash_entry, ext4_xattr_rehash, ext4_xattr_block_cache_find.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root or no loop device here.
# Unpacks the package into a temporary folder, and removes that; nothing is installed. Takes some 20 s.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home/at" 2>/dev/null || true; rm -rf "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
(cd "$home" && apt-get download e2fsprogs=1.47.0-2+b2 >/dev/null 2>&1) || { echo "e2fsprogs 1.47.0-2+b2 cannot be fetched here"; exit 77; }
dpkg -x "$home"/e2fsprogs_*.deb "$home/package"
truncate -s 512M "$home/image"
"$home/package/sbin/mkfs.ext4" -q -F -I 256 -N 40000 "$home/image"
mkdir "$home/at"
mount -o loop "$home/image" "$home/at" || { echo "no loop device here"; exit 77; }
uname -sr
python3 - "$home/at" <<'PY'
import hashlib, os, sys, time

FILES = 6000


def last_files_us(folder, copy_of):
    """Microseconds a file that setting three attributes takes, of the last 1,000 of 6,000 files."""
    os.mkdir(folder)
    took_s = 0.0
    for i in range(FILES):
        fd = os.open(f"{folder}/{i}", os.O_CREAT | os.O_RDWR)
        values = {
            "user.sum": hashlib.sha512(b"%d" % i).hexdigest().encode(),
            "user.source": b"/mnt/archive/2026/" + b"a-folder-with-a-long-name/" * 4,
            "user.first-sum": hashlib.sha512(b"%d" % copy_of(i)).hexdigest().encode(),
        }
        began = time.perf_counter()
        for name, value in values.items():
            os.setxattr(fd, name, value)
        if i >= FILES - 1000:
            took_s += time.perf_counter() - began
        os.close(fd)
    return took_s / 1000 * 1e6


different = last_files_us(sys.argv[1] + "/different", lambda i: i + FILES)
equal = last_files_us(sys.argv[1] + "/equal", lambda i: i)
print(f"two different sums: {different:.0f} us a file; the same sum twice: {equal:.0f} us a file, {equal / different:.0f} times")
sys.exit(0 if equal > 5 * different else 1)
PY
