"""Hard links of a tree bucket that its replica's views lack: found by comparing two buckets' rows, and made.

A replica's view is linked when it is shown (link_groups.py), if the other name is there then. Where it was not, as
after a crash, the keys that are one file at the source are found in the journal: when a view could not be linked, and
after each whole scan. Only views that show the versions of the source are linked, and that are as recorded. Where the
source is at another machine, and the journal lacks its rows, the versions here say which were one file.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence

from fsrepl.errors import FsreplError, StoreDamaged, reason
from fsrepl.model import keys
from fsrepl.model.version import Origin, Version
from fsrepl.region.bucket_state import BucketState
from fsrepl.region.region import Region
from fsrepl.storage import versions
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.intents import Intent, intend
from fsrepl.storage.journal.rows import Object
from fsrepl.views import show
from fsrepl.views.link_groups import LinkGroups, origin

log = logging.getLogger("fsrepl")


def relink_due(region: Region) -> bool:
    """Link the views of buckets where some may lack it; whether there were such buckets."""
    busy = False
    for state in region.states.values():
        if not (state.views.may_lack_links and state.is_scanned):
            continue
        state.views.may_lack_links = False
        if state.bucket.trees:
            busy = True
            with region.at_work(state), contextlib.suppress(FsreplError), state.bucket.open() as bucket:
                sources = region.engine.site.sources_of(bucket.address)
                found = [each for source in sources for each in _apart(region, state, source)]
                awaited, state.views.awaited_names = state.views.awaited_names, set()
                if not sources and state.bucket.replication is None:  # its source may be at another machine
                    found = list(_apart_by_records(region, state, bucket))
                    state.views.awaited_names = _unshown(region, bucket, awaited)
                for first, others in found:
                    join(region, state, bucket, first, others)
                bucket.sync()
    return busy


Row = tuple[bytes, Object]
"""A key, and its current version with its view."""


def _apart(region: Region, state: BucketState, source: str) -> Iterator[tuple[Row, Sequence[Row]]]:
    """Keys that are one file at a source and several here: the oldest, and those that are another file."""
    journal, address = region.engine.journal, state.bucket.address
    for names in journal.views.linked(source):
        there, here = (journal.versions.look_up(each, names) for each in (source, address))
        yield from _split(state, there, here)


def _apart_by_records(region: Region, state: BucketState, bucket: OpenBucket) -> Iterator[tuple[Row, Sequence[Row]]]:
    """Keys that are one file by the records of replicas and several here, without the rows of their source."""
    journal = region.engine.journal
    for names in journal.views.apart(bucket.address):
        groups: dict[tuple[bytes, str], dict[bytes, Object]] = {}
        for key, known in journal.versions.look_up(bucket.address, names).items():
            with contextlib.suppress(StoreDamaged):
                version = versions.read(bucket, key, known.id, marker=False)
                if version is not None and version.origin is Origin.REPLICA:
                    first = origin(bucket, version.link or (key, known.id))
                    groups.setdefault(first, {})[key] = known
        for group in groups.values():
            yield from _split(state, group, group)


def _unshown(region: Region, bucket: OpenBucket, names: Collection[bytes]) -> set[bytes]:
    """The keys, of some, whose views do not show their current version yet."""
    rows = region.engine.journal.versions.look_up(bucket.address, names)
    return {
        key for key, known in rows.items() if not known.marker and (known.view is None or known.view.shown != known.id)
    }


def _split(
    state: BucketState, there: Mapping[bytes, Object], here: Mapping[bytes, Object]
) -> Iterator[tuple[Row, Sequence[Row]]]:
    """The oldest name of a file, and those that are another file here. there, here: rows at the source, and here."""
    shown = sorted(
        (
            (key, known)
            for key, known in here.items()
            if known.view is not None and known.view.shown == known.id == there[key].id and key not in state.views.stale
        ),
        key=lambda row: row[1].order,
    )
    inodes = [known.view.ino for _, known in shown if known.view is not None]
    if len(set(inodes)) > 1:
        yield shown[0], [row for row, ino in zip(shown, inodes, strict=True) if ino != inodes[0]]


def relink(region: Region, state: BucketState, bucket: OpenBucket, version: Version) -> None:
    """Make the view of a replica the file that its other names are, as at its source, where it is not."""
    journal = region.engine.journal
    source = journal.versions.object(version.source, version.key) if version.source else None
    if bucket.bucket.trees and source is not None and source.view is not None:
        there = journal.views.names_of(version.source, source.view.ino)
        for first, others in _split(state, there, journal.versions.look_up(bucket.address, there)):
            mine = [row for row in others if version.key in (row[0], first[0])]
            join(region, state, bucket, first, mine)
    elif version.key in state.views.awaited_names:  # its source is at another machine
        state.views.may_lack_links = True
    state.views.awaited_names.discard(version.key)


def join(region: Region, state: BucketState, bucket: OpenBucket, first: Row, others: Sequence[Row]) -> None:
    """Make views names of one file, under an intent: a crash leaves each with its content."""
    links = LinkGroups(region.engine.journal, bucket, region.engine.syncer, region.engine.recent)
    try:
        intents = [Intent(key, known.id, known.view) for key, known in (first, *others)]
        with intend(region.engine.syncer, bucket, intents):
            for key, known in others:
                version = versions.read(bucket, key, known.id, marker=False)
                if version is None or not (staged := links.stage_as(version, first[0], first[1].id)):
                    continue
                outcome = show.show(bucket, version, links.expected(known.view), staged)
                if isinstance(outcome, show.Shown):
                    links.showed(version, known.view, outcome.view)
                    region.engine.journal.views.see(bucket.address, key, outcome.view)
            links.refresh()
    except (OSError, FsreplError) as error:
        log.warning('not linked bucket=%s key="%s": %s', bucket.address, keys.shown(first[0]), reason(error))
