"""The frame around each page, and how values read in the templates."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from msgspec import Struct

from fsrepl.commands.folder import key_of
from fsrepl.console.access import Notice
from fsrepl.model import keys
from fsrepl.model.amounts import counted, duration_text, kinds_text, size_text

NAVIGATION = (
    ("/", "Overview"),
    ("/replicate", "Replicate a bucket"),
    ("/failures", "Failures"),
    ("/jobs", "Jobs"),
    ("/lifecycle", "Lifecycle"),
    ("/doctor", "Doctor"),
)


class Frame(Struct, frozen=True):
    """The frame of every page around its content.

    path: the address of the page, to which its forms lead back. csrf: the token of its forms. can_leave: whether there
    is a session to end. trouble: why nothing can be changed now.
    """

    site: str
    path: str
    csrf: str
    read_only: bool = False
    can_leave: bool = True
    notices: Sequence[Notice] = ()
    trouble: str = ""

    @property
    def may_change(self) -> bool:
        return not self.read_only and not self.trouble


def url(path: str, **parameters: str | bytes | int | None) -> str:
    """A path of the console with parameters. Bytes are sent exactly; None is left out."""
    pairs = [
        f"{name}={quote(value if isinstance(value, bytes) else str(value), safe='/')}"
        for name, value in parameters.items()
        if value is not None
    ]
    return f"{path}?{'&'.join(pairs)}" if pairs else path


def _when(stamp: str) -> str:
    """An RFC 3339 time to the second."""
    return f"{stamp[:10]} {stamp[11:19]} UTC"


def shown(text: str) -> str:
    """Text that contains users' names: control characters, and those that turn the direction of text, escaped."""
    return keys.shown(text.encode("utf-8", "surrogateescape"))


def with_commands(text: str) -> Markup:
    """A sentence with its commands, which are in backquotes, set as such; otherwise as shown gives it."""
    parts = shown(text).split("`")
    if len(parts) % 2 == 0:  # a name has a backquote
        return escape(shown(text))
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def key_text(document: dict[str, Any]) -> str:
    """The key of a document, for people."""
    return keys.shown(key_of(document))


def name_text(document: dict[str, Any]) -> str:
    """The last component of the key of a document."""
    return keys.shown(keys.split(key_of(document))[1])


def _number(value: int) -> str:
    return f"{value:,}"


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fsrepl.console"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"],
    )  # fmt: skip
    environment.filters.update(
        size=size_text, duration=duration_text, when=_when, shown=shown, number=_number, key=key_text, name=name_text,
        said=with_commands,
        key_bytes=key_of, bytes_text=keys.shown, base64=lambda data: base64.urlsafe_b64encode(data).decode(),
    )  # fmt: skip
    environment.globals.update(url=url, counted=counted, kinds_text=kinds_text, navigation=NAVIGATION)
    return environment


def prepare() -> None:
    """Compile all templates, so that the first visitor does not wait for that."""
    environment = _environment()
    for name in environment.list_templates():
        environment.get_template(name)


def render(template: str, frame: Frame, /, **values: object) -> str:
    """A page, or with a template whose name begins with an underscore a part of one."""
    return _environment().get_template(template).render(frame=frame, **values)


def message(frame: Frame, title: str, text: str, *, back: str = "/", asks_doctor: bool = False) -> str:
    """A page that says one thing; with a link to the doctor, who knows more."""
    return render("message.html", frame, title=title, text=text, back=back, asks_doctor=asks_doctor)
