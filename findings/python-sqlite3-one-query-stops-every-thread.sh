#!/usr/bin/env bash
# Python 3.11.2 and SQLite 3.40.1 (Debian 12): while one thread's query runs, a second thread that uses the same connection
# stops all threads of the process, those included that use no database; for as long as the query takes.
#
# sqlite3.threadsafety is 3: threads may share a connection. A query runs without the interpreter's lock, and SQLite lets one
# thread at a time use a connection. But the module gives SQLite the values of a statement, and takes those of a row, with
# the interpreter's lock held. The second thread waits there for the first one's query, and all others wait for the second
# one. In a service, that is no answer to a signal or a health check until a long query, or a write to a slow disk, is over.
# The documentation of check_same_thread says only that writes may need to be serialised by the user.
#
# In fsrepl each call waits for a lock of Python's own first (fsrepl/storage/journal/shared_connection.py,
# tests/storage/test_journal_hangs.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched or do not run here. Unpacks
# the packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python=3.11.2-6+deb12u9
for package in {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}="$python" libsqlite3-0=3.40.1-2+deb12u2; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
libraries=("$home"/package/usr/lib/*-linux-gnu)
cat >"$home/threads.py" <<'EOF'
import sqlite3, sys, threading, time

QUERY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000000) SELECT count(*) FROM n"
db = sqlite3.connect(":memory:", check_same_thread=False)
db.execute("SELECT ?", (0,)).fetchone()
begun, took = threading.Event(), []


def query():
    begun.set()
    since = time.monotonic()
    db.execute(QUERY).fetchone()
    took.append(time.monotonic() - since)


def use():
    db.execute("SELECT ?", (1,)).fetchone()


def pause(*others):
    """The longest pause of this thread while the query runs, as a share of that time."""
    begun.clear()
    first = threading.Thread(target=query)
    first.start()
    begun.wait()
    time.sleep(0.05)
    for each in others:
        each.start()
    longest, last = 0.0, time.monotonic()
    while first.is_alive():
        time.sleep(0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest / took[-1]


alone, shared = pause(), pause(threading.Thread(target=use))
print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, sqlite3.threadsafety {sqlite3.threadsafety}")
print(f"the longest pause of a thread that uses no database: {alone:.0%} of a query's time alone,")
print(f"{shared:.0%} where a second thread uses the connection")
sys.exit(0 if sqlite3.threadsafety == 3 and alone < 0.3 and shared > 0.6 else 1)
EOF
run() {
    LD_LIBRARY_PATH="${libraries[0]}" PYTHONHOME="$home/package/usr" "$home/package/usr/bin/python3.11" "$@"
}
run -c 'import sqlite3' || { echo "Python does not run here"; exit 77; }
if ! run "$home/threads.py"; then
    echo "no longer as described" >&2
    exit 1
fi
