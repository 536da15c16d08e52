"""The sending side of deliveries from one bucket of this site: its versions, rules and role, and its stored content."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from fsrepl.errors import Failed, FsreplError, Unavailable
from fsrepl.model import keys, metadata
from fsrepl.model.blockmap import BlockMap
from fsrepl.model.delta import Span
from fsrepl.model.rule import Replication, Role
from fsrepl.model.version import Rights, Status, Version
from fsrepl.region.limiter import Limiter
from fsrepl.region.limits import Progress
from fsrepl.region.runtime import Runtime
from fsrepl.replicate import decide, run_as
from fsrepl.replicate.draft import Draft, Filled, LargeDraft
from fsrepl.s3 import permissions
from fsrepl.settings import ARCHIVES
from fsrepl.storage import blocks as maps
from fsrepl.storage import shared_blocks, versions
from fsrepl.storage.bucket import OpenBucket, content_digest
from fsrepl.storage.fs import Fs
from fsrepl.storage.journal.rows import Delivery
from fsrepl.views import directories, narrowing

log = logging.getLogger("fsrepl")

_CHUNK = 8 << 20
_COMPARED_BYTES = 1 << 20


class SourceLeft(FsreplError):
    """A bucket left the site, and its deliveries with it."""


@contextlib.contextmanager
def opened(engine: Runtime, address: str, to_tree: OpenBucket) -> Iterator[Sending]:
    """A bucket of this site as a source, for deliveries to another one: see source.Opener."""
    bucket = engine.site.buckets.get(address)
    if bucket is None:
        raise SourceLeft(f"{address} is no bucket of this site any more")
    with bucket.open() as source:
        yield Sending(engine, source, to_tree)


class Sending:
    """See source.Source. to_tree: the destination, where it is a tree. Used by one thread, for one batch."""

    replaces_records = False

    def __init__(self, engine: Runtime, source: OpenBucket, to_tree: OpenBucket | None = None) -> None:
        self._engine, self._source, self._to_tree = engine, source, to_tree
        self.replication: Replication | None = source.bucket.replication
        self.rules = {rule.id: rule for rule in self.replication.rules} if self.replication else {}
        self.role: Role | None = engine.role(self.replication.role) if self.replication else None
        self._run_as_check: run_as.RunAsCheck | None = None

    @property
    def address(self) -> str:
        return self._source.address

    @property
    def here(self) -> OpenBucket:
        return self._source

    def version(self, delivery: Delivery) -> Version | None:
        version = self._engine.recent.version(delivery.source, delivery.key, delivery.id)
        if version is None:
            version = versions.read(self._source, delivery.key, delivery.id, marker=delivery.marker)
        return versions.ensure_whole(version) if version else None

    def facts(
        self, delivery: Delivery, version: Version | None, there: Callable[[Version], dict[str, Any]]
    ) -> decide.Facts:
        rule = self.rules.get(delivery.rule)
        recorded = version.deliveries.get(delivery.destination) if version else None
        if version is None or recorded is None:
            key_there = self._engine.journal.versions.object(delivery.source, delivery.key) is not None
            return decide.Facts(source_configured=self.replication is not None, source_there=False,
                                key_there=key_there, rule_enabled=rule is not None and rule.enabled)  # fmt: skip
        permission = permissions.permission_to_send(
            self.role,
            source=delivery.source,
            destination=delivery.destination,
            key=delivery.key.decode("utf-8", "surrogateescape"),
            marker=version.marker,
            tags=bool(version.tags) or (recorded.edit and metadata.TAGS in version.edited),
            acl=_has_acl(version) or (recorded.edit and metadata.ACL in version.edited),
            owner_override=bool(recorded.owner),
            batch=bool(recorded.job),
            large=not recorded.edit and version.size >= self._engine.settings.replication.large_file_bytes,
        )
        refusal = permission.reason or self._run_as_refusal(version)
        return decide.Facts(
            source_configured=self.replication is not None,
            rule_enabled=rule is not None and rule.enabled and rule.destination == delivery.destination,
            permission=refusal,
            with_tags=permission.with_tags,
            archived=version.storage_class in ARCHIVES,
            edit=recorded.edit,
            **there(version),
        )

    def _run_as_refusal(self, version: Version) -> str:
        """S3's reason where the filesystem refuses the version to the user of the role; empty where it does not."""
        try:
            if self.role is None or self.role.uid is None or (user := run_as.run_as(self.role)) is None:
                return ""
            if self._run_as_check is None:
                self._run_as_check = run_as.RunAsCheck(user, self._source, self._to_tree)
            return self._run_as_check.refusal(version)
        except Failed as error:
            log.warning("role refused bucket=%s: %s", self._source.address, error)
            return error.reason

    def is_pending(self, key: bytes, version_id: str, destination: str) -> bool:
        version = versions.read(self._source, key, version_id, marker=False)
        recorded = version.deliveries.get(destination) if version is not None else None
        return recorded is not None and recorded.status is Status.PENDING

    def rights(self, path: bytes) -> Rights | None:
        return directories.rights_at(self._source, path)

    def order(self, key: bytes) -> tuple[int, str] | None:
        return narrowing.order_in(self._engine, self.address)(key)

    def content(self, version: Version, *, just_stored: bool = False) -> StoredContent:
        data = self._engine.recent.data(version.digest) if just_stored and version.digest else None
        return StoredContent(self._source, version, self._engine.limiter, data)

    @contextlib.contextmanager
    def coming(self, version: Version) -> Iterator[StoredContent]:
        """The content of a version that is being captured: that of the file in the place of its view. Raises OSError,
        Unavailable where it is another file by now."""
        with StoredContent(self._source, version, self._engine.limiter) as content:
            content.open_view()
            yield content

    def small_content(self, version: Version) -> bytes:
        """All of a small content; from memory, where it was stored a moment ago."""
        data = self._engine.recent.data(version.digest) if version.digest else None
        if data is not None:
            return data
        with self.content(version) as content:
            return content.whole()

    def map_of(self, digest: bytes) -> BlockMap | None:
        return maps.read(self._source, digest)

    def released(self) -> contextlib.AbstractContextManager[None]:
        return self._source.fs.released()


