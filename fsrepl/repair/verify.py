"""Verification: a source, its destinations and the views of both, compared by hash with what they should be.

Verification writes nothing and needs no daemon. While a daemon runs, each suspected difference is checked again
once the regions have finished their present work. Versions are read one at a time, so that memory does not
grow with a bucket; a temporary index holds which of them is current. With `--repair`, repair/repair.py repairs
each difference, which is then checked once more. Source: design.md, section 5.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from msgspec.structs import replace

from fsrepl.errors import FsreplError, Refused, StoreDamaged, reason
from fsrepl.model import clock, keys
from fsrepl.model.address import region_of
from fsrepl.model.version import Status, Version, Versioning
from fsrepl.repair import compare, verify_links
from fsrepl.repair.compare import Difference, Problem, Verdict
from fsrepl.repair.sides import Side
from fsrepl.repair.verify_host import HostSide
from fsrepl.repair.verify_progress import Dates, Hooks, Tally
from fsrepl.repair.verify_records import Records, deleted_there_alone
from fsrepl.repair.verify_remote import RemoteSide
from fsrepl.repair.verify_stored import StoredVersions
from fsrepl.repair.verify_views import Views, mount_over
from fsrepl.s3.edit_rules import LOST_THERE
from fsrepl.storage import intents, versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.documents import read_document
from fsrepl.storage.fs import GONE
from fsrepl.storage.intents import Act
from fsrepl.storage.journal.database import Journal
from fsrepl.storage.site import Site
from fsrepl.views import directories

_LOOK_S = 0.2
_AT_ONCE = 256
"""Number of suspected differences that are checked again together."""

Look = Callable[[], Difference | None]
"""Compares once more the keys that differed."""


class Verification:
    """Compares a source with one of its destinations, or with all of them. Needs close(), or a `with` block.

    Raises Refused for a source that was never versioned or a destination that is none, FsreplError where
    the source is away.
    """

    def __init__(
        self, site: Site, source: str, destination: str | None, journal: Journal | None, hooks: Hooks | None = None
    ) -> None:
        self.site, self.source, self.only, self.journal = site, source, destination, journal
        self.hooks = hooks or Hooks()
        self.tally = Tally()
        self._versions = StoredVersions(self.hooks, self.tally)
        self._index = Journal("")
        """The current version of each key, in a temporary file of SQLite's own."""
        self._sides: dict[str, Side | None] = {}
        self._found: list[tuple[Difference, Look]] = []
        self._groups: list[list[bytes]] | None = None
        """The keys of the source's files with several names."""
        self.records, self.views = Records(site), Views(journal)
        self._remotes: dict[str, RemoteSide | HostSide] = {}
        """The buckets that are no trees here, and that versions were delivered to."""
        bucket = site.bucket(source)
        opened = bucket.open()
        self._sides[source] = self._prepare(source, opened)
        if bucket.versioning is Versioning.OFF:
            self.close()
            raise Refused("InvalidRequest", f"{source} was never versioned: it has no versions to verify")
        rules = bucket.replication.rules if bucket.replication else ()
        self.destinations = sorted({rule.destination for rule in rules})
        if destination is not None:
            self._check_destination(destination)
            self.destinations = [destination]

    def _check_destination(self, destination: str) -> None:
        is_tree = region_of(destination) not in self.site.destinations
        if is_tree:
            self.site.bucket(destination)
        sent = self.journal.deliveries.counts(self.source) if self.journal is not None else {}
        back = self.site.buckets[destination].replication if is_tree else None
        returns = back is not None and any(rule.destination == self.source for rule in back.rules)
        if destination in self.destinations or any(to == destination for to, _, _ in sent) or returns:
            return
        known = ", ".join(self.destinations) or "none"
        self.close()
        raise Refused("InvalidRequest", f"{destination} is no destination of {self.source}; its destinations: {known}")

    def _prepare(self, address: str, opened: OpenBucket) -> Side:
        self._index.bucket_id(address)
        made_ns = 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            identity = read_document(opened.fs, opened.meta, b"bucket.json") or {}
            made_ns = clock.parse(str(identity["created"]))
        return Side(address, opened, made_ns)

    def _side(self, address: str) -> Side | None:
        """A bucket to compare with; None where it was not asked for, or is away."""
        if self.only is not None and address not in (self.source, self.only):
            return None
        if address not in self._sides:
            self._sides[address] = None
            if region_of(address) in self.site.destinations:
                return None
            try:
                bucket = self.site.bucket(address)
                opened = bucket.open()
            except FsreplError as error:
                self.tally.away[address] = str(error)
            else:
                if opened.versions >= 0:
                    self._sides[address] = self._prepare(address, opened)
                else:
                    opened.close()
        return self._sides[address]

    def close(self) -> None:
        for side in self._sides.values():
            if side is not None:
                side.bucket.close()
        self._sides.clear()
        self._index.close()

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the pass

    def differences(self) -> Iterator[Difference]:
        """All differences, as they are found (and repaired). The tally is complete afterwards."""
        with self._index.transaction():
            # differences of the store are reported, and repaired, before capture reads its views
            for suspicions in (self._stored(), self._seen()):
                for suspicion in suspicions:
                    self._found.append(suspicion)
                    if len(self._found) >= _AT_ONCE:
                        yield from self._confirmed()
                yield from self._confirmed()
        if self.hooks.verified is not None:
            self.hooks.verified.finish()
        self.hooks.progress(self.tally)

    def _confirmed(self) -> Iterator[Difference]:
        """Differences confirmed by a second check, and after a repair by a third."""
        found, self._found = self._found, []
        if found:
            self.hooks.settled()
            self._refresh()
        for _, look in found:
            difference = look()
            if difference is None:
                continue
            self.tally.differences += 1
            if self.hooks.repair is not None:
                self.hooks.repair(difference)
                after = look()
                while after is not None and self._is_repairing(after):  # in the background: a large one takes a while
                    self.hooks.settled()
                    time.sleep(_LOOK_S)
                    after = look()
                difference = replace(difference, repaired=after is None, why=after.why if after else difference.why)
            elif self._is_repairing(difference):
                difference = replace(difference, why=f"repairing: {difference.why}; it is fetched from another bucket")
            self.tally.left += not difference.repaired
            yield difference

    def _is_repairing(self, difference: Difference) -> bool:
        """Whether a running daemon is about to restore the content of a version."""
        side = self._sides.get(difference.bucket)
        if difference.problem is not Problem.DIGEST or side is None or not self.hooks.is_daemon_running():
            return False
        with contextlib.suppress(OSError):
            found = (intent for _, group in intents.read_intents(side.bucket) for intent in group)
            return any((i.act, i.key, i.version) == (Act.FETCH, difference.key, difference.version) for i in found)
        return False

    def _refresh(self) -> None:
        """Read changed documents again."""
        for side in self._sides.values():
            if side is not None:
                with contextlib.suppress(FsreplError):
                    side.bucket.bucket.refresh(side.bucket)

    def _stored(self) -> Iterator[tuple[Difference, Look]]:
        source = self._side(self.source)
        assert source is not None
        yield from self._store(source, self._sent)
        for remote in list(self._remotes.values()):
            yield from self._compare_remote(remote)
        for address in [*self.destinations, *self._sides]:
            self._side(address)
        for side in [s for s in self._sides.values() if s is not None and s is not source]:
            yield from self._store(side, partial(self._received, source))

    def _seen(self) -> Iterator[tuple[Difference, Look]]:
        for side in [s for s in self._sides.values() if s is not None]:
            yield from self._views(side)
            yield from self._directories(side)
            if (source := self._side(self.source)) is not None and side is not source:
                yield from self._deletions(source, side)
                yield from self._links(source, side)

    def _store(
        self, side: Side, compared: Callable[[Side, Version], Iterator[tuple[Difference, Look]]]
    ) -> Iterator[tuple[Difference, Look]]:
        """Every stored version of a bucket, checked alone and compared with the other side."""
        unreadable: list[tuple[bytes, OSError]] = []
        for path, fd, name, stored in versions.stream(side.bucket, lambda *about: unreadable.append(about)):
            version, difference = self._versions.examine(side, fd, path, name, stored)
            self.hooks.progress(self.tally)
            if difference is not None:
                self.views.bad.add((side.address, difference.key, stored.id))
                yield difference, partial(self._versions.examine_again, side, path, name, stored)
            if version is None:
                continue
            self.tally.checked += 1
            if compare.lacks_date(version) and version.posix is not None:
                before = self.tally.dates.get(side.address)
                number = before.number + 1 if before else 1
                self.tally.dates[side.address] = Dates(number, version.key, version.posix.mtime_ns)
            self._index.versions.add(side.address, replace(version, deliveries={}))
            if difference is None:
                yield from compared(side, version)
        for path, error in unreadable:
            difference = Difference(side.address, path + b"/", "", Problem.UNREADABLE, reason(error))
            yield difference, partial(self._directory_again, side, path)

    def _directory_again(self, side: Side, path: bytes) -> Difference | None:
        try:
            fd = side.bucket.fs.open_dir(side.bucket.versions, path)
        except OSError as error:
            if error.errno in GONE:
                return None
            return Difference(side.address, path + b"/", "", Problem.UNREADABLE, reason(error))
        side.bucket.fs.close(fd)
        return None

    # -- one version, on both sides

    def _sent(self, source: Side, version: Version) -> Iterator[tuple[Difference, Look]]:
        """Differences of a source's version at the buckets that it was delivered to, or came from."""
        for address, recorded in version.deliveries.items():
            if self.only in (None, address):
                self.tally.pending += recorded.status is Status.PENDING
                self.tally.failed += recorded.status is Status.FAILED
        had = {a for a, d in version.deliveries.items() if d.status is Status.COMPLETED or d.reason == LOST_THERE}
        for address in had | {version.source}:
            if address in version.deliveries and region_of(address) in self.site.destinations:
                if version.deliveries[address].status is Status.COMPLETED:
                    yield from self._sent_to_service(address, version)
                continue
            there = self._side(address) if address in version.deliveries or address in self._wanted() else None
            if there is not None and not self._has(there, version):
                look = partial(self.records.compare_afresh, source, there, version)
                if (difference := look()) is not None:
                    yield difference, look

    def _sent_to_service(self, address: str, version: Version) -> Iterator[tuple[Difference, Look]]:
        """Have a version compared with its replica there, together with many others, since each question takes a
        while."""
        if self.only not in (None, address) or address in self.tally.away:
            return
        if address not in self._remotes:
            source = self._sides[self.source]
            assert source is not None
            role, service = self.records.role_of(source), self.site.services.get(region_of(address))
            self._remotes[address] = (
                RemoteSide(service.bucket(address), self.source, role, self.journal)
                if service is not None
                else HostSide(address, self.source, role, self.hooks.examine)
            )
        remote = self._remotes[address]
        remote.waiting.append(version)
        if remote.is_full:
            yield from self._compare_remote(remote)

    def _compare_remote(self, remote: RemoteSide | HostSide) -> Iterator[tuple[Difference, Look]]:
        for compared in remote.compare_waiting():
            if compared.away:
                self.tally.away[remote.address] = compared.away
                continue
            self.tally.checked += 1
            self.tally.bytes += compared.read_bytes
            self.hooks.read(compared.read_bytes)
            self.hooks.progress(self.tally)
            if compared.difference is not None:
                yield compared.difference, partial(self._compare_again, remote, compared.version)

    def _compare_again(self, remote: RemoteSide | HostSide, version: Version) -> Difference | None:
        """The difference of an object now, from its source's version as it is now."""
        source = self._side(self.source)
        assert source is not None
        now = versions.read_whole(source.bucket, version.key, version.id, marker=version.marker)
        recorded = now.deliveries.get(remote.address) if now is not None else None
        if now is None or recorded is None or recorded.status is not Status.COMPLETED:
            return None
        compared = remote.compare(now)
        if compared.away:
            self.tally.away[remote.address] = compared.away
        return compared.difference

    def _wanted(self) -> set[str]:
        return {self.only} if self.only is not None else {*self.destinations, *self._sides}

    def _has(self, side: Side, version: Version) -> bool:
        try:
            return versions.has(side.bucket, version.key, version.id, marker=version.marker)
        except OSError:
            return True  # reported when that side is read

    def _received(self, source: Side, there: Side, version: Version) -> Iterator[tuple[Difference, Look]]:
        """Differences of a version at a destination from the source's version."""
        with contextlib.suppress(OSError, StoreDamaged):  # reported when that side is read
            original = versions.read_whole(source.bucket, version.key, version.id, marker=version.marker)
            difference = self.records.compare(source, there, original, version)
            if difference is not None:
                yield difference, partial(self.records.compare_afresh, source, there, version)

    def _deletions(self, source: Side, there: Side) -> Iterator[tuple[Difference, Look]]:
        """Objects of a source that are deleted at a destination alone."""
        for key, current in self._index.versions.objects(there.address):
            mine = self._index.versions.object(source.address, key) if current.marker else None
            if mine is not None and not mine.marker:
                look = partial(deleted_there_alone, source, there, key)
                if (difference := look()) is not None:
                    yield difference, look

    # -- views

    def _views(self, side: Side) -> Iterator[tuple[Difference, Look]]:
        unlike: list[bytes] = []
        for key, current in self._index.versions.objects(side.address):
            if not current.marker and not current.digest:
                continue
            self.hooks.progress(self.tally)
            verdict, difference = self.views.compare(side, key, current)
            if difference is not None:
                yield difference, partial(self.views.compare_afresh, side, key)
            elif verdict is Verdict.PENDING and self.views.is_damage(side, key, current):
                self.tally.pending += 1
            elif verdict is Verdict.PENDING and (mount := mount_over(side.bucket, key)):
                at = side.address, mount
                self.tally.mounted[at] = self.tally.mounted.get(at, 0) + 1
            elif verdict is Verdict.PENDING:
                unlike.append(key)
                if len(unlike) >= _AT_ONCE:
                    yield from self._captured(side, unlike)
                    unlike = []
        yield from self._captured(side, unlike)

    def _captured(self, side: Side, unlike: Sequence[bytes]) -> Iterator[tuple[Difference, Look]]:
        """Check files that are not as recorded, perhaps without an event, once capture has read them."""
        if not unlike:
            return
        self.hooks.capture(side.address, unlike)
        self._refresh()
        for key in unlike:
            # the open directory may have been removed and made again meanwhile
            side.bucket.views.forget(keys.split(key)[0])
            current = side.current(key)
            if current is None:
                continue
            verdict, difference = self.views.compare(side, key, current)
            if difference is not None:
                yield difference, partial(self.views.compare_afresh, side, key)
            self.tally.pending += verdict is Verdict.PENDING

    def _links(self, source: Side, side: Side) -> Iterator[tuple[Difference, Look]]:
        """Views that are files of their own, and names of one file at the source."""
        if not (source.bucket.bucket.trees and side.bucket.bucket.trees) or side.bucket.bucket.sharing == "link":
            return
        if self._groups is None:
            self._groups = verify_links.groups(source, self._index)
        for names in self._groups:
            for first, key in verify_links.apart(source, side, names, self._index.versions):
                look = partial(self._linked_again, source, side, first, key)
                if (difference := look()) is not None:
                    yield difference, look

    def _linked_again(self, source: Side, side: Side, first: bytes, key: bytes) -> Difference | None:
        for each in (source, side):  # the open directories may have been removed and made again meanwhile
            for name in (first, key):
                each.bucket.views.forget(keys.split(name)[0])
        current = self.journal.versions if self.journal is not None else None
        return verify_links.difference(source, side, current, first, key)

    # -- directories

    def _directories(self, side: Side) -> Iterator[tuple[Difference, Look]]:
        """Directories that replication made, and whose permissions differ from their sources'."""
        for path in directories.with_parents(self._index.versions.version_directories(side.address)):
            look = partial(self._directory_rights, side, path)
            if (difference := look()) is not None:
                yield difference, look

    def _directory_rights(self, side: Side, path: bytes) -> Difference | None:
        for each in self._sides.values():
            if each is not None:
                each.bucket.views.forget(path)  # it may have been removed and made again meanwhile
        others = {address: each.bucket for address, each in self._sides.items() if each is not None}
        why = directories.difference(side.bucket, directories.readers(others), path)
        return Difference(side.address, path + b"/", "", Problem.METADATA, why, path=path + b"/") if why else None
