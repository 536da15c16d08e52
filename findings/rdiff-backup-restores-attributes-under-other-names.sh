#!/usr/bin/env bash
# rdiff-backup 2.2.2 (Debian 12): an attribute whose name has a space, `=`, a backslash or a letter beyond ASCII is
# restored under another name. `backup`, `verify` and `restore` say nothing of it and exit with 0.
#
# Names are escaped in the file of attributes that belongs to each backup, as getfattr does it, and are not brought back
# when that file is read: `user.project name` is restored as `user.project\040name`. The copy in the repository itself
# has the right names at first, so that a look at it with getfattr reassures. Each later backup takes the unchanged file
# for changed, and keeps an increment of it. Tags in S3 may have spaces and `=` in their names.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched or do not run here, or no
# attributes. Unpacks the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python=3.11.2-6+deb12u9
for package in rdiff-backup=2.2.2-1 python3-pyxattr=0.8.1-1 python3-pylibacl=0.7.0-2 python3-yaml=6.0-3+b2 librsync2=2.3.2-1+b1 \
    {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}="$python"; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
rdiff_backup() {
    LC_ALL=C.UTF-8 LD_LIBRARY_PATH="${libraries[0]}" PYTHONHOME="$home/package/usr" PYTHONPATH="$home/package/usr/lib/python3/dist-packages" \
        "$home/package/usr/bin/python3.11" "$home/package/usr/bin/rdiff-backup" "$@"
}
rdiff_backup --version || { echo "rdiff-backup does not run here"; exit 77; }

attributes() { python3 -c 'import os, sys; print(*(f"<{name}>" for name in sorted(os.listxattr(sys.argv[1]))))' "$1"; }

mkdir "$home/original"
touch "$home/original/file"
python3 -c 'import os, sys
for name in ("user.plain", "user.project name", "user.a=b"): os.setxattr(sys.argv[1], name, b"1")' "$home/original/file" 2>/dev/null ||
    { echo "no user attributes in the temporary folder"; exit 77; }
rdiff_backup backup "$home/original" "$home/repository" 2>/dev/null
rdiff_backup verify "$home/repository"
rdiff_backup restore "$home/repository" "$home/restored"
seen=$(attributes "$home/restored/file")
echo "expected:          $(attributes "$home/original/file")"
echo "in the repository: $(attributes "$home/repository/file")"
echo "seen restored:     $seen"
for round in 2 3; do
    sleep 1.1  # two backups of one second are refused
    rdiff_backup backup "$home/original" "$home/repository" 2>/dev/null
done
increments=$(cd "$home/repository/rdiff-backup-data/increments" && find . -name 'file.*' | wc -l)
echo "increments of the unchanged file: expected 0, seen $increments"
if [ "$seen" != '<user.a\075b> <user.plain> <user.project\040name>' ] || [ "$increments" != 2 ]; then
    echo "no longer as described: compare the names of the attributes" >&2
    exit 1
fi
