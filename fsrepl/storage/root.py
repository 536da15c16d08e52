"""A region's root directory and its identity."""

from __future__ import annotations

REGION_IDENTITY = b".fsrepl-region.json"
