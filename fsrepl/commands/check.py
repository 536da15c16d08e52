"""The checks of `fsrepl check`: settings, documents and roles. Changes nothing."""

from __future__ import annotations

from msgspec import Struct, field

from fsrepl.daemon import exporter, hooks
from fsrepl.daemon.main import check_services
from fsrepl.errors import BucketMissing, DocumentInvalid, FsreplError, Refused, Unavailable, Usage
from fsrepl.model import json_text
from fsrepl.model.keys import Document
from fsrepl.s3 import roles
from fsrepl.settings import listening
from fsrepl.storage.site import Site


class Checked(Struct):
    """The results of a check. wrong: errors. notes: states that may be intended."""

    site: Site
    wrong: list[FsreplError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def document(self) -> Document:
        return {
            "Settings": str(self.site.settings.path),
            "Regions": sorted(self.site.settings.regions),
            "Buckets": sorted(self.site.buckets),
            "Errors": [str(error) for error in self.wrong],
            "Notes": self.notes,
        }


def check(site: Site) -> Checked:
    """Check a whole site. Raises Usage for metrics that cannot be exported as the settings say."""
    exporter.check(site.settings)
    check_services(site.settings)
    checked = Checked(site)
    if trouble := hooks.check(site.settings.events):
        checked.notes.append(f"{site.settings.path}: {trouble}")
    if trouble := listening.trouble(site.settings.console):
        checked.wrong.append(Usage(f"{site.settings.path}: {trouble}"))
    checked.notes += site.unattached()
    _check_documents(checked)
    _check_roles(checked)
    return checked


def _check_documents(checked: Checked) -> None:
    """Add an error for each invalid document, and a note for each missing role and each region that is away."""
    for bucket in checked.site.buckets.values():
        try:
            with bucket.open():
                pass
        except DocumentInvalid as error:
            checked.wrong.append(error)
            continue
        except (Unavailable, BucketMissing) as error:
            checked.notes.append(str(error))
            continue
        role = bucket.replication.role if bucket.replication else ""
        if role and not (checked.site.settings.roles / f"{role}.json").exists():
            checked.notes.append(
                f"role {role}, used by {bucket.address}, is missing: deliveries that need it will be FAILED"
            )


def _check_roles(checked: Checked) -> None:
    folder = checked.site.settings.roles
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            roles.parse_role(json_text.loads(path.read_text()), path.stem)
        except FsreplError as error:
            checked.wrong.append(error)
        except (OSError, ValueError) as error:
            checked.wrong.append(Refused(roles.MALFORMED, f"{path} cannot be read: {error}"))
