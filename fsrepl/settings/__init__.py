"""The settings of a site, as in fsrepl.toml.

Each setting is one line of a Struct below: the kind of its value, its default in TOML, and the comment that `fsrepl
init` writes beside it. Parsing and checks (settings/reading.py), the text of a new file (commands/settings_text.py) and
the error messages are derived from these lines. Source: design.md, section 4.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import fields, replace

from fsrepl.settings import kinds
from fsrepl.temporary import PATTERNS

FILE = "fsrepl.toml"
STATE = ".fsrepl-site"


class Setting(Struct, frozen=True):
    """The description of one setting of a table, and the factory of its field's default, where `settings_of` finds it.

    kind: the check of its value. toml: its default in TOML, None where it is required. about: its comment. name: its
    name in the file. field: that of its field; both are filled in by `settings_of`.
    """

    kind: kinds.Kind
    toml: object
    about: str
    name: str
    default: object
    field: str = ""

    @property
    def is_required(self) -> bool:
        return self.toml is None

    def __call__(self) -> object:
        if self.is_required:
            raise TypeError("a setting that has no default is missing")
        return self.default


def _setting(kind: kinds.Kind, toml: object, about: str, name: str = "") -> Any:
    """A field read from the file. toml: its default in TOML, None where the setting is required. about: its comment.
    name: its name in the file, where that differs from the field's."""
    return msgspec.field(default_factory=Setting(kind, toml, about, name, None if toml is None else kind(toml)))


class ClassSettings(Struct, frozen=True):
    """A storage class of a region that has its own directory: a tier. Its path is absolute."""

    name: str
    path: Path = _setting(kinds.path, None, "")
    compress: str = _setting(
        kinds.one_of("none", "zstd"),
        "none",
        "none | zstd: for GLACIER and DEEP_ARCHIVE, whose content must be restored first",
    )
    drain: bool = _setting(kinds.flag, False, "true: move the content that lies there back into the region")


class RegionSettings(Struct, frozen=True):
    """A region. Its path is absolute, with symlinks and `..` as in the file. classes: its tiers, by storage class."""

    name: str
    path: Path = _setting(kinds.path, None, "")
    sharing: str = _setting(
        kinds.one_of("auto", "private", "link"),
        "auto",
        "auto | private | link: may stored versions share blocks with the files people see",
    )
    classes: Mapping[str, ClassSettings] = msgspec.field(default_factory=dict)


class EndpointSettings(Struct, frozen=True):
    """A region that is an S3 service: its buckets take replicas, and are no trees."""

    name: str
    url: str = _setting(kinds.service, None, "", "endpoint")
    s3_region: str = _setting(
        kinds.text, "", "the service's name for its region; by default that in the address, else us-east-1"
    )
    credentials: kinds.Credentials = _setting(
        kinds.credentials, "env", "env | profile:NAME | file:PATH: where AWS's tools would look, or a file as theirs"
    )
    prefix: str = _setting(kinds.key_prefix, "", 'what all keys there begin with, such as "host7/"')
    addressing: str = _setting(kinds.one_of("auto", "path", "virtual"), "auto", "auto | path | virtual")
    checksums: str = _setting(
        kinds.one_of("auto", "read-back"),
        "auto",
        "auto: a service that refuses a wrong checksum is believed; read-back: each object is read again",
    )
    puts: int = _setting(kinds.whole(1, 1024), 64, "requests at once")

    @property
    def signing_region(self) -> str:
        """The region that signatures contain, and in which buckets are made."""
        return self.s3_region or kinds.s3_region_in(self.url) or "us-east-1"


class HostSettings(Struct, frozen=True):
    """A region on another machine, served there by `fsrepl agent`: its buckets take replicas."""

    name: str
    place: kinds.RemotePath = _setting(kinds.place, None, "", "path")
    sharing: str = _setting(
        kinds.one_of("auto", "private", "link"),
        "auto",
        "auto | private | link: may stored versions there share blocks with the files people see",
    )
    ssh: tuple[str, ...] = _setting(
        kinds.texts("the program that connects, and its options"), ["ssh"], "the program that connects, and its options"
    )
    agent: str = _setting(kinds.text, "fsrepl agent", "the command that the shell there runs")
    compress: bool = _setting(kinds.flag, False, "true: ssh compresses what crosses")
    silence_s: float = _setting(
        kinds.number(2, 3600), 30, "a connection on which nothing is heard for so long is made again"
    )

    @property
    def url(self) -> str:
        return str(self.place)


class Capture(Struct, frozen=True):
    """Capture of changes as versions."""

    settle_ms: int = _setting(
        kinds.whole(0, 3_600_000), 50, "wait after a file is closed; a rename into place is taken at once"
    )
    temporary: tuple[str, ...] = _setting(
        kinds.patterns,
        list(PATTERNS),
        "names that are mostly renamed or removed soon; a list here replaces this one, which knows many programs",
    )
    temporary_settle_s: float = _setting(
        kinds.number(0, kinds.YEAR_S), 2, "how long such a name waits; it is never taken while open"
    )
    keep_free: kinds.KeepFree = _setting(
        kinds.keep_free, "5%", "or a size: with less space free, capture pauses and says so"
    )
    open_quiet_s: float = _setting(
        kinds.number(0, kinds.YEAR_S), 30, "a file kept open for writing is taken after this long without a change"
    )
    open_max_s: float = _setting(
        kinds.number(0, kinds.YEAR_S), 600, "at the latest after this long, even while it keeps changing"
    )
    rescan_s: float = _setting(kinds.number(0.1, kinds.YEAR_S), 3600, "look at every file again after this long")


