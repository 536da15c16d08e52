"""Names of one file that come back: a version that is restored is shown in the file of its other names.

In a tree bucket the links of versions (see Version.link) lead to one key and version for all names of a file. Where the
file exists under another of its names, the restored version is one more name of it, with the metadata that the file has
now. Otherwise it gets a separate file. Its link is kept, so that other names that are restored later find that file.
Existing names are found by their content in the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from fsrepl.errors import StoreDamaged
from fsrepl.model.version import Kind, Version
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.journal.database import Journal
from fsrepl.views import link_groups

_Name = tuple[bytes, str]
"""A key, and a version of it."""


class FileNames:
    """The names of files in one bucket, for versions that come back together."""

    CANDIDATES_MAX = 1000
    """The number of files of equal content that are inspected for one version; those with its time come first."""

    def __init__(self, journal: Journal, bucket: OpenBucket, coming: Iterable[Version]) -> None:
        self._bucket = bucket
        self._there: dict[_Name, Version] = {}
        """By the name to which all names of a file lead: the current version of a name that exists."""
        self._leads: dict[_Name, _Name] = {}
        self._alike: dict[bytes, list[tuple[int, _Name]]] = {}
        files = [version for version in coming if version.kind is not Kind.DIRECTORY] if bucket.bucket.trees else []
        times = {version.posix.mtime_ns for version in files if version.posix is not None}
        digests = {version.digest for version in files}
        alike_there = journal.views.shown_with(bucket.address, digests) if digests else ()
        for digest, mtime_ns, key, version_id in alike_there:
            alike = self._alike.setdefault(digest, [])
            if mtime_ns in times or len(alike) < self.CANDIDATES_MAX:
                alike.append((mtime_ns, (key, version_id)))

    def of(self, version: Version) -> Version | None:
        """The current version of another name of the file that a version was of; None where there is none."""
        if not self._concerns(version):
            return None
        first = self._first((version.key, version.id))
        if first not in self._there:
            for name in self._candidates(version):
                if name[0] != version.key and self._first(name) == first and (other := self._read(name)) is not None:
                    self._there[first] = other
                    break
        return self._there.get(first)

    def came_back(self, version: Version, new: Version) -> None:
        """Note that a version is to be current again: other names that come back after it are names of its file."""
        if self._concerns(version):
            self._there.setdefault(self._first((version.key, version.id)), new)

    def joined(self, version: Version, new: Version) -> Version:
        """The new version for a name that is restored, as a name of its file."""
        if not self._concerns(version):
            return new
        other = self.of(version)
        if other is None:
            return replace(new, link=self._first((version.key, version.id)))
        return replace(new, link=(other.key, other.id), shortfall=other.shortfall)

    def with_metadata(self, version: Version) -> Version:
        """A version with the metadata that its file has now: all of it is the file's, whichever name changed it."""
        other = self.of(version)
        if other is None:
            return version
        if version.kind is Kind.LINK:  # its tags are in its record alone
            return replace(version, posix=other.posix)
        return replace(version, posix=other.posix, attrs=other.attrs, tags=other.tags)

    def _concerns(self, version: Version) -> bool:
        return self._bucket.bucket.trees and version.kind is not Kind.DIRECTORY

    def _candidates(self, version: Version) -> Iterator[_Name]:
        mtime_ns = version.posix.mtime_ns if version.posix is not None else 0
        alike = sorted(self._alike.get(version.digest, ()), key=lambda each: each[0] != mtime_ns)
        return (name for _, name in alike[: self.CANDIDATES_MAX])

    def _first(self, name: _Name) -> _Name:
        if name not in self._leads:
            self._leads[name] = link_groups.origin(self._bucket, name)
        return self._leads[name]

    def _read(self, name: _Name) -> Version | None:
        try:
            return versions.read(self._bucket, *name, marker=False)
        except StoreDamaged:
            return None
