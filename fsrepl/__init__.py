"""S3 cross-region replication for ordinary directories."""

from __future__ import annotations

__version__ = "0.1.0"
