#!/usr/bin/env bash
# mergerfs 2.33.5 (Debian 12): user attributes cannot be set on an open file that has no name any more.
#
# A program opens a file, removes its name and goes on with the descriptor, as for a temporary file. fchmod(2), write(2) and
# fstat(2) work on it; fsetxattr(2) fails with ESTALE ("Stale file handle"), though the filesystem below takes attributes
# and the same call works as long as the file has a name.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: FUSE cannot be used here. Needs root, apt-get and /dev/fuse.
# Unpacks the package into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home/joined" 2>/dev/null || true; rm -rf "$home"' EXIT
chmod 755 "$home"
(cd "$home" && apt-get download mergerfs=2.33.5-1 >/dev/null 2>&1) || { echo "mergerfs 2.33.5-1 cannot be fetched here"; exit 77; }
dpkg -x "$home"/mergerfs_*.deb "$home/package"
mkdir "$home/one" "$home/two" "$home/joined"
"$home/package/usr/bin/mergerfs" "$home/one:$home/two" "$home/joined" || { echo "no FUSE here"; exit 77; }
python3 - "$home" <<'PY'
import errno, os, sys

home = sys.argv[1]
fd = os.open(f"{home}/one/direct", os.O_RDWR | os.O_CREAT)
os.setxattr(fd, "user.a", b"1")  # the filesystem below takes attributes
os.unlink(f"{home}/one/direct")
os.setxattr(fd, "user.b", b"1")  # also without a name

fd = os.open(f"{home}/joined/file", os.O_RDWR | os.O_CREAT)
os.setxattr(fd, "user.a", b"1")
print("with a name: fsetxattr works")
os.unlink(f"{home}/joined/file")
os.write(fd, b"data")
os.fchmod(fd, 0o600)
print("without a name: write and fchmod work; size", os.fstat(fd).st_size)
try:
    os.setxattr(fd, "user.b", b"1")
    print("without a name: fsetxattr works")
    found = None
except OSError as error:
    found = error.errno
    print("without a name: fsetxattr fails with", errno.errorcode[found])
os.close(fd)
sys.exit(0 if found == errno.ESTALE else 1)
PY
