#!/usr/bin/env bash
# Python 3.11.2 with SQLite 3.40.1 (Debian 12): `sqlite3.Connection.iterdump()` cuts each text at its first NUL. The SQL
# that it gives is valid, and makes a database that lacks the rest.
#
# It is Python's own way to save a database as text, beside `backup()`, which copies everything. Python's str may have
# NULs, SQLite stores them, and a SELECT gives them back whole; the dump goes through SQL's quote(), which ends at the
# first. Values joined with NUL, the one byte that no path has, are what an index of files is full of: of "folder NUL
# name NUL version" the folder is left. Nothing fails, neither then nor when the dump is read.
#
# fsrepl does not dump its journal: it can be made again from the trees.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Unpacks the
# packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
version=3.11.2-6+deb12u9
for package in {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}="$version" libsqlite3-0=3.40.1-2+deb12u2; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
LD_LIBRARY_PATH="${libraries[0]}" PYTHONHOME="$home/package/usr" "$home/package/usr/bin/python3.11" - <<'PY'
import sqlite3, sys

print("Python", sys.version.split()[0], "SQLite", sqlite3.sqlite_version)


def values(database):
    return [value for (value,) in database.execute("SELECT value FROM item")]


first, dumped, copied = (sqlite3.connect(":memory:") for _ in range(3))
first.execute("CREATE TABLE item (value TEXT)")
first.execute("INSERT INTO item VALUES (?)", ("folder\0name\0version",))
first.commit()
dumped.executescript("\n".join(first.iterdump()))
first.backup(copied)
print("in the database:    ", values(first))
print("after backup():     expected the same, seen", values(copied))
print("after iterdump():   expected the same, seen", values(dumped))
if values(copied) != values(first) or values(dumped) != ["folder"]:
    sys.exit("no longer as described: the dump has the whole text")
PY
