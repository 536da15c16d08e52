#!/usr/bin/env bash
# SQLite 3.40.1 (Debian 12): `||` of two BLOBs is TEXT, and every TEXT comes before every BLOB. A range of keys whose
# end is made with `||` finds nothing, and a DELETE of what comes after a key removes all.
#
# Keys that are bytes (paths need not be UTF-8) are kept as BLOBs. "All below a/" is a range that ends at `:prefix ||
# x'ff'`, "what comes after" begins at `:key || x'00'`. Neither is an error, a warning or a mismatch of types: SQLite
# compares values of different classes by class. So the first statement finds no object in a full table, and the second,
# meant to remove the rest of a list that was read up to a point, removes what was read as well. With keys as TEXT both
# are right, as in each test whose author wrote 'a/' instead of x'612f'.
#
# fsrepl's journal keeps keys as BLOBs, takes the ends of ranges as parameters, and has CAST(... AS BLOB) around the one
# `||` that makes a key (storage/journal/listed.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Unpacks the
# packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
for package in sqlite3=3.40.1-2+deb12u2 libsqlite3-0=3.40.1-2+deb12u2; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
sqlite() { LD_LIBRARY_PATH="${libraries[0]}" "$home/package/usr/bin/sqlite3" "$@"; }
sqlite --version || { echo "sqlite3 does not run here"; exit 77; }

seen=$(sqlite "$home/db" <<'SQL'
CREATE TABLE object (key BLOB PRIMARY KEY) WITHOUT ROWID;
INSERT INTO object VALUES (x'612f31'), (x'612f32'), (x'62');
SELECT count(*) FROM object WHERE key >= x'612f' AND key < x'612f' || x'ff';
SELECT count(*) FROM object WHERE key >= x'612f' AND key < CAST(x'612f' || x'ff' AS BLOB);
DELETE FROM object WHERE key > x'612f31' || x'00';
SELECT group_concat(CAST(key AS TEXT)) FROM object;
SQL
)
mapfile -t lines <<< "$seen"
echo "keys a/1, a/2, b; how many begin with a/: expected 2, seen ${lines[0]}; with a cast ${lines[1]}"
echo "left after all beyond a/1 are deleted: expected a/1, seen '${lines[2]:-}'"
if [ "${lines[0]} ${lines[1]} ${lines[2]:-}" != "0 2 " ]; then
    echo "no longer as described: joined BLOBs compare as BLOBs" >&2
    exit 1
fi
