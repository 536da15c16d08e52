#!/usr/bin/env bash
# SQLite 3.40.1 (Debian 12): a query of a WITHOUT ROWID table that an index answers by two columns reads, as long as
# ANALYZE was never run, all rows that share the first column of the primary key instead.
#
# The table has the primary key (bucket, name), and an index on (bucket, inode). `WHERE bucket = ? AND inode = ?` is what
# that index is for, and the same table with a rowid uses it. WITHOUT ROWID the rows are in the primary key itself, so that
# a search of its first column saves the second look-up; without statistics SQLite guesses ten rows for that column,
# however many there are, and takes it. Nothing fails: with one bucket each such query reads the whole table, and a loop of
# them is quadratic. `SELECT name` uses the index, since it need not look the row up; so do all queries after ANALYZE, and
# those with INDEXED BY.
#
# fsrepl's journal has such tables and never runs ANALYZE: it names the index with INDEXED BY, and tests/storage/
# test_scale.py counts the steps of each question.
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

# plan TABLE-OPTION COLUMNS STATEMENT: how SQLite means to answer, in a table of 100,000 rows of one bucket
plan() {
    sqlite ":memory:" <<SQL | sed -n 's/.*\(SEARCH.*\)/\1/p'
CREATE TABLE object (bucket INTEGER, name BLOB, inode INTEGER, size INTEGER, PRIMARY KEY (bucket, name)) $1;
CREATE INDEX inodes ON object (bucket, inode);
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
    INSERT INTO object SELECT 1, CAST(i AS BLOB), i, 0 FROM n;
$3
EXPLAIN QUERY PLAN SELECT $2 FROM object WHERE bucket = 1 AND inode = 7;
SQL
}
with_rowid=$(plan "" "name, size" "")
without=$(plan "WITHOUT ROWID" "name, size" "")
analyzed=$(plan "WITHOUT ROWID" "name, size" "ANALYZE;")
covered=$(plan "WITHOUT ROWID" "name" "")
echo "with a rowid:             $with_rowid"
echo "WITHOUT ROWID:            $without    (expected: the index inodes)"
echo "WITHOUT ROWID, ANALYZE:   $analyzed"
echo "WITHOUT ROWID, name only: $covered"
if [[ "$with_rowid" != *"INDEX inodes (bucket=? AND inode=?)"* || "$without" != *"PRIMARY KEY (bucket=?)"* ||
    "$analyzed" != *"INDEX inodes"* || "$covered" != *"INDEX inodes"* ]]; then
    echo "no longer as described" >&2
    exit 1
fi
