#!/usr/bin/env bash
# casync 2 (Debian 12): a tree with a name of 238 to 255 bytes is archived with exit status 0, and cannot be extracted:
# the restore ends at that name, and all that comes after it is missing.
#
# While it extracts, casync gives each file a hidden name with 18 bytes more, and Linux allows 255. Making the archive
# does not need that, so nobody is told before the day the backup is needed. Names of that length are ordinary where a
# letter takes three bytes: 80 characters of Chinese or Japanese.
#
# fsrepl stores what is too long with its own suffix under a hash (tests/storage/test_names.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched or do not run here.
# Unpacks the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
for package in casync=2+20201210-1+b1 libfuse2=2.9.9-6+b1; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
casync() { LD_LIBRARY_PATH="${libraries[0]}:$home/package/lib/$(basename "${libraries[0]}")" "$home/package/usr/bin/casync" "$@"; }
casync --version || { echo "casync does not run here"; exit 77; }

seen=""
for length in 237 238 255; do
    at="$home/$length"
    mkdir -p "$at/original" "$at/restored"
    for name in "$(printf 'm%.0s' $(seq "$length"))" before zuletzt; do echo content > "$at/original/$name"; done
    made=0 extracted=0
    casync make --store="$at/store" "$at/archive.caidx" "$at/original" >/dev/null || made=$?
    casync extract --store="$at/store" "$at/archive.caidx" "$at/restored" 2>/dev/null || extracted=$?
    found=$(find "$at/restored" -type f ! -name '.*' | wc -l)
    echo "$length bytes: make exits with $made, extract with $extracted; files expected 3, seen $found"
    seen+="$made$extracted$found "
done
[ "$seen" = "003 011 011 " ] || { echo "no longer as described: compare the files" >&2; exit 1; }
