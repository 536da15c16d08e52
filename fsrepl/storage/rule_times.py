"""The time from which each rule of a bucket is in effect."""

from __future__ import annotations

from fsrepl.model import clock
from fsrepl.s3 import replication
from fsrepl.storage.bucket import OpenBucket
from fsrepl.storage.documents import write_document


def note_rules(bucket: OpenBucket, now_ns: int) -> bool:
    """Record the time from which each rule is in effect, where that changed; whether it did.

    The record has the clock time, for people, and the ctime of the configuration's file, to compare with the ctimes of
    objects found by a scan.
    """
    documents = bucket.bucket.documents
    wanted = {}
    if documents.replication is not None:
        ctime_ns = bucket.fs.stat(bucket.meta, b"replication.json").st_ctime_ns
        for rule in documents.replication.rules:
            if rule.enabled:
                content = replication.effective_content(rule)
                known = documents.since.get(rule.id)
                if known is not None and known.content == content:
                    wanted[rule.id] = {"content": content, "ctime_ns": known.ctime_ns, "since": known.since}
                else:
                    wanted[rule.id] = {"content": content, "ctime_ns": ctime_ns, "since": clock.stamp(now_ns)}
    known_all = {
        n: {"content": s.content, "ctime_ns": s.ctime_ns, "since": s.since} for n, s in documents.since.items()
    }
    if wanted == known_all:
        return False
    write_document(bucket.fs, bucket.meta, b"rules.json", wanted)
    return True
