#!/usr/bin/env bash
# msgspec 0.23.0: objects of a Struct with `eq=False` and an `__eq__` of its own are equal and unequal at once: `a == b`
# and `a != b` are both true.
#
# In Python `!=` is the opposite of `==` unless a class says otherwise, so that one writes `__eq__` alone; dataclasses
# and ordinary classes keep to that. `eq=False` is what one reaches for to say "I write this myself". msgspec leaves the
# C function for `!=` in place then, which falls back to identity. Without `eq=False` the same class is right.
# Containers and tests mostly ask `==`, so nothing is seen there; code that asks `if old != new` sees a change each
# time: a replication that never comes to rest, a record that is written again and again.
#
# fsrepl's Struct with an `__eq__` of its own goes without `eq=False` (model/version.py, `Place`).
#
# Exit status 0: behaves as described. 1: it no longer does. 77: the package cannot be fetched here. Installs into a
# temporary folder, and removes that.
set -euo pipefail
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
python3 -m pip install -q --target "$home/packages" msgspec==0.23.0 2>"$home/log" || { echo "msgspec 0.23.0 cannot be fetched here"; exit 77; }
PYTHONPATH="$home/packages" python3 - <<'PY'
import sys
from dataclasses import dataclass

import msgspec

print("msgspec", msgspec.__version__)


class ByPath:
    def __eq__(self, other):
        return self.path == other.path


class Own(msgspec.Struct, eq=False):
    path: str
    seen: int = 0
    __eq__ = ByPath.__eq__


class OwnWithoutOption(msgspec.Struct):
    path: str
    seen: int = 0
    __eq__ = ByPath.__eq__


@dataclass(eq=False)
class OwnDataclass:
    path: str
    seen: int = 0
    __eq__ = ByPath.__eq__


seen = {}
for kind in (OwnDataclass, OwnWithoutOption, Own):
    a, b = kind("k", 1), kind("k", 2)
    seen[kind.__name__] = (a == b, a != b)
    print(f"{kind.__name__}: (a == b, a != b) expected (True, False), seen {seen[kind.__name__]}")
if list(seen.values()) != [(True, False), (True, False), (True, True)]:
    sys.exit("no longer as described: != follows == in all of them, or in none")
PY
