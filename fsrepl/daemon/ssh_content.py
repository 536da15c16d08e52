"""Parts of a stored content that the agent of a region on another machine asks for."""

from __future__ import annotations

import contextlib

from fsrepl.errors import Failed, FsreplError, Unavailable, reason
from fsrepl.link import frames
from fsrepl.link.channel import Ended
from fsrepl.link.host import Connection
from fsrepl.model.delta import Span
from fsrepl.model.version import Version
from fsrepl.region import limits
from fsrepl.region.runtime import Runtime
from fsrepl.replicate.sending import Sending, StoredContent


def give(
    engine: Runtime, connection: Connection, version: Version, progress: limits.Progress,
    wanted: frames.WantBlocks | frames.WantSpan,
) -> None:  # fmt: skip
    """Send what the agent asks for of a content. In a background worker."""
    try:
        with engine.site.bucket(wanted.at[0]).open() as bucket, Sending(engine, bucket).content(version) as content:
            if isinstance(wanted, frames.WantBlocks):
                blocks = content.blocks() if not wanted.afresh or content.is_whole(progress.verified_to) else None
                if blocks is None:
                    raise Failed("SrcObjectNotEligible", "the stored version no longer matches its BLAKE3")
                connection.send(frames.Blocks(wanted.ticket, blocks.encode()), bulk=True)
                return
            _give_span(engine, connection, content, progress, wanted)
    except Failed as error:
        _break(connection, frames.Broken(wanted.ticket, str(error), error.reason))
    except Ended:
        pass
    except (FsreplError, OSError) as error:
        _break(connection, frames.Broken(wanted.ticket, reason(error), unwanted=progress.unwanted))


def _give_span(
    engine: Runtime, connection: Connection, content: StoredContent, progress: limits.Progress, wanted: frames.WantSpan
) -> None:
    limiter, at, end = engine.limiter, wanted.start, wanted.start + wanted.size
    for part in content.data_of(Span(wanted.start, wanted.size)):
        if part.at > at:
            connection.send(frames.Chunk(wanted.ticket, at, part.at - at, None), bulk=True)
        at = part.at
        while at < part.end:
            most = min(part.end - at, limiter.chunk_bytes(frames.CHUNK_BYTES))
            if not progress.claim(limiter, most):
                raise Unavailable("its copy was stopped")
            data = b""
            try:
                data = content.read(at, most)
            finally:
                limiter.sent(len(data) - most)
            if not data:
                raise Unavailable("the stored file is shorter than it was")
            connection.send(frames.Chunk(wanted.ticket, at, len(data), data), bulk=True)
            at += len(data)
            progress.bytes_crossed += len(data)
            progress.came_to(max(progress.bytes_done, at))
    if at < end:
        connection.send(frames.Chunk(wanted.ticket, at, end - at, None), bulk=True)
    connection.send(frames.End(wanted.ticket), bulk=True)


def _break(connection: Connection, frame: frames.Broken) -> None:
    with contextlib.suppress(Unavailable):
        connection.send(frame, bulk=True)
