"""Roles as JSON: `role ls`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fsrepl.model.keys import Document
from fsrepl.s3 import arn


def roles(names: Sequence[str], used_by: Mapping[str, Sequence[str]]) -> list[Document]:
    return [{"RoleName": n, "Arn": arn.role_arn(n), "UsedBy": list(used_by.get(n, ()))} for n in names]
