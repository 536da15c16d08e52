#!/usr/bin/env bash
# tar 1.34 (Debian 12): `tar --compare --xattrs --acls` looks at neither attributes nor ACLs, and exits with 0 where all
# of them differ.
#
# Both options are accepted, and the archive has everything: extracted with them it is right. Compared are content,
# type, mode, owner and time, none of which changes with an attribute. So the check that one makes before the original
# is removed, or after a restore, passes where tags and checksums were lost or changed, and where an ACL gives rights to
# others than before.
#
# `fsrepl verify` compares attributes, tags and ACLs of a version and its replica (repair/compare.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here, or no attributes
# or ACLs. Unpacks the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
for package in tar=1.34+dfsg-1.2+deb12u1 acl=2.3.1-3; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
PATH="$home/package/bin:$home/package/usr/bin:$PATH"
tar --version | sed -n 1p
mkdir "$home/files"
python3 - "$home/files" <<'PY'
import os, subprocess, sys

os.chdir(sys.argv[1])


def run(*words):
    return subprocess.run(words).returncode


def state():
    acl = subprocess.run(["getfacl", "--omit-header", "--numeric", "file"], check=True, capture_output=True, text=True).stdout
    attributes = {name: os.getxattr("file", name) for name in sorted(os.listxattr("file")) if name.startswith("user.")}
    return attributes, [line for line in acl.split() if line.startswith("user:1")]


with open("file", "w") as file:
    file.write("data")
try:
    os.setxattr("file", "user.a", b"1")
    os.setxattr("file", "user.b", b"1")
    subprocess.run(["setfacl", "-m", "u:1001:r", "file"], check=True)
except (OSError, subprocess.CalledProcessError):
    print("no user attributes or no ACLs in the temporary folder")
    sys.exit(77)
options = ("--xattrs", "--acls", "--file", "../archive")
archived = state()
made = run("tar", "--create", *options, "file")
os.setxattr("file", "user.a", b"2")
os.removexattr("file", "user.b")
os.setxattr("file", "user.c", b"1")
subprocess.run(["setfacl", "-x", "u:1001", "-m", "u:1002:r", "file"], check=True)
changed = state()
compared = run("tar", "--compare", *options)
extracted = run("tar", "--extract", *options)
restored = state()
print("archived:", *archived)
print("changed: ", *changed)
print("exit status of tar --compare --xattrs --acls: expected 1, seen", compared)
print("extracted again, as archived:", restored == archived)
os.chmod("file", 0o600)
control = run("tar", "--compare", *options)
print("exit status after a change of the mode: expected 1, seen", control)
if (made, compared, extracted, control) != (0, 0, 0, 1) or restored != archived or changed == archived:
    sys.exit("no longer as described: tar --compare looks at attributes or ACLs")
PY
