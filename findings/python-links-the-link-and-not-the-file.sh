#!/usr/bin/env bash
# Python 3.11.2 (Debian 12) on Linux: `os.link(path, new, follow_symlinks=True)` of a symlink links the symlink, and not
# the file that it names; the default, which is True as well, does so, too.
#
# Every other function with that parameter follows where it is True: os.stat, os.chmod, os.utime, shutil.copy2. os.link
# with two paths looks at it only where it is False, and else calls link(2), which does not follow on Linux. A snapshot
# made of hard links then has a symlink where it was to keep the content: the size and the content that one reads
# through it look right, until the file that it names is replaced or removed.
#
# fsrepl never follows symlinks, and says follow_symlinks=False in its one call of os.link (storage/fs.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Unpacks the
# packages into a temporary folder, and removes that; nothing is installed.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
version=3.11.2-6+deb12u9
for package in {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib}="$version"; do
    (cd "$home" && apt-get download "$package" >/dev/null 2>&1) || { echo "$package cannot be fetched here"; exit 77; }
done
for file in "$home"/*.deb; do dpkg -x "$file" "$home/package"; done
PYTHONHOME="$home/package/usr" "$home/package/usr/bin/python3.11" - "$home" <<'PY'
import os, sys

print("Python", sys.version.split()[0], sys.platform)
home = sys.argv[1]
with open(f"{home}/file", "w") as file:
    file.write("kept?")
os.symlink("file", f"{home}/name")
seen = {}
for words, options in {"the default": {}, "True": {"follow_symlinks": True}, "False": {"follow_symlinks": False}}.items():
    new = f"{home}/snapshot of {words}"
    os.link(f"{home}/name", new, **options)
    seen[words] = "a symlink" if os.path.islink(new) else "the file"
    expected = "a symlink" if words == "False" else "the file"
    print(f"follow_symlinks {words}: expected {expected}, seen {seen[words]}")
if set(seen.values()) != {"a symlink"}:
    sys.exit("no longer as described: os.link follows symlinks")
PY
