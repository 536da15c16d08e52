"""What an administrator does, a file an idea: sites and regions, buckets, versioning, replication, roles.

Each function either does all of it or leaves things as they were. Those that concern one bucket run
in its region's thread (commands/operations.py sees to that).
"""

from __future__ import annotations
