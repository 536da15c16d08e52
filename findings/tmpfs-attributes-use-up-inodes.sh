#!/usr/bin/env bash
# tmpfs (Linux 6.6 and later, seen with 6.18): user attributes are paid for in inodes. With a few dozen of them no file
# can be made any more, while nearly all of the space is free.
#
# Whoever mounts a tmpfs, or starts a container with one, gives it a size and perhaps a number of files, and knows that
# a file costs one inode. Since tmpfs takes user attributes, each is paid from the budget of inodes, about one a
# kilobyte, and df shows these as inodes in use, of files that do not exist. open(2) with O_CREAT then fails with
# ENOSPC. What stages files with attributes in memory, or tests there with many of them, sees "No space left on device"
# with df at 0 %, and not at the attribute but at some file later on.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root, or a kernel whose tmpfs takes no attributes.
# Mounts a tmpfs of 16 MiB in a temporary folder, and removes both. util-linux mounts it; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home" 2>/dev/null || true; rmdir "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
mount -t tmpfs -o size=16M,nr_inodes=200 none "$home" || { echo "no tmpfs here"; exit 77; }
uname -sr
python3 - "$home" <<'PY'
import errno, os, sys

home = sys.argv[1]


def files(prefix):
    """Make up to 300 files, and remove them; how many there were."""
    made = []
    try:
        for i in range(300):
            os.close(os.open(f"{home}/{prefix}{i}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            made.append(f"{home}/{prefix}{i}")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    for path in made:
        os.unlink(path)
    return len(made)


with open(f"{home}/one", "w"):
    pass
before = files("before")
try:
    for i in range(24):
        os.setxattr(f"{home}/one", f"user.{i}", b"v" * 4000)
except OSError as error:
    if error.errno == errno.ENOTSUP:
        print("this tmpfs takes no user attributes")
        sys.exit(77)
    raise
after = files("after")
disk = os.statvfs(home)
print(f"files that fit beside one file: {before}; after that got 24 attributes: expected {before}, seen {after}")
print(f"space free: {disk.f_bavail / disk.f_blocks:.0%}; inodes used: {disk.f_files - disk.f_ffree} of {disk.f_files}")
if not after < before - 24:
    sys.exit("no longer as described: attributes take no inodes")
PY
