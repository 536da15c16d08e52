"""The content of a version -> an object of an S3 service: read, verified, and sent in one request or in parts.

Content is read from the source's store and compared with its BLAKE3 before an object is made of it, and the service
compares what arrives with an MD5 and a SHA-256. A service that was seen to accept wrong ones is not believed: what it
has is read back. Large content is read once, and sent in parts, of which an object is made at the end. The upload's id
is in the journal, so that a restart sends only the parts that are missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from functools import partial

from blake3 import blake3
from msgspec import Struct

from fsrepl.errors import Failed, Unavailable
from fsrepl.model.version import Version
from fsrepl.region.limiter import Limiter
from fsrepl.region.limits import Progress
from fsrepl.remote.bucket import Part, RemoteBucket, Sums, sums_of
from fsrepl.remote.failures import Absent, ServiceRefused
from fsrepl.remote.form import Form
from fsrepl.remote.puts import Body
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket

PART_MIN_BYTES = 5 << 20
_PART_BYTES = 8 << 20
"""Parts up to this size are sent from memory."""
_PLACES = threading.BoundedSemaphore(8)
"""Places for parts in memory, for all uploads of the process. One upload takes at most six."""
PARTS_MAX = 10_000
_PARTS_AT_ONCE = 4
_CHUNK = 1 << 20
_LOOK_S = 0.5
_ONE_MAX_BYTES = 1 << 30
"""Content of this size goes in parts even where the settings do not call it large: S3 takes 5 GB in one request."""
_PART_LOST = "InvalidPart"
"""S3's code where a part that had arrived is not there any more, or not as it was."""
_WHOLE_BYTES = 256 << 10
"""Content up to this size is read once, into memory."""


class Section(Body):
    """A section of an open file, as the body of a request."""

    def __init__(
        self, read_at: Callable[[int, int], bytes], start: int, size: int, claim: Callable[[int], int]
    ) -> None:
        """read_at: reads at most a number of bytes from a position of the file. claim: waits until some may be sent;
        how many, at most the given number."""
        self.read_at = read_at
        self._start, self._size, self._at, self._claim = start, size, 0, claim

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._at
        count = left if size < 0 else min(size, left)
        if self.is_sent and count:
            count = self._claim(count)
        data = self.read_at(count, self._start + self._at)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return self._size

    def chunks(self) -> Iterator[bytes]:
        """The whole section."""
        self.seek(0)
        while chunk := self.read(_CHUNK):
            yield chunk
        self.seek(0)


class Upload(Struct, frozen=True):
    """One version to be made an object. note_upload: records the id of an upload in parts, before any part is sent."""

    source: OpenBucket
    version: Version
    bucket: RemoteBucket
    name: str
    form: Form
    tags: dict[str, str]
    storage_class: str
    limiter: Limiter
    is_believed: bool
    progress: Progress | None = None
    upload: str = ""
    note_upload: Callable[[str], None] = lambda _: None


def send(upload: Upload, *, data: bytes | None, large_bytes: int) -> str:
    """Make a version; the service's id of it. data: the content, already hashed, where it is in memory.

    Raises Failed (the stored version is damaged or gone, or the service refuses it), Unavailable, OSError.
    """
    bucket, version, form = upload.bucket, upload.version, upload.form
    if form.sidecar:
        put_sidecar(bucket, form, is_believed=upload.is_believed)
    if data is None:
        with _opened(upload) as section:
            if version.size >= max(min(large_bytes, _ONE_MAX_BYTES), PART_MIN_BYTES + 1):
                return _send_in_parts(upload, section)
            if version.size > _WHOLE_BYTES:
                return _put(upload, section, _verified(version, section))
            data = section.read()
    if blake3(data).digest() != version.digest:
        raise _damaged()
    found = _put(upload, data, sums_of(data))
    upload.limiter.sent(len(data))
    return found


