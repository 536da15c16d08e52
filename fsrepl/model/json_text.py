"""JSON that somebody else wrote: a document, an attribute, a line."""

from __future__ import annotations

import json
import math
from typing import Any


def loads(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for all that is no JSON, and for values nested too deep for Python.

    Some 1,000 brackets are enough for that, and an attribute of a file can hold them that a user shares with the store.
    Bytes are UTF-8: json would take zero bytes near the beginning for UTF-16 or UTF-32; only damage puts them there.
    Nor are numbers read that are none (NaN, Infinity, 1e999): int() raises OverflowError for them.
    """
    try:
        return _decode(text if isinstance(text, str) else text.decode())
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no number")
    return number


_decode = json.JSONDecoder(parse_float=_finite, parse_constant=_finite).decode
