"""One stored version, compared alone: its record is there and whole, and its content matches its BLAKE3."""

from __future__ import annotations

from fsrepl.errors import StoreDamaged, Unavailable, reason
from fsrepl.model import attributes, keys
from fsrepl.model.version import Version
from fsrepl.repair.compare import Difference, Problem
from fsrepl.repair.sides import Side
from fsrepl.repair.verify_progress import Hooks, Tally
from fsrepl.storage import records, versions


class StoredVersions:
    """Reads stored versions for a verification, and counts them in its tally."""

    def __init__(self, hooks: Hooks, tally: Tally) -> None:
        self.hooks, self.tally = hooks, tally

    def examine(
        self, side: Side, at: int, path: bytes, name: bytes, stored: keys.StoredName
    ) -> tuple[Version | None, Difference | None]:
        """A stored version, and its difference, if any: first of its record, then of its content."""
        guess = keys.join(path, stored.name)

        def wrong(problem: Problem, why: str, key: bytes = guess) -> Difference:
            return Difference(side.address, key, stored.id, problem, why, stored.marker, path=guess)

        try:
            record = records.read(side.bucket, at, name, guess)
            if record.lost or not attributes.is_whole(record.raw, guess, marker=stored.marker):
                self.tally.checked += 1
                return None, wrong(Problem.LOST, "its attributes are gone", record.raw.get(attributes.KEY, guess))
            version = record.version(guess, stored)
            if version.marker:
                return version, None
            if self._matches(side, at, name, version):
                return version, None
        except Unavailable as error:  # a tier that is away is no damage
            self.tally.away[side.address] = str(error)
            return version, None
        except FileNotFoundError:
            return None, None
        except StoreDamaged as error:
            self.tally.checked += 1
            return None, wrong(Problem.DAMAGED, str(error))
        except OSError as error:
            self.tally.checked += 1
            return None, wrong(Problem.UNREADABLE, reason(error))
        return version, wrong(Problem.DIGEST, "its stored content no longer matches its BLAKE3", version.key)

    def _matches(self, side: Side, at: int, name: bytes, version: Version) -> bool:
        """Whether the content of a stored file matches its version's BLAKE3, read past the page cache."""
        fs, verified, where = side.bucket.fs, self.hooks.verified, side.address
        if version.place is None:
            fd = fs.open_read(at, name)
        else:
            where += f" {version.place.tier}"
            try:
                fd = versions.open_stored(side.bucket, version)
            except FileNotFoundError:
                return False  # it is lost
        try:
            found = fs.stat_fd(fd)
            if verified is not None and verified.has(where, found):
                self.tally.known += found.st_size
                return True
            before = self.tally.bytes

            def note(done: int) -> None:
                self.hooks.read(before + done - self.tally.bytes)
                self.tally.bytes = before + done
                self.hooks.progress(self.tally)

            matches = versions.stored_digest(side.bucket, version, fd, note) == version.digest
        finally:
            fs.close(fd)
        if matches and verified is not None:
            verified.add(where, found)
        return matches

    def examine_again(self, side: Side, path: bytes, name: bytes, stored: keys.StoredName) -> Difference | None:
        checked, size = self.tally.checked, self.tally.bytes
        try:
            fd = side.bucket.fs.open_dir(side.bucket.versions, path)
        except OSError:
            return None
        try:
            return self.examine(side, fd, path, name, stored)[1]
        finally:
            side.bucket.fs.close(fd)
            self.tally.checked, self.tally.bytes = checked, size
