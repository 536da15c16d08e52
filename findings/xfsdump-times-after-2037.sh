#!/usr/bin/env bash
# xfsdump 3.1.11 (Debian 12, xfsprogs 6.1.0): times after January 2038 are restored as times before 1970, all fractions of
# a second are gone, and symbolic links get the time of the restore. Dump and restore exit with 0 and do not mention it.
#
# xfs holds times until 2486 (`bigtime`, what mkfs.xfs makes since 5.15) to the nanosecond, and xfsdump is its own tool.
# What comes back is the 32 bits that fit below 2038, and whole seconds. So a file to be kept until 2040 is from 1903
# after the restore, which cleaning by age removes first, and what synchronises by time to the nanosecond takes every
# file of the tree for changed.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no root, no loop device, or no packages here. Unpacks
# the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'umount "$home/xfs" 2>/dev/null || true; rm -rf "$home"' EXIT
[ "$(id -u)" = 0 ] || { echo "needs root"; exit 77; }
for package in xfsprogs=6.1.0-1 libinih1=55-1 liburcu8=0.13.2-1 xfsdump=3.1.11-0.1 libattr1=1:2.5.1-4; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
in_package() { LD_LIBRARY_PATH="${libraries[0]}" "$home/package/$1" "${@:2}"; }
truncate -s 320M "$home/image"
in_package sbin/mkfs.xfs -q -m bigtime=1 "$home/image" || { echo "mkfs.xfs does not run here"; exit 77; }
mkdir "$home/xfs"
mount -o loop "$home/image" "$home/xfs" || { echo "no xfs here"; exit 77; }
uname -sr
in_package sbin/xfsdump -h 2>&1 | grep version || { echo "xfsdump does not run here"; exit 77; }

times() { (cd "$1" && TZ=UTC stat --format='%n=%.9Y' fraction keep link | tr '\n' ' '); }

mkdir "$home/xfs/tree"
touch --date=@978307200.123456789 "$home/xfs/tree/fraction"
touch --date=@2208988800 "$home/xfs/tree/keep"
ln -s keep "$home/xfs/tree/link"
touch --no-dereference --date=@978307200 "$home/xfs/tree/link"
in_package sbin/xfsdump -s tree -L session -M medium -f "$home/dump" "$home/xfs" >/dev/null 2>&1
mkdir "$home/xfs/restored"
in_package sbin/xfsrestore -f "$home/dump" "$home/xfs/restored" >/dev/null 2>&1
expected=$(times "$home/xfs/tree") seen=$(times "$home/xfs/restored/tree")
echo "expected: $expected"
echo "seen:     $seen"
case "$seen" in
    "fraction=978307200.000000000 keep=-2085978496.000000000 link=978307200."*) echo "no longer as described: the link has its time" >&2; exit 1 ;;
    "fraction=978307200.000000000 keep=-2085978496.000000000 link="*) ;;
    *) echo "no longer as described: compare the times" >&2; exit 1 ;;
esac