def put_sidecar(bucket: RemoteBucket, form: Form, *, is_believed: bool) -> None:
    """Make the sidecar of an object, which is there before the object. Raises Unavailable where it arrived damaged."""
    name, data = bucket.prefix + form.sidecar_name, form.sidecar
    made = bucket.put(name, data, len(data), sums_of(data), {})
    if not is_believed and b"".join(bucket.content(name, made)) != data:
        bucket.remove(name, made)
        raise Unavailable(f"what arrived in {bucket.address} does not match the source; it is sent again")


def _put(upload: Upload, body: bytes | Section, sums: Sums) -> str:
    return upload.bucket.put(
        upload.name, body, upload.version.size, sums, upload.form.metadata,
        tags=upload.tags, storage_class=upload.storage_class,
    )  # fmt: skip


@contextlib.contextmanager
def _opened(upload: Upload) -> Iterator[Section]:
    source, version = upload.source, upload.version
    try:
        fd = versions.open_content(source, version)
    except FileNotFoundError as error:
        raise Failed("SrcVersionNotFound", "the version is no longer in the source's store") from error
    try:
        yield _section(upload, lambda count, at: source.fs.read_at(fd, count, at), 0, version.size)
    finally:
        source.fs.close(fd)


def _section(upload: Upload, read_at: Callable[[int, int], bytes], start: int, size: int) -> Section:
    """A section of some content, which is sent no faster than the limit allows. read_at: as of a Section.

    A tenth of a second's bytes are claimed at a time, however few a request reads at once, since each wait may be a
    little too long; and no more are sent at once, however many it reads.
    """
    fs, limiter, progress = upload.source.fs, upload.limiter, upload.progress
    sent = claimed = 0

    def claim(count: int) -> int:
        nonlocal sent, claimed
        if sent == claimed:
            more = min(size - claimed, limiter.chunk_bytes(size)) or count  # the latter where it is sent once more
            if progress is not None:
                may_send = progress.claim(limiter, more)
            else:
                may_send = limiter.claim(more, lambda: fs.interrupted)
            if not may_send:
                raise _stopped()
            claimed += more
        count = min(count, claimed - sent)
        sent += count
        return count

    return Section(read_at, start, size, claim)


def _part(upload: Upload, section: Section, start: int, size: int) -> Section:
    """A part of an open file's section, in memory unless it is larger than usual. Raises Failed where it is cut off."""
    if size > _PART_BYTES:
        return _section(upload, section.read_at, start, size)
    data = section.read_at(size, start)
    if len(data) != size:
        raise _damaged()
    return _section(upload, lambda count, at: data[at : at + count], 0, size)


def _stopped() -> Unavailable:
    return Unavailable("its copy was stopped")


def _damaged() -> Failed:
    return Failed(
        "SrcObjectNotEligible",
        "the stored version no longer matches its BLAKE3; `fsrepl verify --repair` looks for a good copy",
    )


def _verified(version: Version, section: Section) -> Sums:
    """The checksums of a version's content, once that matches its BLAKE3. Raises Failed where it does not."""
    md5, sha256, whole = hashlib.md5(usedforsecurity=False), hashlib.sha256(), blake3()
    for chunk in section.chunks():
        md5.update(chunk)
        sha256.update(chunk)
        whole.update(chunk)
    if whole.digest() != version.digest:
        raise _damaged()
    return Sums(md5.digest(), sha256.digest())


# -- in parts


