#!/usr/bin/env bash
# python-zstandard 0.25.0: of data in two frames `decompress()`, `read_to_iter()` and `decompressobj()` give the first
# and say nothing; `open()`, `stream_reader()` and `copy_stream()` of the same package give both.
#
# Frames one after the other are one valid file: `zstd -d` reads it, pzstd makes such files, and so does everything that
# appends, or goes on where it was cut off. Which half of the package one uses decides whether the rest is lost, without
# an exception, a warning or a wrong checksum: each frame's own is right. Tests with small data have one frame, so that
# they pass with both halves, and the loss begins with the first large or resumed file.
#
# fsrepl's archives have a frame for each part that was written; it reads them with `stream_reader` across frames
# (storage/compression.py), and whoever reads one compares the BLAKE3 of the whole.
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here. Installs into a
# temporary folder, and removes that.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m pip install -q --target "$home/packages" zstandard==0.25.0 2>"$home/log" || { echo "zstandard 0.25.0 cannot be fetched here"; exit 77; }
PYTHONPATH="$home/packages" python3 - <<'PY'
import io, sys

import zstandard

print("zstandard", zstandard.__version__)
compressor, decompressor = zstandard.ZstdCompressor(write_checksum=True), zstandard.ZstdDecompressor()
data = compressor.compress(b"first,") + compressor.compress(b"second")


def copied():
    out = io.BytesIO()
    decompressor.copy_stream(io.BytesIO(data), out)
    return out.getvalue()


ways = {
    "decompress()": lambda: decompressor.decompress(data),
    "read_to_iter()": lambda: b"".join(decompressor.read_to_iter(io.BytesIO(data))),
    "decompressobj()": lambda: decompressor.decompressobj().decompress(data),
    "stream_reader()": lambda: decompressor.stream_reader(io.BytesIO(data)).read(),
    "copy_stream()": copied,
    "open()": lambda: zstandard.open(io.BytesIO(data)).read(),
}
seen = {name: way() for name, way in ways.items()}
for name, content in seen.items():
    print(f"{name}: expected b'first,second', seen {content}")
if list(seen.values()) != 3 * [b"first,"] + 3 * [b"first,second"]:
    sys.exit("no longer as described: compare which of these read all frames")
PY
