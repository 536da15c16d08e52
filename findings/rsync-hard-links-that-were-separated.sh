#!/usr/bin/env bash
# rsync 3.5.0 (Debian 12): `rsync -aHX` does not separate two names at the destination that are hard links there and no
# longer at the source; their attributes then change with each run, for ever, and it exits with 0.
#
# -H makes hard links and never breaks any. Two names that were one file, and became two of equal content (a copy
# renamed over the name, as editors and package managers do), stay one inode in the copy, since size and time agree.
# Mode, owner and attributes of both are then set on that one inode, one after the other: what one name says, the other
# shows. The next run finds one of them different and turns it round. The manual warns of such a tug of war for
# --inplace and for contents; it happens without --inplace, too. A copy that never comes to rest also never says that it
# is wrong.
#
# fsrepl's tree buckets record which names are one file, and separate the replica's names again (views/link_groups.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here, or no attributes.
# Unpacks the package into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
(cd "$home" && apt-get download rsync=3.5.0+ds1-0+deb12u1 >/dev/null 2>&1) || { echo "rsync 3.5.0+ds1-0+deb12u1 cannot be fetched here"; exit 77; }
dpkg -x "$home"/rsync_*.deb "$home/package"
"$home/package/usr/bin/rsync" --version | sed -n 1p
mkdir "$home/source"
python3 - "$home/source" "$home/copy" "$home/package/usr/bin/rsync" <<'PY'
import os, shutil, subprocess, sys

source, copy, rsync = sys.argv[1:]
NAMES = ("a", "b")


def run():
    """Run rsync; what the copy's names have then, and whether they are one file."""
    subprocess.run([rsync, "-aHX", f"{source}/", f"{copy}/"], check=True)
    values = "".join(os.getxattr(f"{copy}/{name}", "user.of").decode() for name in NAMES)
    return values, os.path.samefile(f"{copy}/a", f"{copy}/b")


with open(f"{source}/a", "w") as file:
    file.write("data")
try:
    os.setxattr(f"{source}/a", "user.of", b"a")
except OSError:
    print("no user attributes in the temporary folder")
    sys.exit(77)
os.link(f"{source}/a", f"{source}/b")
run()
shutil.copy2(f"{source}/b", f"{source}/new")  # with its time
os.rename(f"{source}/new", f"{source}/b")
os.setxattr(f"{source}/b", "user.of", b"b")
seen = [run() for _ in range(4)]
print("the source: a has 'a', b has 'b', two files")
print("the copy, expected after each run: ('ab', False)")
print("the copy, seen:", *seen)
linked, values = all(one for _, one in seen), {value for value, _ in seen}
if not linked or values != {"aa", "bb"}:
    sys.exit("no longer as described: the copy comes to rest, or its names are separated")
PY
