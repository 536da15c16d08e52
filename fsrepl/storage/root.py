"""A region's root directory, verified by its identity file.

A root without an identity file, or with a foreign one, is offline: nothing is read from it or written to it. A missing
mount is therefore an outage and never a mass delete. Source: design.md, sections 2 and 3 (G8, G9).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct, field

from fsrepl.errors import Away, Unavailable, Usage, reason
from fsrepl.model.clock import Clock
from fsrepl.settings import RegionSettings
from fsrepl.storage import documents, probe
from fsrepl.storage.fs import Fs
from fsrepl.storage.tiers import Tier, tier_address

REGION_IDENTITY = b".fsrepl-region.json"


class Identities(Struct):
    """The identities of the site and of the regions, buckets and tiers attached to it."""

    site: str = ""
    regions: dict[str, str] = field(default_factory=dict)
    buckets: dict[str, str] = field(default_factory=dict)
    tiers: dict[str, str] = field(default_factory=dict)
    """By "REGION/CLASS"."""


class Root:
    """The root directory of a region of the site. The site sets the attributes to match its settings."""

    def __init__(self, fs: Fs, now: Clock, identities: Identities, settings: RegionSettings) -> None:
        self.fs, self.now, self.settings = fs, now, settings
        self._identities = identities
        self.left = ""
        """A message for users that the site no longer names the region; empty while it does."""
        self.silent_s = 0.0
        """How long the region gave no answer to a command's query; 0 where it did. It is then not accessed, since the
        command would hang too."""
        self.silent_tiers: frozenset[str] = frozenset()
        """The storage classes whose tiers did not answer."""
        self.keeps_private = False
        """Whether a folder private to the daemon is closed again where others can read it; set for the process that
        does the work."""
        self._checked: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def path(self) -> Path:
        return self.settings.path

    @property
    def sharing(self) -> str:
        return self.settings.sharing

    def tier(self, storage_class: str) -> Tier | None:
        """The tier of a storage class; None where the class is a label."""
        found = self.settings.classes.get(storage_class)
        if found is None:
            return None
        expected = self._identities.tiers.get(tier_address(self.name, storage_class), "")
        return Tier(self.fs, self.name, found, expected, storage_class in self.silent_tiers)

    @property
    def not_attached(self) -> str:
        return f"region {self.name} is not attached; `fsrepl region add {self.name}={self.path}` attaches it"

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """The root, with its identity verified. Raises Unavailable where it is offline or foreign."""
        if self.left:
            raise Usage(self.left)
        if self.silent_s:
            raise Unavailable(f"region {self.name}: {self.path}: {probe.no_answer(self.silent_s)}")
        try:
            fd = self.fs.open_root(self.path)
        except OSError as error:
            raise Away(f"region {self.name} is offline: {self.path}: {reason(error)}") from error
        try:
            self._check(fd)
            yield fd
        finally:
            self.fs.close(fd)

    def _check(self, fd: int) -> None:
        name, path = self.name, self.path
        expected = self._identities.regions.get(name)
        if expected is None:
            raise Away(self.not_attached)
        try:
            found, root = self.fs.stat(fd, REGION_IDENTITY), self.fs.stat_fd(fd)
        except OSError as error:
            raise Away(f"region {name} is offline: {path} has no {REGION_IDENTITY.decode()} (not mounted?)") from error
        change = (root.st_dev, root.st_ino, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        if self._checked == change:
            return
        try:
            identity = documents.read_document(self.fs, fd, REGION_IDENTITY) or {}
        except (OSError, ValueError) as error:
            raise Unavailable(f"region {name}: its identity at {path} cannot be read: {error}") from error
        if identity.get("uuid") != expected:
            raise Away(
                f"region {name} is offline: {path} holds another region "
                f"({identity.get('name', '?')}, {identity.get('uuid', '?')})"
            )
        claim = identity.get("site")
        if isinstance(claim, dict) and claim.get("uuid") != self._identities.site:
            raise Away(
                f"region {name} is offline: another site has attached it, with its state in {claim.get('state')}; "
                f"`fsrepl region add {name}={path}` takes it back"
            )
        self._checked = change
