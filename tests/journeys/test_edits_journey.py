"""Metadata edits, and buckets that replicate to each other, with real daemons: events, threads and kills."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest

from fsrepl.model import attributes
from fsrepl.s3 import arn
from tests.site import DESTINATION, SOURCE, Site

MESH = ("east/one", "west/two", "north/three")


def connect(site: Site, *buckets: str) -> None:
    """Each bucket replicates to every other, edits on replicas included."""
    for number, bucket in enumerate(buckets):
        others = [other for other in buckets if other != bucket]
        site.must("role", "create", f"courier-{number}", "--from", bucket, *(f"--to={other}" for other in others))
        rules = [
            {
                "Filter": {}, "Priority": priority, "Status": "Enabled",
                "DeleteMarkerReplication": {"Status": "Enabled"},
                "SourceSelectionCriteria": {"ReplicaModifications": {"Status": "Enabled"}},
                "Destination": {"Bucket": arn.bucket_arn(other)},
            }
            for priority, other in enumerate(others, 1)
        ]  # fmt: skip
        document = {"Role": arn.role_arn(f"courier-{number}"), "Rules": rules}
        site.must("replication", "put", bucket, "-", stdin=json.dumps(document).encode())


def look(site: Site, key: str, bucket: str) -> tuple[object, ...]:
    """The metadata of a view as users see it."""
    path = site.path(key, bucket)
    found = path.stat()
    own = {n: os.getxattr(path, n) for n in os.listxattr(path) if n.startswith("user.") and not attributes.is_ours(n)}
    return found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, own


def assert_no_further_change(site: Site, *buckets: str, seconds: float = 2.0) -> None:
    """Check that no view and no stored version is changed any more."""

    def everything() -> dict[str, tuple[int, ...]]:
        out = {}
        for bucket in buckets:
            for top in (site.path(bucket=bucket), site.path(".fsrepl/versions", bucket)):
                for path in top.rglob("*"):
                    if path.is_file() and (top.name == "versions" or ".fsrepl" not in path.parts):
                        found = path.stat()
                        out[str(path)] = (found.st_ino, found.st_mode, found.st_mtime_ns, found.st_ctime_ns)
        return out

    before = everything()
    time.sleep(seconds)  # no condition shows that nothing will happen
    assert everything() == before


@pytest.mark.slow
def test_edits_are_replicated_both_ways(tmp_path: Path) -> None:
    """s3-semantics 2.2: each edit, made on either side, is on both when `wait` returns; then nothing changes any
    more."""
    with Site(tmp_path, replicate=False) as site:
        connect(site, SOURCE, DESTINATION)
        site.start()
        site.write("d/k", b"data")
        site.wait()
        history = site.history(SOURCE)
        for number, bucket in enumerate((SOURCE, DESTINATION, DESTINATION, SOURCE)):
            path = site.path("d/k", bucket)
            path.chmod(0o600 + number)
            os.setxattr(path, "user.colour", b"%d" % number)
            site.must("tag", "set", f"{bucket}/d/k", f"n={number}")
            site.wait()
            assert look(site, "d/k", SOURCE) == look(site, "d/k", DESTINATION)
            heads = [site.head(f"{b}/d/k") for b in (SOURCE, DESTINATION)]
            assert [h["ReplicationStatus"] for h in heads] == ["COMPLETED", "REPLICA"]
            assert heads[0]["Metadata"] == heads[1]["Metadata"] == {"colour": str(number)}
        assert site.history(SOURCE) == site.history(DESTINATION) == history
        assert_no_further_change(site, SOURCE, DESTINATION)


@pytest.mark.slow
def test_a_mesh_of_busy_users(tmp_path: Path) -> None:
    """P14, G6, G7: three regions, three users at once, and a daemon killed meanwhile: all regions end in one state, and
    nothing changes any more."""
    regions = {bucket.partition("/")[0]: tmp_path / "site" / bucket.partition("/")[0] for bucket in MESH}
    with Site(tmp_path, regions=regions, buckets=MESH, replicate=False) as site:
        connect(site, *MESH)
        site.start()

        def user(bucket: str, seed: int) -> None:
            chance = random.Random(seed)
            for number in range(80):
                path = site.path(f"d/{chance.randrange(5)}", bucket)
                path.parent.mkdir(exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    match chance.randrange(7):
                        case 0 | 1 | 2:
                            path.write_bytes(b"%d %d" % (seed, number))
                        case 3:
                            path.unlink()
                        case 4:
                            path.chmod(0o600 + chance.randrange(64))
                        case 5:
                            os.setxattr(path, "user.fsrepl.tag.t", b"%d" % number)
                        case _:
                            os.utime(path)
                time.sleep(chance.random() * 0.03)

        users = [threading.Thread(target=user, args=(bucket, seed)) for seed, bucket in enumerate(MESH)]
        for each in users:
            each.start()
        time.sleep(0.7)
        site.kill()
        site.start()
        for each in users:
            each.join()
        for _ in range(3):
            site.wait()

        def in_step() -> bool:
            histories, trees = [site.history(b) for b in MESH], [site.tree(b) for b in MESH]
            looks = [{key: look(site, key, b) for key in trees[0]} for b in MESH if trees[0] == site.tree(b)]
            return all(len(x) == 3 and x[0] == x[1] == x[2] for x in (histories, trees, looks))

        site.until(in_step, "all three buckets are in step")
        assert_no_further_change(site, *MESH)
