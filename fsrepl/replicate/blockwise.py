"""A large version -> a hidden, verified copy in the destination, of which only what it lacks crosses.

The version's block map is compared with an earlier, interrupted try, and with a version that the destination has. The
blocks that both lack are sent, and the whole content is read back (G3). A block that does not match then is sent again,
also where it came from the older version: damage in that is noticed, and never copied.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from msgspec import Struct

from fsrepl.errors import FsreplError, Unavailable
from fsrepl.model import delta, keys
from fsrepl.model.blockmap import BlockMap
from fsrepl.model.delta import Span
from fsrepl.model.version import Version
from fsrepl.region.limits import Progress
from fsrepl.replicate import transfer
from fsrepl.replicate.draft import Base, LargeDraft, StagedReplica
from fsrepl.replicate.source import Content, Source
from fsrepl.storage import blocks as maps
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket

log = logging.getLogger("fsrepl")

_MADE_MAX = 4
"""Of so many candidates a lost map is made again: each is a pass over the content."""
_TRIES = 3
"""How often parts that do not match are sent again, before the whole copy is given up."""

_COPIED_SHARE = 16
"""A version that was copied early is built upon, unless another one has this part of the content more: that one would
have to be copied anew, which takes longer than to send so little."""

Held = tuple[bytes, str]
"""A key and a version id that the destination may have."""


class Sent(Struct, frozen=True):
    """A staged replica. damaged: the version that it was built upon, where that no longer matches its map."""

    staged: StagedReplica
    damaged: Held | None = None


def stage(
    content: Content, blocks: BlockMap, draft: LargeDraft, version: Version, base: Base | None, progress: Progress
) -> Sent:
    """Complete a draft. Raises Failed (the stored version is damaged or gone), Unavailable, OSError.

    What was received before there was a map is kept, unless the base has more.
    """
    if base is not None and draft.received_bytes:
        if version.size - draft.received_bytes <= delta.plan(blocks, base.blocks).missing_bytes:
            base = None
        else:
            draft.begin_again()
    sent = content.send(draft, draft.missing(blocks, base, progress.verified_to), progress)
    progress.came_to(version.size)
    damaged: Held | None = None
    for _ in range(_TRIES):
        if not (bad := draft.damaged(blocks, progress.verified_to)):
            return Sent(draft.stage(), damaged)
        damaged = _built_upon(base, bad, sent) or damaged
        content.send(draft, bad, progress)
    draft.forget()
    if not content.is_whole(progress.verified_to):
        raise transfer.damaged()
    raise Unavailable("the copy does not match the source; it is made again")


def _built_upon(base: Base | None, bad: Sequence[Span], sent: Sequence[Span]) -> Held | None:
    """The base, where a part that does not match was not sent."""
    if base is None or all(any(s.at <= each.at and each.end <= s.end for s in sent) for each in bad):
        return None
    return base.key, base.id


# -- what the destination has already


@contextlib.contextmanager
def base_of(
    source: Source, bucket: OpenBucket, blocks: BlockMap, version: Version, held: Sequence[Held],
    others: Callable[[BlockMap], Iterable[Held]] = lambda _: (), copied: Held | None = None,
) -> Iterator[Base | None]:  # fmt: skip
    """The version of a bucket that has most of a version's content, open; None where none has any of it.

    held: the candidates, the likeliest first. others: those to be looked at where none of them has half of the content.
    copied: the one that was copied early.
    """
    with contextlib.ExitStack() as opened:
        best, has = _best(source, bucket, version, blocks, held, copied, opened)
        if has * 2 < version.size:
            more = [each for each in others(blocks) if each not in held]
            better = _best(source, bucket, version, blocks, more, copied, opened)
            best, has = max((best, has), better, key=lambda each: each[1])
        if best is not None:
            log.debug('builds upon bucket=%s key="%s" version=%s', bucket.address, keys.shown(best.key), best.id)
        yield best


def _best(
    source: Source, bucket: OpenBucket, version: Version, blocks: BlockMap, candidates: Sequence[Held],
    copied: Held | None, opened: contextlib.ExitStack,
) -> tuple[Base | None, int]:  # fmt: skip
    """The candidate to build a content upon, and how many bytes of it that has. All that are opened are closed with
    `opened`."""
    best, most, most_worth = None, 0, 0
    for number, (key, version_id) in enumerate(candidates):
        if most == version.size:
            break
        may_make = best is None and number < _MADE_MAX
        there = _look(source, bucket, key, version_id, version, blocks, may_make=may_make)
        if there is None:
            continue
        opened.callback(bucket.fs.close, there.fd)
        has = version.size
        if there.blocks.digest != version.digest:
            has = version.size - delta.plan(blocks, there.blocks).missing_bytes
        worth = has
        if has and (key, version_id) == copied:
            worth = max(has, min(has + version.size // _COPIED_SHARE, version.size - 1))  # one with all of it is better
        if worth > most_worth:
            best, most, most_worth = there, has, worth
    return best, most


def _look(
    source: Source, bucket: OpenBucket, key: bytes, version_id: str, version: Version, wanted: BlockMap, *,
    may_make: bool,
) -> Base | None:  # fmt: skip
    """A candidate with its map; None where it is gone, or where its map is lost and would take too long to make.

    A map whose blocks are of another average size, since the content has grown or shrunk, is made again.
    """
    with contextlib.suppress(OSError, FsreplError):
        there = versions.read(bucket, key, version_id, marker=False)
        if there is None or not there.digest:
            return None
        blocks = maps.read(bucket, there.digest) or source.map_of(there.digest)
        average = wanted.average if there.digest != version.digest else 0
        fd = versions.open_content(bucket, there)
        try:
            if may_make and (blocks is None or average not in (0, blocks.average)):
                blocks = maps.of_file(bucket, there.digest, fd, average)
        except BaseException:
            bucket.fs.close(fd)
            raise
        if blocks is not None and bucket.fs.stat_fd(fd).st_size == blocks.size:
            return Base(key, version_id, fd, blocks)
        bucket.fs.close(fd)
    return None
