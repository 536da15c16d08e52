#!/usr/bin/env bash
# coreutils 9.1 (Debian 12): `cp -a new old`, where `old` exists, leaves it with the attributes of both files.
#
# -a is to make the copy like its source. Content, times, mode, owner and ACL of the file that was there are replaced,
# so that the ACL's entries of old are gone; its user attributes are only added to. So new content has the checksum, the
# origin or the tags of the content before, and what compares checksums calls a good file damaged. `rsync -aX` removes
# what the source lacks, GNU tar removes the file first, mv to another filesystem as well, so that each of these is
# right. With `cp -a --remove-destination` cp is, too.
#
# For fsrepl the tags of a file are what its attributes say: after `cp -a` over a file with tags the new version has
# them as well (docs/reference/capture.md).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here, or no attributes
# or ACLs. Unpacks the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
for package in coreutils=9.1-1 tar=1.34+dfsg-1.2+deb12u1 acl=2.3.1-3 rsync=3.5.0+ds1-0+deb12u1; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
PATH="$home/package/bin:$home/package/usr/bin:$PATH"
cp --version | sed -n 1p
mkdir "$home/new" "$home/old"
python3 - "$home" <<'PY'
import os, subprocess, sys

os.chdir(sys.argv[1])
WAYS = {
    "cp -a": "cp -a new/file old/file",
    "cp -a --remove-destination": "cp -a --remove-destination new/file old/file",
    "rsync -aAX": "rsync -aAX --ignore-times new/file old/file",
    "tar --xattrs --acls": "tar --xattrs --acls -C new -c file | tar --xattrs --acls -C old -xp",
}
seen = {}
for words, command in WAYS.items():
    for at, names in {"new": ("a", "both"), "old": ("both", "checksum")}.items():
        with open(f"{at}/file", "w") as file:
            file.write(f"{at} content")
        try:
            for name in os.listxattr(f"{at}/file"):
                os.removexattr(f"{at}/file", name)
            for name in names:
                os.setxattr(f"{at}/file", f"user.{name}", f"of {at}".encode())
            if at == "old":
                subprocess.run(["setfacl", "-m", "u:1001:rw", "old/file"], check=True)
        except (OSError, subprocess.CalledProcessError):
            print("no user attributes or no ACLs in the temporary folder")
            sys.exit(77)
    subprocess.run(command, shell=True, check=True)
    seen[words] = {name: os.getxattr("old/file", name).decode() for name in sorted(os.listxattr("old/file"))}
    print(f"{words}: expected {{'user.a': 'of new', 'user.both': 'of new'}}, seen {seen[words]}")
right = {"user.a": "of new", "user.both": "of new"}
if list(seen.values()) != [{**right, "user.checksum": "of old"}, right, right, right]:
    sys.exit("no longer as described: compare the attributes after each way to copy over a file")
PY
