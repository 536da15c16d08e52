"""A coverage-guided fuzzer of the readers in formats.py, with atheris: `pip install atheris`, where it has a wheel.

    python -m tests.attack.fuzz --seconds 3600 settings record "frame of the site"

Without names each format gets its turn, for an equal part of the time. In half of the tries atheris changes bytes, and
in the other half of a JSON text one value is exchanged. What is not refused as it should be is kept in the temporary
folder, with the traceback on the screen. tests/attack/test_fuzz.py tries the same formats everywhere, with Hypothesis.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 31, 1 << 63, 1 << 70, -(1 << 70), 0.5, float("inf"), float("nan"), "", "x", "\0",
    "\ud800", "0" * 300, "2026-11-24T01:53:51Z", "9999-99-99T99:99:99Z", "../..", [], {}, [[]], [{}], {"": None},
    {"base64": "x"},
)  # fmt: skip
BYTES_MAX = 4096


def exchange(document: Any, chance: random.Random) -> Any:
    """A JSON document with one value exchanged, removed, doubled or added."""
    spots: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for at in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            spots.append((value, at))
            visit(value[at])

    visit(document)
    if not spots:
        return chance.choice(VALUES)
    value, at = chance.choice(spots)
    match chance.randrange(6):
        case 0:
            del value[at]
        case 1 if isinstance(value, dict):
            value[chance.choice([*value, "x", ""])] = chance.choice(VALUES)
        case 2:
            other, there = chance.choice(spots)
            with contextlib.suppress(LookupError):
                value[at] = json.loads(json.dumps(other[there]))
        case 3:
            value[at] = [value[at]]
        case _:
            value[at] = chance.choice(VALUES)
    return document


def one(name: str, seconds: int, folder: str) -> None:
    """Try one format for so long; the process ends here."""
    import atheris

    with atheris.instrument_imports(include=["fsrepl", "json"]):
        from fsrepl.errors import FsreplError
        from tests.attack.formats import FORMATS

    tried = FORMATS[name]

    def mutate(data: bytes, size_max: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if tried.is_json and chance.random() < 0.5:
            with contextlib.suppress(ValueError, RecursionError):
                return json.dumps(exchange(json.loads(data), chance)).encode()[:size_max]
        changed: bytes = atheris.Mutate(data, size_max)
        return changed

    def read(data: bytes) -> None:
        with contextlib.suppress(FsreplError, *tried.allowed):
            tried.read(data)

    tried.read(tried.whole)
    Path(folder, "whole").write_bytes(tried.whole)
    options = [
        f"-max_total_time={seconds}", f"-max_len={BYTES_MAX}", "-print_final_stats=1",
        f"-artifact_prefix={tempfile.gettempdir()}/fsrepl-fuzz-", folder,
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], read, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> int:
    from tests.attack.formats import FORMATS

    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzz", description="Fuzz what fsrepl reads.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"formats (default: all): {', '.join(FORMATS)}")
    parser.add_argument("--seconds", type=int, default=3600, help="for all of them")
    options = parser.parse_args()
    names = options.names or list(FORMATS)
    if unknown := sorted(set(names) - FORMATS.keys()):
        parser.error(f"there is no format {unknown[0]!r}")
    wrong = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fsrepl-fuzz-") as folder:
            call = f"from tests.attack.fuzz import one; one({name!r}, {options.seconds // len(names)}, {folder!r})"
            done = subprocess.run([sys.executable, "-c", call], stderr=subprocess.PIPE, text=True, check=False)
        said = {line.split()[0]: line.split()[1] for line in done.stderr.splitlines() if line.startswith("stat::")}
        found = "" if done.returncode == 0 else f", exit status {done.returncode}"
        print(f"{name}: {said.get('stat::number_of_executed_units:', 'no')} examples{found}", flush=True)
        if done.returncode:
            wrong.append(name)
            print(done.stderr[-6000:], file=sys.stderr, flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
