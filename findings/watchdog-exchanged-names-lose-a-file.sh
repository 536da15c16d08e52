#!/usr/bin/env bash
# watchdog 7.1.0: two files that exchange their names are reported as two moves, of which a program that carries them
# out one after the other loses a file.
#
# renameat2(2) with RENAME_EXCHANGE swaps two names in one step, as `mv --exchange` of coreutils 9.5 does. inotify tells
# of it as of two renames, and watchdog as "a was moved to b", "b was moved to a". Nothing says that they belong
# together, and each alone looks like a file that was moved over another. Carried out in a copy, the first replaces b by
# a, and the second gives that same file its old name back: b's content is gone, and nothing is left under its name,
# while the source still has both. The order of events is right, all are there, and the result is wrong.
#
# fsrepl takes an event for a hint which names to look at, and never for what happened to them (capture/watch.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here, or no renameat2.
# Installs into a temporary folder, and removes that.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m pip install -q --target "$home/packages" watchdog==7.1.0 2>"$home/log" || { echo "watchdog 7.1.0 cannot be fetched here"; exit 77; }
mkdir "$home/source" "$home/copy"
PYTHONPATH="$home/packages" python3 - "$home/source" "$home/copy" <<'PY'
import ctypes, os, sys, threading
from importlib.metadata import version

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

source, copy = (os.path.realpath(path) for path in sys.argv[1:])
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def contents(top):
    found = {}
    for name in sorted(os.listdir(top)):
        with open(f"{top}/{name}") as file:
            found[name] = file.read()
    return found


class Mirror(FileSystemEventHandler):
    """Does in the copy what was done in the source."""

    def __init__(self):
        self.moves, self.ended = [], threading.Event()

    def on_moved(self, event):
        names = os.path.basename(event.src_path), os.path.basename(event.dest_path)
        self.moves.append("{} -> {}".format(*names))
        os.replace(f"{copy}/{names[0]}", f"{copy}/{names[1]}")

    def on_created(self, event):
        if event.src_path.endswith("end"):
            self.ended.set()


print("watchdog", version("watchdog"))
for top in (source, copy):
    for name in ("a", "b"):
        with open(f"{top}/{name}", "w") as file:
            file.write(f"was {name}")
mirror, observer = Mirror(), Observer()
observer.schedule(mirror, source)
observer.start()
names = (os.fsencode(f"{source}/{name}") for name in ("a", "b"))
if ctypes.CDLL(None).renameat2(AT_FDCWD, next(names), AT_FDCWD, next(names), RENAME_EXCHANGE):
    print("names cannot be exchanged in the temporary folder")
    observer.stop()
    sys.exit(77)
open(f"{source}/end", "w").close()
ended = mirror.ended.wait(30)
observer.stop()
observer.join()
os.unlink(f"{source}/end")
print("events:", *mirror.moves, sep="  ")
print("the copy, expected:", contents(source))
print("the copy, seen:    ", contents(copy))
if not ended or contents(copy) != {"a": "was a"}:
    sys.exit("no longer as described: an exchange is reported in another way")
PY
