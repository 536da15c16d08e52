"""The guide's five steps, in its words and order: destination, source, storage class, role, review.

The answers so far are in the address of each step, so that a browser's way back works. Source: s3-semantics, section 7,
S8 to S21.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from msgspec import Struct
from msgspec.structs import replace

from fsrepl.commands.reader import Document
from fsrepl.console.pages.rendering import Frame, render
from fsrepl.daemon.requests import EnableReplication
from fsrepl.errors import Usage
from fsrepl.model.address import Address
from fsrepl.model.version import STORAGE_CLASSES

STEPS = ("Destination", "Source", "Storage class", "Role", "Review")
WHOLE, PREFIXES = "whole", "prefixes"
SAME = ""
"""The storage class of a replica is its source's."""


class Answers(Struct, frozen=True):
    """The answers so far; empty where a question was not answered yet.

    prefixes: each with the storage class of its replicas. role None: not answered, empty: a new one. existing: add or
    replace, where the source has rules.
    """

    source: str = ""
    region: str = ""
    destination: str = ""
    scope: str = ""
    prefixes: tuple[tuple[str, str], ...] = ()
    storage_class: str | None = None
    role: str | None = None
    existing: str = ""

    @property
    def step(self) -> int:
        """The first step that is not answered, from 1; 0: the source bucket comes first."""
        if not self.source:
            return 0
        if not self.destination:
            return 1
        if not self.scope or (self.scope == PREFIXES and not self.prefixes):
            return 2
        if self.scope == WHOLE and self.storage_class is None:
            return 3
        return 4 if self.role is None else 5

    def fields(self) -> list[tuple[str, str]]:
        """The answers as fields of a form, or parameters of an address."""
        found = [
            ("source", self.source),
            ("region", self.region),
            ("destination", self.destination),
            ("scope", self.scope),
        ]
        for prefix, storage_class in self.prefixes:
            found += [("prefix", prefix), ("class", storage_class)]
        if self.storage_class is not None:
            found.append(("storage_class", self.storage_class))
        if self.role is not None:
            found.append(("role", self.role))
        found.append(("existing", self.existing))
        return [(name, value) for name, value in found if value or name in ("class", "storage_class", "role")]

    def url(self) -> str:
        return "/replicate?" + urlencode(self.fields())

    def before(self) -> Answers:
        """The answers without that of the last step that was answered."""
        match self.step:
            case 5:
                return replace(self, role=None, existing="")
            case 4 if self.scope == WHOLE:
                return replace(self, storage_class=None)
            case 4 | 3:
                return replace(self, scope="")
            case 2 if self.scope:
                return replace(self, scope="")
            case 2:
                return replace(self, region="", destination="")
            case _:
                return Answers(source=self.source if self.region else "")

    def request(self, *, dry_run: bool) -> EnableReplication:
        """The request that carries the answers out. Raises Usage where one is missing."""
        if self.step < 5:
            raise Usage(f"step {self.step} is not answered yet")
        classes = dict(self.prefixes) if self.scope == PREFIXES else {}
        return EnableReplication(
            Address.parse_bucket(self.source),
            Address.parse_bucket(self.destination),
            prefixes=tuple(classes),
            storage_class=self.storage_class or "" if self.scope == WHOLE else "",
            storage_classes={prefix: name for prefix, name in classes.items() if name},
            role=self.role or "",
            add=self.existing == "add",
            replace=self.existing == "replace",
            dry_run=dry_run,
        )


def overlapping(prefixes: Sequence[tuple[str, str]], prefix: str) -> str:
    """The prefix that overlaps a new one, since each key belongs to one rule of this form; empty where none does."""
    return next((each for each, _ in prefixes if each.startswith(prefix) or prefix.startswith(each)), "")


def commands(request: EnableReplication) -> list[str]:
    """A request as commands: one for each storage class of prefixes."""
    by_class: dict[str, list[str]] = {}
    for prefix in request.prefixes:
        by_class.setdefault(request.storage_classes.get(prefix, SAME), []).append(prefix)
    found: list[str] = []
    for storage_class, prefixes in (by_class or {request.storage_class: []}).items():
        words = ["fsrepl", "replication", "enable", str(request.source), str(request.destination)]
        for prefix in prefixes:
            words += ["--prefix", prefix]
        if storage_class:
            words += ["--storage-class", storage_class]
        if request.role:
            words += ["--role", request.role]
        if request.add or found:
            words.append("--add")
        elif request.replace:
            words.append("--replace")
        found.append(shlex.join(words))
    return found


# -- pages


def sources(frame: Frame, buckets: Sequence[Document]) -> str:
    """Before the first step: which bucket. buckets: the documents of `bucket ls`."""
    return render("wizard_source.html", frame, buckets=buckets)


def destination(
    frame: Frame, answers: Answers, offered: Mapping[str, Sequence[str]], unsuitable: Mapping[str, str]
) -> str:
    """Step 1. offered: the buckets of each region; unsuitable: the others, and why they are not offered."""
    here = {address: why for address, why in unsuitable.items() if address.startswith(f"{answers.region}/")}
    return _step(
        "wizard_destination.html", frame, answers, 1, offered=offered, unsuitable=here if answers.region else unsuitable
    )


def source(frame: Frame, answers: Answers, trouble: str) -> str:
    """Step 2: the whole bucket, or prefixes."""
    return _step("wizard_prefixes.html", frame, answers, 2, trouble=trouble, classes=STORAGE_CLASSES)


def storage_class(frame: Frame, answers: Answers) -> str:
    """Step 3."""
    return _step("wizard_class.html", frame, answers, 3, classes=STORAGE_CLASSES)


def role(frame: Frame, answers: Answers, roles: Sequence[str], generated: str) -> str:
    """Step 4. roles: the existing ones; generated: the name that a new one gets."""
    return _step("wizard_role.html", frame, answers, 4, roles=roles, generated=generated)


def review(
    frame: Frame, answers: Answers, answer: Document | None, *, trouble: str, has_rules: bool, offers_trees: bool
) -> str:
    """Step 5. answer: that of a dry run; None with the reason as trouble. has_rules: the source has rules already.

    offers_trees: one of the buckets is no tree bucket yet.
    """
    shown = {name: answer[name] for name in ("ReplicationConfiguration",) if name in answer} if answer else None
    return _step(
        "wizard_review.html", frame, answers, 5,
        document=json.dumps(shown, indent=2) if shown else "",
        new_role=answer["Role"] if answer and answer.get("Created") else "",
        commands=commands(answers.request(dry_run=False)),
        trouble=trouble,
        has_rules=has_rules,
        offers_trees=offers_trees,
    )  # fmt: skip


def existing(frame: Frame, source: str, answer: Document, objects: int | None) -> str:
    """After the last step: what was written, and whether the objects of before are to be replicated too."""
    shown = json.dumps(answer, indent=2)
    return render("wizard_existing.html", frame, source=source, document=shown, objects=objects)


def _step(template: str, frame: Frame, answers: Answers, number: int, **values: object) -> str:
    return render(
        template, frame, answers=answers, number=number, steps=STEPS, back=answers.before().url(), **values
    )  # fmt: skip
