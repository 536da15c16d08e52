"""Buckets come and go: a bucket that is there is indexed, watched and scanned; one that is not is suspended."""

from __future__ import annotations

PROBE_S = 1.0
DISPLACED_S = 10.0