class ReplicationSettings(Struct, frozen=True):
    """Replication of versions. A limit of 0 means no limit."""

    limit_bytes_s: int = _setting(kinds.rate, "0", 'all transfers together, such as "50MiB/s"; "0": no limit', "limit")
    large_file_bytes: int = _setting(
        kinds.size, "8MiB", "from here on: copied in the background, so that small files need not wait", "large_file"
    )
    workers: int = _setting(kinds.whole(1, 1024), 4, "large copies side by side, of each pair of regions")
    retry_max_s: float = _setting(kinds.number(0.1, kinds.YEAR_S), 300, "the longest wait between two tries")


class Scrub(Struct, frozen=True):
    """The interval at which stored versions are read and compared with their hashes. An every_s of 0 means never."""

    every_s: int = _setting(
        kinds.duration,
        "30d",
        'read all stored versions in this time, evenly, and compare their hashes; "0": never',
        "every",
    )
    limit_bytes_s: int = _setting(
        kinds.rate, "20MiB/s", 'reading for that, all buckets together, at most; "0": no limit', "limit"
    )


class LifecycleSettings(Struct, frozen=True):
    """Moves of content to the disk of its storage class. A limit of 0 means no limit."""

    limit_bytes_s: int = _setting(
        kinds.rate, "100MiB/s", 'moving content between disks, all buckets together, at most; "0": no limit', "limit"
    )


class Safety(Struct, frozen=True):
    """Limits beyond which deletions look like a mistake. Source: region/brake.py."""

    delete_share: float = _setting(
        kinds.number(0, 1), 0.5, "more of a bucket than this, and over 1,000 keys, deleted at once is held; 1: never"
    )


class Events(Struct, frozen=True):
    """Receivers of S3's replication events in addition to events.jsonl. Empty: none."""

    command: tuple[str, ...] = _setting(
        kinds.texts("the program and its arguments"),
        [],
        "run for each event, which it gets as JSON on its standard input",
    )
    webhook: str = _setting(kinds.url, "", "each event is posted there as JSON")
    max_bytes: int = _setting(kinds.size, "16MiB", "events.jsonl starts anew at this size")


class Metrics(Struct, frozen=True):
    """The endpoint or file with metrics for Prometheus. None: not offered."""

    listen: tuple[str, int] | None = _setting(kinds.listen, "", 'an endpoint, such as "127.0.0.1:9750"')
    textfile: Path | None = _setting(kinds.optional_path, "", "a file for node_exporter, such as /path/fsrepl.prom")


class Console(Struct, frozen=True):
    """The web console, `fsrepl console`. listen None: only at the Unix socket in the site's state."""

    listen: tuple[str, int] | None = _setting(
        kinds.listen, "127.0.0.1:9751", 'where browsers reach it; "": only at the Unix socket in the state folder'
    )
    hosts: tuple[str, ...] = _setting(
        kinds.texts("names of this console in a browser's address bar, without a port"),
        [],
        "further names that browsers may call it: that of a proxy, or of this machine",
    )
    certificate: Path | None = _setting(kinds.optional_path, "", "TLS: the certificate with its chain, PEM")
    key: Path | None = _setting(kinds.optional_path, "", "TLS: its private key, PEM")
    read_only: bool = _setting(kinds.flag, False, "show everything, change nothing")


class Settings(Struct, frozen=True):
    """All settings of fsrepl.toml. Sizes are bytes, rates bytes per second, durations seconds; paths are absolute."""

    path: Path
    """The file itself."""
    state: Path
    regions: Mapping[str, RegionSettings]
    capture: Capture = Capture()
    replication: ReplicationSettings = ReplicationSettings()
    scrub: Scrub = Scrub()
    lifecycle: LifecycleSettings = LifecycleSettings()
    safety: Safety = Safety()
    events: Events = Events()
    metrics: Metrics = Metrics()
    console: Console = Console()
    endpoints: Mapping[str, EndpointSettings] = msgspec.field(default_factory=dict)
    """The regions that are S3 services; `regions` has those that are directories."""
    hosts: Mapping[str, HostSettings] = msgspec.field(default_factory=dict)
    """The regions on other machines."""

    @property
    def destinations(self) -> Mapping[str, EndpointSettings | HostSettings]:
        """The regions that only take replicas: those that are no directories here."""
        return {**self.endpoints, **self.hosts}

    @property
    def roles(self) -> Path:
        """The folder of the site's replication roles."""
        return self.path.parent / "roles"


TABLES: Mapping[str, type[Struct]] = {
    "capture": Capture,
    "replication": ReplicationSettings,
    "scrub": Scrub,
    "lifecycle": LifecycleSettings,
    "safety": Safety,
    "events": Events,
    "metrics": Metrics,
    "console": Console,
}
TIERS = (
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER_IR",
    "GLACIER",
    "DEEP_ARCHIVE",
    "REDUCED_REDUNDANCY",
)
"""The storage classes that may have a directory of their own. STANDARD has the region's."""
ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose content has to be restored before it can be read."""
REGION_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@functools.cache
def settings_of(table: type[Struct]) -> Mapping[str, Setting]:
    """The settings of a table, by name in the file."""
    found = [(each.name, each.default_factory) for each in fields(table)]
    settings = [replace(s, name=s.name or field, field=field) for field, s in found if isinstance(s, Setting)]
    return {setting.name: setting for setting in settings}
