#!/usr/bin/env bash
# fsspec 2026.9.0 with s3fs 2026.9.0: `fs.rm("photo[1].jpg")` removes `photo1.jpg`, and leaves the file that was named.
#
# rm takes a path for a pattern wherever there is a `*`, `?` or `[` in it, also a path that is the exact name of a file,
# and also in a list of names that `find` has just given. `[1]` is then a class of one character. exists, cat_file and
# rm_file take the same text literally, so that the file is there before and after, and another one is gone. No
# exception; one comes only where nothing matches. The documentation of rm speaks of files and directories, not of
# patterns. Brackets and question marks are ordinary in keys of S3 and in names of files (photographs, series, pages
# that were saved). fsspec's file system in memory does the same; its local one does not, so that tests with local files
# pass. rm_file is the literal one.
#
# fsrepl takes every path and every key literally (model/keys.py).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the packages cannot be fetched here. Installs into a
# temporary folder, and removes that. Starts moto 5.2.5 as the service, on a free port of this host only, and ends it.
set -euo pipefail
home=$(mktemp -d)
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$home"' EXIT
python3 -m pip install -q --no-compile --target "$home/packages" fsspec==2026.9.0 s3fs==2026.9.0 'moto[server]==5.2.5' 2>"$home/log" ||
    { echo "fsspec and s3fs 2026.9.0 and moto 5.2.5 cannot be fetched here"; exit 77; }
unset "${!AWS_@}"
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$home/packages" AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
python3 -m moto.server -H 127.0.0.1 -p 0 >"$home/server" 2>&1 &
server=$!
for _ in {1..300}; do
    url=$(grep -o 'http://127.0.0.1:[0-9]*' "$home/server" | sed -n 1p || true)
    [ -z "$url" ] || break
    sleep 0.1
done
[ -n "$url" ] || { echo "moto does not start here"; exit 77; }
python3 - "$home" "$url" <<'PY'
import os, sys

import fsspec
import s3fs

home, url = sys.argv[1:]
os.mkdir(f"{home}/files")
places = {
    "s3fs": (s3fs.S3FileSystem(endpoint_url=url, key="any", secret="any"), "bucket/"),
    "memory": (fsspec.filesystem("memory"), "/folder/"),
    "local": (fsspec.filesystem("file"), f"{home}/files/"),
}
print("fsspec", fsspec.__version__, "s3fs", s3fs.__version__)
places["s3fs"][0].mkdir("bucket")
left = {}
for kind, (fs, at) in places.items():
    for name in ("photo1.jpg", "photo[1].jpg"):
        fs.pipe_file(at + name, b"picture")
    named = [path for path in fs.find(at) if path.endswith("/photo[1].jpg")]
    assert len(named) == 1 and fs.exists(named[0])
    fs.rm(named)
    left[kind] = [path.rpartition("/")[2] for path in fs.find(at)]
    print(f"{kind}, left after rm of the path of photo[1].jpg: expected ['photo1.jpg'], seen {left[kind]}")
if left != {"s3fs": ["photo[1].jpg"], "memory": ["photo[1].jpg"], "local": ["photo1.jpg"]}:
    sys.exit("no longer as described: compare what rm leaves in the three file systems")
PY
