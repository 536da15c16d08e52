"""A browser without JavaScript: it follows links, fills in the forms that a page has, and keeps cookies."""

from __future__ import annotations

import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import TracebackType
from urllib.parse import urlencode, urljoin, urlsplit

from fsrepl.daemon import control, requests
from fsrepl.settings import FILE, reading
from tests.scraping import free_port
from tests.site import Site
from tests.waiting import DEADLINE_S


@dataclass(slots=True)
class Form:
    """A form of a page, with the values that it has."""

    method: str
    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""


@dataclass(slots=True)
class Page:
    """An answer, and what is on it. text: what people read, blanks joined."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    address: str
    forms: list[Form] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""
    tags: set[str] = field(default_factory=set)

    def form(self, label: str) -> Form:
        """The form with a button or text."""
        found = [form for form in self.forms if label in form.text]
        assert found, f"no form {label!r} on {self.address}: {[form.text for form in self.forms]}\n{self.text}"
        return found[0]

    def link(self, label: str) -> str:
        found = [href for text, href in self.links if text == label]
        assert found, f"no link {label!r} on {self.address}: {self.links}"
        return found[0]


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page, self._form, self._link, self._option = page, None, None, ""
        self._form: Form | None
        self._link: list[str] | None
        self._select = ""
        self._parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.page.tags.add(tag)
        assert not [name for name in given if name.startswith("on") or name == "style"], f"inline code in {tag} {given}"
        if tag == "form":
            self._form = Form(given.get("method", "get"), given.get("action", ""))
            self.page.forms.append(self._form)
        elif tag == "a":
            self._link = [given.get("href", ""), ""]
        elif self._form is not None and tag == "input" and given.get("name"):
            is_choice = given.get("type") in ("checkbox", "radio")
            if given.get("type") != "file" and (not is_choice or "checked" in given):
                self._form.fields.append((given["name"], given.get("value", "on" if is_choice else "")))
        elif self._form is not None and tag in ("select", "textarea"):
            self._select = given.get("name", "")
            if tag == "textarea":
                self._form.fields.append((self._select, ""))
        elif self._form is not None and tag == "button" and given.get("name"):
            pass
        elif self._form is not None and tag == "option" and "selected" in given:
            self._form.fields.append((self._select, given.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "a" and self._link is not None:
            self.page.links.append((" ".join(self._link[1].split()), self._link[0]))
            self._link = None

    def handle_data(self, data: str) -> None:
        if self.lasttag == "textarea" and self._form is not None and self._form.fields[-1][0] == self._select:
            name, value = self._form.fields[-1]
            self._form.fields[-1] = (name, value + data)
        self._parts.append(data)
        if self._form is not None:
            self._form.text += data
        if self._link is not None:
            self._link[1] += data

    def close(self) -> None:
        super().close()
        self.page.text = " ".join("".join(self._parts).split())


def read(status: int, headers: Mapping[str, str], body: bytes, address: str) -> Page:
    page = Page(status, headers, body, address)
    if headers.get("content-type", "").startswith("text/html"):
        reader = _Reader(page)
        reader.feed(body.decode())
        reader.close()
    return page


class Visitor:
    """One visitor of a console at a port, or at a Unix socket."""

    def __init__(self, port: int = 0, unix: Path | None = None, host: str = "") -> None:
        self.port, self.unix = port, unix
        self.host = host or f"127.0.0.1:{port}"
        self.cookie = ""

    def request(
        self, method: str, address: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Page:
        """One request, no redirect followed."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        if self.unix is not None:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(DEADLINE_S)
            connection.sock.connect(str(self.unix))
        given = {"Host": self.host, **({"Cookie": self.cookie} if self.cookie else {}), **(headers or {})}
        try:
            connection.request(method, address, body, given)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            data = b"" if found.get("content-type", "").startswith("text/event-stream") else answer.read()
        finally:
            connection.close()
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].partition(";")[0]
        return read(answer.status, found, data, address)

    def get(self, address: str, status: int = 200) -> Page:
        page = self._followed(self.request("GET", address))
        assert page.status == status, f"{address}: {page.status}: {page.text or page.body!r}"
        return page

    def _followed(self, page: Page) -> Page:
        while page.status == 303:
            page = self.request("GET", urljoin(page.address, page.headers["location"]))
        return page

    def submit(self, page: Page, label: str, status: int = 200, **values: str | Iterable[str]) -> Page:
        """Fill in the form with a label on a page, send it, and follow where it leads."""
        form = page.form(label)
        replaced = {name: [value] if isinstance(value, str) else list(value) for name, value in values.items()}
        fields = [(n, v) for n, v in form.fields if n not in replaced]
        fields += [(name, value) for name, some in replaced.items() for value in some]
        text = urlencode(fields)
        if form.method == "get":
            return self.get(f"{urlsplit(form.action).path}?{text}", status)
        answer = self._followed(self.post(form.action, text.encode()))
        assert answer.status == status, f"{form.action}: {answer.status}: {answer.text}"
        return answer

    def post(self, address: str, body: bytes, headers: Mapping[str, str] | None = None) -> Page:
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.request("POST", address, body, {**kind, **(headers or {})})

    def upload(self, page: Page, files: Mapping[str, bytes], *, follow: bool = True, **values: str) -> Page:
        """Send files with the form of a page, as a browser does."""
        form = page.form("Upload")
        boundary = secrets.token_hex(8)
        parts = [(f'name="{name}"', values.get(name, value).encode()) for name, value in form.fields]
        parts += [(f'name="files"; filename="{name}"', data) for name, data in files.items()]
        body = b"".join(
            f"--{boundary}\r\nContent-Disposition: form-data; {what}\r\n\r\n".encode() + data + b"\r\n"
            for what, data in parts
        )
        body += f"--{boundary}--\r\n".encode()
        answer = self.request("POST", form.action, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
        return self._followed(answer) if follow else answer


class Console:
    """A console of a site, in its own process. site: or the folder of one."""

    def __init__(self, site: Site | Path, *options: str) -> None:
        self._site = site
        root = site if isinstance(site, Path) else site.root
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fsrepl", "--site", str(root), "console",
             "--listen", f"127.0.0.1:{free_port()}", *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={name: value for name, value in os.environ.items() if name != "JOURNAL_STREAM"},
        )  # fmt: skip
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(3)]
        match = re.search(r"https?://127\.0\.0\.1:(\d+)(/enter\?token=\S+)", lines[1])
        assert match, lines
        self.port, self.link = int(match[1]), match[2]
        self.unix = root / ".fsrepl-site" / "console"

    @property
    def site(self) -> Site:
        assert isinstance(self._site, Site)
        return self._site

    def visitor(self) -> Visitor:
        """A visitor who is signed in by a link."""
        visitor = Visitor(self.port)
        assert visitor.get(self.another_link()).link("Continue") == "/"
        return visitor

    def another_link(self) -> str:
        """What the command prints while a console runs, without its process."""
        answer = Visitor(unix=self.unix, host="localhost").post("/link", b"", {"X-Fsrepl-Link": "1"})
        assert answer.status == 200
        link = answer.body.decode()
        assert link.startswith("http"), link
        return "/enter" + link.partition("/enter")[2]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def __enter__(self) -> Console:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def settle(site: Site) -> None:
    """`fsrepl wait`, without its process."""
    state = reading.load(site.root / FILE).state
    answer = control.ask(state, requests.Wait(timeout_s=DEADLINE_S))
    assert not answer["pending"] + answer["failed"], answer
