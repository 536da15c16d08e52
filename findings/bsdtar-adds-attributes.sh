#!/usr/bin/env bash
# bsdtar 3.6.2 (libarchive, Debian 12): a file that goes through its own archives gets more attributes each time, where
# a name has a space, `%` or `=`.
#
# It writes each attribute twice, for two families of readers: once with its name encoded as in a URL, once not. GNU tar
# has a third way (`%` and `=` alone are encoded). On the way out bsdtar decodes only the first of them, so that
# `user.a=b` comes back together with `user.a%3Db`, which then is archived, too. From GNU tar's archives it makes
# `user.a%3Db` alone. No message, exit status 0. Tags in S3 may have spaces and `=` in their names, so whatever keeps
# tags as attributes finds tags after a restore that nobody set, and lacks others.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no packages here, or no attributes. Unpacks the
# packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
for package in libarchive-tools=3.6.2-1+deb12u5 libarchive13=3.6.2-1+deb12u5 tar=1.34+dfsg-1.2+deb12u1; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
bsdtar() { LD_LIBRARY_PATH="${libraries[0]}" "$home/package/usr/bin/bsdtar" "$@"; }
bsdtar --version || { echo "bsdtar does not run here"; exit 77; }
"$home/package/bin/tar" --version | sed -n 1p

attributes() { python3 -c 'import os, sys; print(*(f"<{name}>" for name in sorted(os.listxattr(sys.argv[1]))))' "$1"; }

mkdir "$home/0" "$home/1" "$home/2" "$home/gnu"
touch "$home/0/file"
python3 -c 'import os, sys
for name in ("user.a=b", "user.c d"): os.setxattr(sys.argv[1], name, b"1")' "$home/0/file" 2>/dev/null ||
    { echo "no user attributes in the temporary folder"; exit 77; }
for round in 1 2; do
    bsdtar --xattrs -C "$home/$((round - 1))" -cf "$home/$round.tar" file
    bsdtar --xattrs -C "$home/$round" -xpf "$home/$round.tar"
done
"$home/package/bin/tar" --xattrs -C "$home/0" -cf "$home/gnu.tar" file
bsdtar --xattrs -C "$home/gnu" -xpf "$home/gnu.tar"
echo "expected each time:     $(attributes "$home/0/file")"
once=$(attributes "$home/1/file") twice=$(attributes "$home/2/file") gnu=$(attributes "$home/gnu/file")
echo "seen after one round:   $once"
echo "seen after two rounds:  $twice"
echo "seen from GNU tar's:    $gnu"
if [ "$once" != "<user.a%3Db> <user.a=b> <user.c d> <user.c%20d>" ] || [ "$gnu" != "<user.a%3Db> <user.c d>" ]; then
    echo "no longer as described: compare the names of the attributes" >&2
    exit 1
fi
