"""Sites: created, with their regions attached. A command that fails undoes its changes."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from fsrepl import settings
from fsrepl.commands import requirements, settings_text
from fsrepl.daemon.lock import is_locked
from fsrepl.errors import FsreplError, Usage, reason
from fsrepl.s3 import arn
from fsrepl.settings import reading
from fsrepl.storage.bucket import META
from fsrepl.storage.documents import open_directory, read_document, remove_document, write_bytes, write_document
from fsrepl.storage.fs import FileType, Fs
from fsrepl.storage.root import REGION_IDENTITY
from fsrepl.storage.site import Site, new_identity

DEFAULT_REGIONS = ("us-east-1", "eu-west-1")


def init(directory: Path, regions: dict[str, str | None], *, fs: Fs | None = None) -> dict[str, object]:
    """Create a site: its settings, and an identity in each region. A region with an identity is attached unchanged."""
    directory = Path(os.path.abspath(directory))
    path = directory / settings.FILE
    if path.exists():
        raise Usage(f"{path} exists already; `fsrepl region add` adds regions to it")
    for name, given in regions.items():
        if given and "://" in given:
            raise Usage(f"{given} is no directory; make the site first, then `fsrepl region add {name}={given}`")
    wanted = {name: given or name for name, given in (regions or dict.fromkeys(DEFAULT_REGIONS)).items()}
    wanted = {n: p if p == n else os.path.abspath(p) for n, p in wanted.items()}
    text = settings_text.render(wanted)
    parsed = reading.parse(text, path, os.path.realpath)
    with contextlib.ExitStack() as undo:
        make_directory(directory, "the site", undo)
        site = Site(parsed, fs)
        found = {name: attach_region(site, name, undo) for name in wanted}
        site.save_identities()
        write_settings(site.fs, path, text)
        undo.pop_all()
    attached = [{"Name": n, "Path": str(r.path), "Buckets": found[n]} for n, r in parsed.regions.items()]
    return {"Site": str(directory), "Regions": attached}


def make_directory(path: Path, what: str, undo: contextlib.ExitStack, umask: int | None = None) -> None:
    """Create a directory and its missing parents; undo removes them again. Raises Usage.

    umask: the caller's, where the caller is another process.
    """
    try:
        for each in reversed([p for p in (path, *path.parents) if not os.path.lexists(p)]):
            each.mkdir(exist_ok=True)
            undo.callback(_remove_if_empty, each)
            if umask is not None:
                each.chmod(0o777 & ~umask)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except OSError as error:
        raise Usage(f"{what} cannot be created at {path}: {reason(error)}") from error


def _remove_if_empty(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.rmdir()


def write_settings(fs: Fs, path: Path, text: str) -> None:
    """Replace fsrepl.toml in one step. An existing file, also behind a symlink, keeps its owner and mode."""
    path = Path(os.path.realpath(path))
    with open_directory(fs, path.parent) as at:
        name = path.name.encode()
        try:
            like = fs.stat(at, name)
        except FileNotFoundError:
            like = None
        write_bytes(fs, at, name, text.encode(), mode=0o644, like=like)


def attach_region(
    site: Site, name: str, undo: contextlib.ExitStack, *, replace: bool = False, umask: int | None = None,
    uuid: str = "",
) -> list[str]:  # fmt: skip
    """Attach a directory as the region of this name, new or with its identity; the buckets found in it.

    Raises Usage where the directory is another region, not the known one, or in use by another site. replace: the
    directory replaces a lost region. uuid: for a new region. undo removes what was created.
    """
    path = site.settings.regions[name].path
    make_directory(path, f"region {name}", undo, umask)
    with open_directory(site.fs, path) as at:
        identity = read_identity(site, at, REGION_IDENTITY, f"region {name} at {path}")
        known = site.identities.regions.get(name)
        if identity is None:
            if known is not None and not replace:
                raise Usage(
                    f"{path} is not the region {name} that this site knows (no {REGION_IDENTITY.decode()}); mount it, "
                    "or if its disk is lost, name the new directory with --replace"
                )
            requirements.require(site.fs, at, f"region {name} at {path}")
            undo.callback(remove_identity, site.fs, path, REGION_IDENTITY)
            identity = dict(new_identity(name, site.now(), **({"uuid": uuid} if uuid else {})))
        elif identity.get("name") != name:
            raise Usage(f"{path} is the region {identity.get('name')!r}; use that name")
        elif known is not None and identity.get("uuid") != known and not replace:
            raise Usage(f"{path} is another region named {name} than this site knows; --replace uses it instead")
        _claim(site, name, at, identity)
        site.identities.regions[name] = str(identity["uuid"])
        stores: list[tuple[bool, str, str]] = []
        for folder, kind in site.fs.entries(at):
            if kind is not FileType.DIRECTORY:
                continue
            with contextlib.suppress(OSError, ValueError, FsreplError):
                fd = site.fs.open_dir(at, folder + b"/" + META, cross=True)
                try:
                    bucket = read_document(site.fs, fd, b"bucket.json")
                finally:
                    site.fs.close(fd)
                if bucket is not None:
                    called = os.fsdecode(folder)
                    arn.check_bucket_name(called)
                    stores.append((bucket.get("name") != called, f"{name}/{called}", str(bucket["uuid"])))
    found = []
    for other_name, address, uuid_there in sorted(stores):
        if other_name and any(u == uuid_there and a != address for a, u in site.identities.buckets.items()):
            continue  # a copy of another bucket's folder
        site.identities.buckets[address] = uuid_there
        found.append(address)
    return sorted(found)


def read_identity(site: Site, at: int, name: bytes, what: str) -> dict[str, object] | None:
    """The identity of a region or a tier in an open directory; None where it has none. Raises Usage."""
    try:
        return read_document(site.fs, at, name)
    except (OSError, ValueError) as error:
        raise Usage(f"the identity of {what} cannot be read: {error}") from error


def remove_identity(fs: Fs, path: Path, name: bytes) -> None:
    with open_directory(fs, path) as at:
        remove_document(fs, at, name)


def _claim(site: Site, name: str, at: int, identity: dict[str, object]) -> None:
    """Write the site's claim into a region: two daemons in one region would make two versions of each file.

    A site whose folder was lost leaves its claim behind, so a claim counts only while its daemon runs. Raises Usage.
    """
    mine = {"uuid": site.uuid, "state": site.state}
    claim = identity.get("site")
    if claim == mine:
        return
    of_another = isinstance(claim, dict) and claim.get("uuid") != site.uuid and claim.get("state") != site.state
    if isinstance(claim, dict) and of_another and is_locked(str(claim.get("state"))):
        raise Usage(
            f"region {name} at {site.settings.regions[name].path} belongs to a site that is running, with its state in "
            f"{claim.get('state')}; remove it from that site with `fsrepl region forget {identity.get('name')}`"
        )
    write_document(site.fs, at, REGION_IDENTITY, {**identity, "site": mine})
