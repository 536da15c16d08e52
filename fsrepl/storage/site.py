"""A site's regions and buckets, found on disk and verified before use.

A region without an identity file, or with a foreign one, is offline: nothing is read from it or written to it. A bucket
with a foreign folder or documents is offline as well. A missing mount is therefore an outage and never a mass delete.
Source: design.md, sections 2 and 3 (G8, G9).
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Collection, Iterator, Mapping

from msgspec.structs import asdict, replace

from fsrepl.errors import FsreplError, Refused, Usage, reason
from fsrepl.link.frames import INLINE_MAX_BYTES, Hello
from fsrepl.link.host import Host
from fsrepl.model import clock, json_text
from fsrepl.model.address import Address, name_of, region_of
from fsrepl.model.clock import Clock
from fsrepl.model.rule import Replication, Role
from fsrepl.remote.elsewhere import Elsewhere
from fsrepl.remote.service import Service
from fsrepl.s3 import roles
from fsrepl.settings import Settings
from fsrepl.storage import documents, probe
from fsrepl.storage.bucket import Bucket, OpenBucket
from fsrepl.storage.fs import Fs
from fsrepl.storage.root import Identities, Root
from fsrepl.storage.tiers import Tier, tier_address


class Site:
    """The site's settings, and the regions and buckets they name."""

    def __init__(self, settings: Settings, fs: Fs | None = None, now: Clock | None = None) -> None:
        self.fs, self.now = fs or Fs(), now or clock.system_clock()
        self.identities = Identities()
        self.roots: dict[str, Root] = {}
        self.services: dict[str, Service] = {}
        """The regions that are S3 services."""
        self.hosts: dict[str, Host] = {}
        """The regions on other machines."""
        self.buckets: dict[str, Bucket] = {}
        self._keeps_private = self._has_looked = False
        self.settings = settings
        self.load_identities()

    @property
    def settings(self) -> Settings:
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        """Apply new settings, including the paths of regions."""
        self._settings = settings
        for name, region in settings.regions.items():
            if name in self.roots:
                self.roots[name].settings = region
            else:
                root = self.roots[name] = Root(self.fs, self.now, self.identities, region)
                root.keeps_private = self._keeps_private
        for name, endpoint in settings.endpoints.items():
            if name not in self.services or self.services[name].settings != endpoint:
                self.services[name] = Service(endpoint)
        for name in self.services.keys() - settings.endpoints.keys():
            del self.services[name]
        for name, host in settings.hosts.items():
            if name not in self.hosts or self.hosts[name].settings != host:
                if name in self.hosts:
                    self.hosts[name].end()
                    self.hosts[name].close("its settings have changed")
                self.hosts[name] = Host(host, self.introduce)
        for name in self.hosts.keys() - settings.hosts.keys():
            self.hosts[name].end()
            self.hosts.pop(name).close("it left the site")
        for name in self.roots.keys() - settings.regions.keys():
            self.roots.pop(name).left = self.no_region(name)

    @property
    def destinations(self) -> Mapping[str, Elsewhere]:
        """The regions that only take replicas. Their buckets are none of `buckets`, which are trees here."""
        return {**self.services, **self.hosts}

    def introduce(self, host: Host) -> Hello:
        """The first frame for the agent of a region on another machine."""
        found, place = self.settings, host.settings.place
        limited = replace(
            found.replication,
            limit_bytes_s=0,
            large_file_bytes=min(found.replication.large_file_bytes, INLINE_MAX_BYTES),
        )
        return Hello(
            self.uuid, f"{socket.gethostname()}:{found.path}", host.name, place.path,
            self.identities.regions.get(host.name, ""), False, False, host.listener is not None,
            host.settings.silence_s, host.settings.sharing, found.capture, limited, found.scrub, found.safety,
        )  # fmt: skip

    @property
    def uuid(self) -> str:
        """The site's identity, which each of its regions records."""
        return self.identities.site

    @property
    def keeps_private(self) -> bool:
        """Whether folders private to the daemon are closed again where others can read them; set for the process that
        does the work."""
        return self._keeps_private

    @keeps_private.setter
    def keeps_private(self, keeps: bool) -> None:
        self._keeps_private = keeps
        for root in self.roots.values():
            root.keeps_private = keeps

    @property
    def silent(self) -> frozenset[str]:
        """Regions that did not answer a command's query."""
        return frozenset(name for name, root in self.roots.items() if root.silent_s)

    # -- the site's own folder

    @property
    def state(self) -> str:
        return str(self.settings.state)

    def load_identities(self) -> None:
        """Read identities.json. Raises Usage where it is unreadable; without the file no region is attached yet."""
        path = os.path.join(self.state, "identities.json")
        try:
            with open(path, encoding="utf-8") as file:
                found = json_text.loads(file.read())
            self.identities.regions, self.identities.buckets = dict(found["regions"]), dict(found["buckets"])
            self.identities.tiers = dict(found.get("tiers") or {})
            self.identities.site = str(found.get("site") or self.uuid or uuid.uuid4())
        except FileNotFoundError:
            self.identities.site = self.uuid or str(uuid.uuid4())
        except PermissionError as error:
            raise Refused(
                "AccessDenied", f"the state of this site, {self.state}, is for its own user and root alone"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Usage(
                f"{path} cannot be read ({error}); if it is lost, remove it and attach each region with "
                "`fsrepl region add NAME=PATH`"
            ) from error
        regions = self.settings.regions
        known = {a: u for a, u in self.identities.buckets.items() if region_of(a) in regions}
        for address in [a for a in self.buckets if self.buckets[a].uuid != known.get(a)]:
            del self.buckets[address]
        for address, expected in known.items():
            if address not in self.buckets:
                self.buckets[address] = Bucket(self.roots[region_of(address)], address, expected, self.named)

    def save_identities(self) -> None:
        with self.open_state() as at:
            documents.write_document(self.fs, at, b"identities.json", asdict(self.identities))
        self.load_identities()

    @contextlib.contextmanager
    def open_state(self) -> Iterator[int]:
        """The folder of the site's state, created if missing, 0700."""
        try:
            try:
                fd = self.fs.open_root(self.state)
            except FileNotFoundError:
                os.makedirs(self.state, mode=0o700, exist_ok=True)
                fd = self.fs.open_root(self.state)
        except OSError as error:
            raise Usage(f"cannot use the state folder {self.state}: {reason(error)}") from error
        try:
            yield fd
        finally:
            self.fs.close(fd)

    # -- regions

    def open_region(self, name: str) -> contextlib.AbstractContextManager[int]:
        """A region's root, with its identity verified. Raises Unavailable where it is offline or foreign."""
        root = self.roots.get(name)
        if root is None:
            raise Usage(self.no_region(name))
        return root.open()

    def no_region(self, name: str) -> str:
        """Why a name is none of a region with a directory, for messages."""
        if name in self.destinations:
            return f"region {name} is {self.destinations[name].what}, and has no directory here"
        return f"there is no region {name!r} in {self.settings.path}; it names {self.region_names()}"

    def unattached(self, *, elsewhere: bool = True) -> list[str]:
        """The remedy for each region and tier that this site does not know, as after its state was lost.

        elsewhere: those on other machines, too, where nothing is captured.
        """
        regions = [
            self.roots[name].not_attached
            for name in sorted(self.settings.regions)
            if name not in self.identities.regions
        ]
        regions += [
            host.not_attached
            for name, host in sorted(self.hosts.items())
            if elsewhere and name not in self.identities.regions
        ]
        return regions + [tier.not_attached for tier in self.tiers() if not tier.expected]

    def tiers(self) -> list[Tier]:
        """The tiers of all regions."""
        found = (root.tier(name) for root in self.roots.values() for name in root.settings.classes)
        return sorted((tier for tier in found if tier is not None), key=lambda tier: tier.address)

    def region_names(self) -> str:
        return ", ".join(sorted({*self.settings.regions, *self.settings.destinations})) or "none"

    def ask_regions(self, within_s: float = probe.LOOK_S, *, names: Collection[str] = ()) -> None:
        """Find the regions and tiers that do not answer, using child processes. For commands. names: of the regions to
        ask, by default all."""
        questions = self._questions()
        if names:
            questions = {each: asked for each, asked in questions.items() if each.partition("/")[0] in names}
        self.set_silent(probe.silent(questions, within_s), within_s)

    def ask_regions_in_threads(self, ask: probe.Asker) -> None:
        """Ask regions in threads, for a process that stays: see probe.Threads."""
        questions = self._questions()
        self.set_silent(questions.keys() - ask(questions).keys())

    def _questions(self) -> probe.Questions:
        return {
            **{name: lambda name=name: self._look_into(name) for name in self.settings.regions},
            **{tier.address: lambda tier=tier: _look_into_tier(tier) for tier in self.tiers()},
        }

    def set_silent(self, names: Collection[str], after_s: float = probe.ANSWER_S) -> None:
        """Take regions and tiers for silent: nothing of them is accessed."""
        for name, root in self.roots.items():
            root.silent_s = after_s if name in names else 0.0
            classes = root.settings.classes
            root.silent_tiers = frozenset(each for each in classes if tier_address(name, each) in names)

    def _look_into(self, region: str) -> None:
        """Access the files that a reading command accesses first."""
        os.path.realpath(self.settings.regions[region].path)
        for bucket in self.buckets.values():
            if bucket.region == region:
                with contextlib.suppress(FsreplError), bucket.open() as opened:
                    next(opened.fs.entries(opened.fd), None)
        self.online(region)

    def online(self, region: str) -> bool:
        try:
            with self.open_region(region):
                return True
        except FsreplError:
            return False

    def role(self, name: str) -> Role:
        """A replication role from its file. Raises OSError, ValueError (not JSON), Refused."""
        with open(self.settings.roles / f"{name}.json", encoding="utf-8") as file:
            return roles.parse_role(json_text.loads(file.read()), name)

    # -- buckets

    def bucket(self, address: str) -> Bucket:
        """A bucket by its address. Raises Usage for an unknown region, Refused: NoSuchBucket for an unknown bucket,
        InvalidRequest for one of an S3 service that takes replicas."""
        region = Address.parse_bucket(address).region
        if region in self.destinations:
            known = self.destinations_in(region)
            if address not in known and address not in (own := self.destinations[region].own_buckets()):
                known = sorted({*known, *own})
                there = ", ".join(map(name_of, known)) or "none"
                raise Refused(
                    "NoSuchBucket",
                    f"no bucket of this site is replicated to {address}; those that take replicas in {region}: {there}",
                )
            raise Refused(
                "InvalidRequest",
                f"{address} is a bucket of {self.destinations[region].what}, which takes replicas "
                f"and is no folder here; {self.destinations[region].advice}",
            )
        if region not in self.settings.regions:
            raise Usage(self.no_region(region))
        if address not in self.buckets:
            if region not in self.identities.regions:
                raise Refused("NoSuchBucket", f"{address} is not known: {self.roots[region].not_attached}")
            here = ", ".join(sorted(b.name for b in self.buckets.values() if b.region == region)) or "none"
            raise Refused("NoSuchBucket", f"{address} is not a bucket of this site; buckets in {region}: {here}")
        return self.buckets[address]

    def buckets_of(self, region: str) -> list[str]:
        """The addresses of the buckets of a region. Raises Usage for an unknown region."""
        if region not in self.settings.regions:
            raise Usage(self.no_region(region))
        return sorted(address for address, bucket in self.buckets.items() if bucket.region == region)

    def named(self, name: str) -> list[str]:
        """The addresses of all buckets with a name."""
        return sorted(address for address, bucket in self.buckets.items() if bucket.name == name)

    def look(self) -> None:
        """Read the documents of every readable bucket; the others keep the reason of their trouble."""
        self._has_looked = True
        for bucket in self.buckets.values():
            with contextlib.suppress(FsreplError), bucket.open():
                pass

    def _configurations(self) -> Iterator[tuple[str, Replication]]:
        """The replication of each bucket that has one. A command reads the documents for this once; a daemon keeps
        them."""
        if not self._has_looked:
            self.look()
        return ((b.address, b.replication) for b in self.buckets.values() if b.replication)

    def destinations_in(self, region: str) -> list[str]:
        """The addresses of the buckets of a region that some bucket is replicated to."""
        found = {rule.destination for _, replication in self._configurations() for rule in replication.rules}
        return sorted(address for address in found if region_of(address) == region)

    @contextlib.contextmanager
    def open_sources(self, address: str) -> Iterator[dict[str, OpenBucket]]:
        """The buckets whose rules name a bucket, open, by their addresses; without those that are away."""
        with contextlib.ExitStack() as closing:
            found = {}
            for source in self.sources_of(address):
                with contextlib.suppress(FsreplError):
                    found[source] = closing.enter_context(self.buckets[source].open())
            yield found

    def sources_of(self, address: str) -> list[str]:
        """The buckets whose configuration replicates into this one."""
        return [
            source
            for source, replication in self._configurations()
            if any(rule.destination == address for rule in replication.rules)
        ]


def _look_into_tier(tier: Tier) -> None:
    with contextlib.suppress(FsreplError), tier.open():
        pass


def ignore_in_git(fs: Fs, meta: int) -> None:
    """Make git ignore .fsrepl, where a bucket is a git repository or inside one."""
    with contextlib.suppress(FileExistsError):
        fd = fs.create(meta, b".gitignore")
        try:
            fs.write(fd, b"*\n")
        finally:
            fs.close(fd)


def new_identity(name: str, now_ns: int, **more: str) -> dict[str, str]:
    return {"uuid": str(uuid.uuid4()), "name": name, **more, "created": clock.stamp(now_ns)}
