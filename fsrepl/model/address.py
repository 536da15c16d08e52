"""Addresses of buckets and objects in commands: REGION/BUCKET and REGION/BUCKET/KEY. Pure.

Documents and the journal store the text REGION/BUCKET itself. Source: design.md, section 5.
"""

from __future__ import annotations

import os

from msgspec import Struct

from fsrepl.errors import Usage
from fsrepl.model import keys


class Address(Struct, frozen=True):
    """A bucket; with a key, an object in it, or all objects under a prefix where one is accepted.

    region and name are not empty. They need not exist.
    """

    region: str
    name: str
    key: bytes = b""

    @staticmethod
    def parse(text: str) -> Address:
        """Read REGION/BUCKET[/KEY]. Raises Usage."""
        region, _, rest = text.partition("/")
        name, _, key = rest.partition("/")
        if not (region and name):
            raise _unreadable(text)
        return Address(region, name, os.fsencode(key))

    @staticmethod
    def parse_bucket(text: str) -> Address:
        """Read REGION/BUCKET. Raises Usage, also where more text follows."""
        if text.count("/") != 1:
            raise _unreadable(text)
        return Address.parse(text)

    @property
    def bucket(self) -> str:
        """The bucket's address, as text."""
        return f"{self.region}/{self.name}"

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return f"{self.bucket}/{os.fsdecode(self.key)}" if self.key else self.bucket


def region_of(bucket: str) -> str:
    """The region in a bucket's address, without parsing an Address; called very often."""
    return bucket.partition("/")[0]


def name_of(bucket: str) -> str:
    """The bucket's name in its address."""
    return bucket.partition("/")[2]


def _unreadable(text: str) -> Usage:
    named = keys.shown(os.fsencode(text))
    return Usage(f'"{named}" does not name a bucket; write REGION/BUCKET, such as eu-west-1/photos')
