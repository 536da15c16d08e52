#!/usr/bin/env bash
# bsdtar 3.6.2 (libarchive, Debian 12) and GNU tar 1.34: a time before 1970 with a fraction of a second is up to two
# seconds wrong after it went through an archive of the one and a restore by the other. No message of it, exit status 0.
#
# The pax format writes a time as a decimal number: half a second before 1970 is `-0.5`. libarchive writes the whole
# seconds rounded down and the fraction counted forward side by side, which gives `-1.5`, and reads both in the same
# way, so that its own archives come back right. GNU tar and Python's tarfile take the number as a number: they make
# -1.5 of it. From GNU tar's `-0.5` bsdtar makes +0.5. Scans of old photographs and papers get such dates from what they
# show, and what synchronises by time copies each of them again after the restore.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: no packages here, or the temporary folder cannot hold
# such times. Unpacks the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
for package in libarchive-tools=3.6.2-1+deb12u5 libarchive13=3.6.2-1+deb12u5 tar=1.34+dfsg-1.2+deb12u1; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
bsdtar() { LD_LIBRARY_PATH="${libraries[0]}" "$home/package/usr/bin/bsdtar" "$@"; }
gnutar() { "$home/package/bin/tar" --warning=no-timestamp "$@"; }
bsdtar --version || { echo "bsdtar does not run here"; exit 77; }
gnutar --version | sed -n 1p

times() { (cd "$1" && stat --format='%n=%.2Y' half quarters | tr '\n' ' '); }

mkdir "$home/original"
touch --date=@-0.5 "$home/original/half"
touch --date=@-100.75 "$home/original/quarters"
[ "$(times "$home/original")" = "half=-0.50 quarters=-100.75 " ] || { echo "the temporary folder cannot hold such times"; exit 77; }
for writer in bsdtar gnutar; do
    "$writer" --format=pax -C "$home/original" -cf "$home/$writer.tar" half quarters
    for reader in bsdtar gnutar; do
        mkdir "$home/$writer-$reader"
        "$reader" -C "$home/$writer-$reader" -xf "$home/$writer.tar"
        echo "written by $writer, read by $reader: expected $(times "$home/original"), seen $(times "$home/$writer-$reader")"
    done
done
if [ "$(times "$home/bsdtar-gnutar")$(times "$home/gnutar-bsdtar")" != \
    "half=-1.50 quarters=-101.25 half=0.50 quarters=-99.25 " ]; then
    echo "no longer as described: compare the times" >&2
    exit 1
fi
