#!/usr/bin/env bash
# watchdog 7.1.0: a directory that was moved out of a watched tree is watched on, and what happens there is reported
# under the path that it had, also when another directory has that path by now.
#
# The kernel watches inodes. watchdog reports the directory as deleted, keeps its watch, and puts the old path before
# each name in it. A file that somebody writes elsewhere is then "created" in the tree, at a path where there is no
# file, or another one. A tool that takes each event for a fact removes, copies or indexes the wrong thing; one that
# counts on errors ("it was reported and is not there, so it was deleted again") makes a deletion out of it.
#
# fsrepl drops the watches of a directory that leaves, with all below it, and takes events for hints only
# (capture/watch.py, `forget`).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here. Installs into a
# temporary folder, and removes that.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m pip install -q --target "$home/packages" watchdog==7.1.0 2>"$home/log" || { echo "watchdog 7.1.0 cannot be fetched here"; exit 77; }
mkdir -p "$home/tree/photos" "$home/elsewhere"
PYTHONPATH="$home/packages" python3 - "$home" <<'PY'
import os, sys, threading
from importlib.metadata import version

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

home = os.path.realpath(sys.argv[1])
tree = f"{home}/tree"


class Told(FileSystemEventHandler):
    def __init__(self):
        self.paths, self.news = [], threading.Condition()

    def on_any_event(self, event):
        if event.event_type in ("created", "deleted"):
            with self.news:
                self.paths.append(f"{event.event_type} {os.path.relpath(event.src_path, tree)}")
                self.news.notify()

    def until(self, line):
        with self.news:
            return self.news.wait_for(lambda: line in self.paths, 30)


print("watchdog", version("watchdog"))
told, observer = Told(), Observer()
observer.schedule(told, tree, recursive=True)
observer.start()
os.rename(f"{tree}/photos", f"{home}/elsewhere/photos")
left = told.until("deleted photos")
os.mkdir(f"{tree}/photos")
again = told.until("created photos")
open(f"{home}/elsewhere/photos/private.jpg", "w").close()
os.mkdir(f"{tree}/end")
ended = told.until("created end")
observer.stop()
observer.join()
print("in the tree there is:", sorted(os.listdir(tree)), "and in photos:", os.listdir(f"{tree}/photos"))
print("events, expected: deleted photos, created photos, created end")
print("events, seen:    ", ", ".join(told.paths))
if not (left and again and ended) or "created photos/private.jpg" not in told.paths:
    sys.exit("no longer as described: a directory that left is not watched any more")
PY
