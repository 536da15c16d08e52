"""One request as handlers see it: admitted, with its parameters, and with what answers are made of."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from msgspec.structs import replace
from starlette.responses import HTMLResponse, RedirectResponse, Response

from fsrepl.commands.reader import Document
from fsrepl.console.access import Session
from fsrepl.console.gateway import Gateway, Watch
from fsrepl.console.pages import rendering
from fsrepl.console.pages.rendering import Frame
from fsrepl.daemon.requests import Request
from fsrepl.errors import Refused, Usage
from fsrepl.model.address import Address


@dataclass(frozen=True)
class Visit:
    """parameters: those of the address; form: those of the body, in order. Text has surrogates for bytes that are not
    UTF-8, as os.fsdecode makes them. here: the address itself."""

    gateway: Gateway
    watch: Watch
    session: Session
    here: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, Sequence[str]] = field(default_factory=dict)
    read_only: bool = False
    by_socket: bool = False

    def get(self, name: str, default: str = "") -> str:
        """A parameter of the address."""
        return self.parameters.get(name, default)

    def all(self, name: str) -> list[str]:
        """The values of a parameter that comes several times."""
        query = parse_qsl(self.here.partition("?")[2], keep_blank_values=True, errors="surrogateescape")
        return [value for each, value in query if each == name]

    def given(self, name: str, default: str = "") -> str:
        """The first value of a field of the form."""
        return next(iter(self.form.get(name, ())), default)

    def bucket(self) -> Address:
        """The bucket that the address names. Raises Usage."""
        return Address.parse_bucket(self.get("bucket"))

    def object(self) -> Address:
        """The object that the address names. Raises Usage."""
        bucket = self.bucket()
        key = os.fsencode(self.get("key"))
        if not key:
            raise Usage("the address of this page names no object")
        return Address(bucket.region, bucket.name, key)

    def folder(self) -> bytes:
        """The folder that the address names, without a slash at its end; in a form of its own, since a field of a form
        cannot hold every name. Raises Usage."""
        if text := self.get("folder64"):
            try:
                return base64.urlsafe_b64decode(text)
            except ValueError as error:
                raise Usage("the address of this page names no folder") from error
        return os.fsencode(self.get("folder"))

    def number(self, name: str) -> int:
        """A parameter that counts from 0; 0 where it is missing. Raises Usage."""
        text = self.get(name) or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise Usage(f"{name} in the address of this page is no number")
        return int(text)

    # -- answers

    def frame(self) -> Frame:
        """The frame of a page, with the notices that wait."""
        return replace(self.live_frame(), notices=self.session.take_notices())

    def live_frame(self) -> Frame:
        """The frame of a part of a page."""
        settings = self.gateway.settings
        look = self.watch.newest(wait_s=0)
        trouble = ""
        if look is not None and look.trouble:
            trouble = look.trouble
        elif look is not None and not look.status["daemon"]["running"]:
            trouble = "the daemon is not running"
        return Frame(
            site=str(settings.path.parent), path=self.here, csrf=self.session.csrf, read_only=self.read_only,
            can_leave=not self.by_socket, trouble=trouble,
        )  # fmt: skip

    def html(self, text: str, status: int = 200) -> Response:
        return HTMLResponse(text, status)

    def say(self, title: str, text: str, status: int) -> Response:
        """A page that says one thing, as an error; with status 503 the doctor knows more."""
        page = rendering.message(self.frame(), title, text, back=self.back(), asks_doctor=status == 503)
        return self.html(page, status)

    def back(self) -> str:
        """The page from which the form came, or the overview. Only an address of the console itself."""
        back = self.given("back")
        return back if self.is_own(back) else "/"

    @staticmethod
    def is_own(address: str) -> bool:
        """Whether an address is one of the console itself, and of no other site."""
        is_plain = address.isascii() and address.isprintable() and " " not in address
        return is_plain and address.startswith("/") and not address.startswith(("//", "/\\"))

    def done(self, text: str, to: str = "") -> Response:
        """The response to a form: a redirection to a page, with a notice of its result."""
        self.session.tell(text)
        self.watch.look_again()
        return RedirectResponse(to or self.back(), 303)

    def perform(self, request: Request) -> Document:
        """Have the daemon do something. Raises FsreplError."""
        if self.read_only:
            raise Refused("AccessDenied", "this console is read-only")
        return self.gateway.ask(request)