def _has_acl(version: Version) -> bool:
    return version.posix is not None and bool(version.posix.acl or version.posix.default_acl)


class StoredContent:
    """See source.Content: a stored file, opened when it is first needed, until the end of a `with` block.

    data: the content, where it is in memory.
    """

    def __init__(
        self, bucket: OpenBucket, version: Version, limiter: Limiter | None, data: bytes | None = None
    ) -> None:
        self._bucket, self._version, self._limiter, self._data = bucket, version, limiter, data
        self._opened = self._view = -1
        self._was_sent = False

    @property
    def _fs(self) -> Fs:
        return self._bucket.fs

    @property
    def _fd(self) -> int:
        if self._opened < 0:
            try:
                self._opened = versions.open_content(self._bucket, self._version)
            except FileNotFoundError as error:
                raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
        return self._opened

    @property
    def _from(self) -> int:
        """Where it is read from, to be sent."""
        return self._view if self._view >= 0 else self._fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._opened >= 0:
            self._fs.close(self._opened)
            self._opened = -1

    def open_view(self) -> None:
        """Read it from its view, also before it is stored. Raises OSError, Unavailable where that is another file."""
        self._opened = self._bucket.open_view(self._version.key)
        if not self._is_like(self._fs.stat_fd(self._opened)):
            raise Unavailable("its file has changed")

    def copy_to(self, draft: Draft, progress: Progress | None) -> None:
        if self._data:
            draft.write(self._data)
            if self._limiter:
                self._limiter.sent(len(self._data))
            return
        if self._data is not None or keys.is_directory(self._version.key):
            return  # it is empty
        self.fill(draft, progress)

    def fill(self, draft: Filled, progress: Progress | None) -> None:
        """Copy all of the stored file, at the pace of the limit. Raises as copy_to does."""
        size, at, written = self._version.size, 0, 0
        while True:
            at, until = self._fs.next_data(self._fd, at, size)
            count = self._copy_some(draft, at, until - at, progress) if at < until else 0
            if not count:
                break
            at = written = at + count
            if progress:
                progress.bytes_crossed += count
                progress.came_to(at)
        if progress:
            progress.came_to(at)
        if written < at:  # the content ends in a hole
            draft.end_at(at)

    def is_whole(self, on_read: Callable[[int], None] | None = None) -> bool:
        return content_digest(self._bucket, self._fd, on_read) == self._version.digest

    def blocks(self) -> BlockMap | None:
        found = maps.of_file(self._bucket, self._version.digest, self._fd)
        return found if self._fs.stat_fd(self._fd).st_size == self._version.size else None

    def send(self, draft: LargeDraft, spans: Iterable[Span], progress: Progress) -> list[Span]:
        sent: list[Span] = []
        with self._warm_view():
            for span in spans:
                sent.append(span)
                progress.came_to(span.at)
                for part in self._parts(draft, span):
                    at = part.at
                    while at < part.end:
                        count = self._send_some(draft, at, part.end - at, progress)
                        if not count:
                            return sent
                        at += count
                        progress.came_to(at)
        return sent

    @contextlib.contextmanager
    def _warm_view(self) -> Iterator[None]:
        """Read from the view where that is in memory, the stored file is not, and nothing tells that they differ.

        The first time only: what does not match then, since the view has changed meanwhile, is sent again from here.
        """
        fs, view, is_first, self._was_sent = self._fs, -1, not self._was_sent, True
        try:
            with contextlib.suppress(OSError):
                if is_first:
                    view = self._bucket.open_view(self._version.key)
                    if self._is_like(fs.stat_fd(view)) and shared_blocks.is_warmer(fs, view, self._fd):
                        self._view = view
            yield
        finally:
            self._view = -1
            if view >= 0:
                fs.close(view)

    def _is_like(self, found: os.stat_result) -> bool:
        """Whether a file may have the content of this version: what does not, is noticed when it is read back."""
        posix = self._version.posix
        is_same_time = posix is None or posix.mtime_ns == found.st_mtime_ns
        return self._fs.is_regular(found) and found.st_size == self._version.size and is_same_time

    def _parts(self, draft: LargeDraft, span: Span) -> Iterator[Span]:
        """The parts of a span that differ from what the destination has in its place."""
        if not draft.compares:
            yield from self.data_of(span)
            return
        at = span.at
        while at < span.end and (data := self._fs.read_at(self._from, min(_COMPARED_BYTES, span.end - at), at)):
            yield from draft.differing(at, data)
            at += len(data)

    def data_of(self, span: Span) -> Iterator[Span]:
        """A span without the holes of the stored file: the draft has zeros there."""
        at = span.at
        while True:
            at, end = self._fs.next_data(self._from, at, span.end)
            if at >= end:
                return
            yield Span(at, end - at)
            at = end

    def whole(self) -> bytes:
        """All of a small content."""
        return self._data if self._data is not None else self._fs.read_all(self._fd, self._version.size)

    def read(self, at: int, count: int) -> bytes:
        """A part of the content."""
        return self._fs.read_at(self._fd, count, at)

    def _send_some(self, draft: LargeDraft, at: int, most: int, progress: Progress) -> int:
        try:
            count = self._copy_some(draft, at, most, progress)
        except Unavailable:
            if progress.unwanted:
                draft.forget()
            raise
        progress.bytes_crossed += count
        return count

    def _copy_some(self, draft: Filled | LargeDraft, at: int, most: int, progress: Progress | None) -> int:
        """Copy the next bytes; their number. A background worker, which has a progress, waits until the limit allows
        it. Raises Unavailable where that was stopped."""
        limiter = self._limiter
        most = min(most, limiter.chunk_bytes(_CHUNK) if limiter and progress else _CHUNK)
        if progress and not (progress.claim(limiter, most) if limiter else not progress.stop):
            raise Unavailable("its copy was stopped")
        claimed, count = most if progress else 0, 0
        try:
            count = draft.copy(self._from, at, most)
        finally:
            if limiter:
                limiter.sent(count - claimed)
        return count
