"""The cost of versioning in space, for people, and the lifecycle rule that limits it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from fsrepl.commands.doctor_facts import mount_of
from fsrepl.settings import RegionSettings

_SHARE_BLOCKS = frozenset({"btrfs", "xfs", "bcachefs"})
OLD_VERSIONS: Mapping[str, object] = {
    "Rules": [
        {
            "ID": "old-versions",
            "Filter": {},
            "Status": "Enabled",
            "NoncurrentVersionExpiration": {"NoncurrentDays": 30, "NewerNoncurrentVersions": 3},
            "Expiration": {"ExpiredObjectDeleteMarker": True},
        }
    ]
}
"""The document of examples/lifecycle/old-versions.json."""
IN_WORDS = "after 30 days, but for the 3 newest of each object"


def cost(region: RegionSettings) -> str:
    """The space that versions take in a region, by its filesystem and its sharing."""
    mount = mount_of(os.path.realpath(region.path))
    filesystem = mount["fstype"] if mount else "this filesystem"
    if region.sharing == "link":
        now = "A stored version and its file are one, and take no more space"
    elif region.sharing == "auto" and filesystem in _SHARE_BLOCKS:
        now = f"On {filesystem} a stored version shares its blocks with its file, from 1 MiB on"
    else:
        now = f"On {filesystem}, which shares no blocks here, what people write into a bucket is stored twice"
    return f"{now}; the old content of each file that is changed or removed is kept until a lifecycle rule removes it."


def command(bucket: str) -> str:
    """The command that sets the rule, as typed into a shell."""
    return f"echo '{json.dumps(OLD_VERSIONS)}' | fsrepl lifecycle put {bucket} -"
