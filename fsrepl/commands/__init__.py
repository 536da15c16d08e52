"""The commands of administrators, a file an idea: sites and regions, buckets, versioning, replication, roles.

Each function either completes or leaves everything unchanged. Functions that concern one bucket run in its region's
thread (commands/operations.py).
"""

from __future__ import annotations