def part_bytes(size: int, rate: float) -> int:
    """The size of the parts of an object. Under a limit they are about a second's bytes, as far as S3 permits."""
    wanted = _PART_BYTES if not rate else max(PART_MIN_BYTES, min(_PART_BYTES, int(rate)))
    least = -(-size // PARTS_MAX)
    return max(wanted, -(-least // _CHUNK) * _CHUNK)


def _send_in_parts(upload: Upload, section: Section) -> str:
    bucket, version, name = upload.bucket, upload.version, upload.name
    there = bucket.parts(name, upload.upload) if upload.upload else None
    upload_id = upload.upload
    if there is None:
        upload_id = bucket.begin_upload(
            name, upload.form.metadata, tags=upload.tags, storage_class=upload.storage_class
        )
        upload.note_upload(upload_id)
    size = max((part.size for part in (there or {}).values()), default=0)
    size = size if size >= PART_MIN_BYTES else part_bytes(version.size, upload.limiter.rate)
    if -(-version.size // size) > PARTS_MAX:
        size = part_bytes(version.size, upload.limiter.rate)
    parts, digest = _send_parts(upload, section, upload_id, size, there or {})
    if digest != version.digest:
        _give_up(upload, upload_id)
        raise _damaged()
    try:
        return bucket.end_upload(name, upload_id, parts)
    except Absent as error:
        upload.note_upload("")
        raise Unavailable(f"the upload of {name} is gone from {bucket.address}; it begins again") from error
    except ServiceRefused as error:
        if error.reason != _PART_LOST:
            raise
        _give_up(upload, upload_id)
        raise Unavailable(f"{bucket.address} has lost a part of {name} ({error.words}); it begins again") from error


def _give_up(upload: Upload, upload_id: str) -> None:
    """Have the service remove the parts that have arrived, of which no object is to be made."""
    with contextlib.suppress(Absent):
        upload.bucket.abort_upload(upload.name, upload_id)
    upload.note_upload("")


def _send_parts(
    upload: Upload, section: Section, upload_id: str, size: int, there: dict[int, Part]
) -> tuple[list[Part], bytes]:
    """Send the parts that are not there; all parts, and the BLAKE3 of what was read for them.

    The content is read once, in order: a part is hashed and sent from memory, some at a time. Only a part larger than
    usual, of a very large object, is read again to be sent.
    """
    total = upload.version.size
    whole, parts, waiting = blake3(), dict[int, Part](), set[Future[tuple[Part, int]]]()
    done = 0

    def note(arrived: Iterable[Future[tuple[Part, int]]]) -> None:
        nonlocal done
        for each in arrived:
            part, length = each.result()
            parts[part.number] = part
            done += length
            if upload.progress is not None:
                upload.progress.came_to(done)

    at_once = _PARTS_AT_ONCE if not upload.limiter.rate else 1
    with ThreadPoolExecutor(at_once) as pool:
        try:
            for number in range(1, -(-total // size) + 1):
                _stop_if_asked(upload)
                start = (number - 1) * size
                with _place(upload) as place:
                    part = _part(upload, section, start, min(size, total - start))
                    for chunk in part.chunks():
                        whole.update(chunk)
                    sent = pool.submit(_send_part, upload, upload_id, number, part, there.get(number))
                    sent.add_done_callback(partial(_leave, place.pop_all()))
                waiting.add(sent)
                if len(waiting) > at_once:
                    arrived, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    note(arrived)
            note(as_completed(waiting))
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
    return [parts[number] for number in sorted(parts)], whole.digest()


@contextlib.contextmanager
def _place(upload: Upload) -> Iterator[contextlib.ExitStack]:
    """A place for a part in memory, once there is one; left at the end of the block, or of whatever the stack is given
    to. Raises Unavailable when the upload is to stop."""
    while not _PLACES.acquire(timeout=_LOOK_S):
        _stop_if_asked(upload)
    with contextlib.ExitStack() as place:
        place.callback(_PLACES.release)
        yield place


def _leave(place: contextlib.ExitStack, _: Future[tuple[Part, int]]) -> None:
    place.close()


def _send_part(upload: Upload, upload_id: str, number: int, section: Section, known: Part | None) -> tuple[Part, int]:
    """Send a part, if the known one is another; the part, and its size."""
    length = len(section)
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    for chunk in section.chunks():
        md5.update(chunk)
        sha256.update(chunk)
    _stop_if_asked(upload)
    if known is not None and known.size == length and known.etag.strip('"') == md5.hexdigest():
        return known, length
    try:
        sums = Sums(md5.digest(), sha256.digest())
        return upload.bucket.put_part(upload.name, upload_id, number, section, length, sums), length
    except Unavailable:
        _stop_if_asked(upload)  # then the request was left in the middle, and the service is not away
        raise


def _stop_if_asked(upload: Upload) -> None:
    if upload.progress is not None and upload.progress.stop:
        raise _stopped()
