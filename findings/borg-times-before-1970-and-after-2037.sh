#!/usr/bin/env bash
# borgbackup 1.2.4 (Debian 12): times before 1970 come back as 1970, and those after January 2038 as January 2038, on
# machines and filesystems of 64 bits, with exit status 0 and without a message.
#
# Borg stores nanoseconds in 64 bits, and before that narrows each time down to what a time_t of 32 bits can hold, for
# the sake of readers that have one. Archives of photographs and papers give files the dates of what they show: all from
# before 1970 get one date, and cannot be put in order any more. A date far ahead ("keep until") moves to 2038. What
# synchronises by time takes each of these files for changed after a restore. The manual pages name no limit; it is in
# the changelog and the source.
#
# fsrepl's records have signed nanoseconds, and `fsrepl verify` tells of dates that a filesystem cannot hold
# (tests/views/test_dates.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched or do not run here, or
# the temporary folder cannot hold such times. Unpacks the packages into a temporary folder, and removes that; nothing
# is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python=3.11.2-6+deb12u9
for package in borgbackup=1.2.4-1 python3-msgpack=1.0.3-2+b1 python3-packaging=23.0-1 libxxhash0=0.8.1-1 liblz4-1=1.9.4-1 \
    {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}="$python"; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
unset "${!BORG_@}"
export BORG_BASE_DIR="$home" BORG_REPO="$home/repository"
borg() {
    LD_LIBRARY_PATH="${libraries[0]}" PYTHONHOME="$home/package/usr" PYTHONPATH="$home/package/usr/lib/python3/dist-packages" \
        "$home/package/usr/bin/python3.11" "$home/package/usr/bin/borg" "$@"
}
borg --version || { echo "borg does not run here"; exit 77; }

dates() { TZ=UTC stat -c %y "$1"/* | cut -d ' ' -f 1 | tr '\n' ' '; }

mkdir "$home/source" "$home/copy"
touch -d 1912-04-10T12:00Z "$home/source/a"
touch -d 1969-07-20T12:00Z "$home/source/b"
touch -d 2026-01-01T12:00Z "$home/source/c"
touch -d 2075-01-01T12:00Z "$home/source/d"
expected=$(dates "$home/source")
[ "$expected" = "1912-04-10 1969-07-20 2026-01-01 2075-01-01 " ] || { echo "the temporary folder cannot hold such times"; exit 77; }
borg init -e none
(cd "$home/source" && borg create ::first .) && created=0 || created=$?
(cd "$home/copy" && borg extract ::first) && extracted=0 || extracted=$?
seen=$(dates "$home/copy")
echo "exit status of create and extract: $created $extracted"
echo "dates, expected: $expected"
echo "dates, seen:     $seen"
if [ "$created $extracted $seen" != "0 0 1970-01-01 1970-01-01 2026-01-01 2038-01-17 " ]; then
    echo "no longer as described: compare the dates with those of the source" >&2
    exit 1
fi
