"""The HTTP side: each request is admitted, handled in a thread, and answered with headers that let no other site in.

What is refused before a handler runs: a Host that is not the console's, a visitor without a session, and a form without
the session's token. Errors of handlers become pages; a form that fails leads back to its page, with the error on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from importlib import resources
from urllib.parse import parse_qsl

from msgspec import Struct
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fsrepl.console import access
from fsrepl.console.access import Access, Session
from fsrepl.console.gateway import Gateway, Watch
from fsrepl.console.handlers import ACTIONS, LIVE, PAGES, Handler
from fsrepl.console.handlers.visit import Visit
from fsrepl.console.pages import rendering
from fsrepl.console.uploads import Upload
from fsrepl.errors import FsreplError, NotRunning, Refused, TimedOut, Unavailable, Usage, reason
from fsrepl.model import keys
from fsrepl.model.amounts import counted
from fsrepl.settings import listening
from fsrepl.storage import listing

log = logging.getLogger("fsrepl")

BY_SOCKET = "fsrepl.by_socket"
"""In a request's scope: it came by the Unix socket."""
LINK_HEADER = "x-fsrepl-link"
"""A header of the command that asks for a link: a browser never sends it for another site without asking."""
READ_ONLY_HEADER = "x-fsrepl-read-only"
_FORM_MAX_BYTES = 2 << 20
_STREAMS_MAX = 32
_LIVE_S = 1.0
_ALIVE_S = 20.0

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATIC = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class Console(Struct):
    """The state that all requests share.

    cookie: the name of the session's; two sites of one machine have different ones. base: the beginning of addresses
    for a browser, empty where none reaches it.
    """

    gateway: Gateway
    watch: Watch
    access: Access
    cookie: str
    base: str = ""
    read_only: bool = False
    streams: int = 0
    stopping: bool = False

    def new_link(self) -> str:
        """An address that opens one session, once."""
        return f"{self.base}/enter?token={self.access.new_link()}"


class _NoEntry(Exception):
    """A request that is turned away, with the status and the sentence of the answer."""

    def __init__(self, status: int, title: str, text: str) -> None:
        super().__init__(text)
        self.status, self.title, self.text = status, title, text


def create(console: Console) -> ASGIApp:
    """The application."""
    routes = [
        Route("/enter", _endpoint(console, _enter)),
        Route("/link", _endpoint(console, _link), methods=["POST"]),
        Route("/static/{name}", _endpoint(console, _static)),
        Route("/leave", _endpoint(console, _leave), methods=["POST"]),
        Route("/upload", _endpoint(console, _upload), methods=["POST"]),
        *(Route(path, _endpoint(console, _stream(page, part))) for path, (page, part) in LIVE.items()),
        *(Route(path, _endpoint(console, _page(handler))) for path, handler in PAGES.items()),
        *(Route(path, _endpoint(console, _action(handler)), methods=["POST"]) for path, handler in ACTIONS.items()),
    ]
    return _Guard(Starlette(routes=routes, exception_handlers={404: _not_found, 405: _not_found}), console)


class _Guard:
    """Refuses a foreign Host, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, console: Console) -> None:
        self._app, self._console = app, console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        host = access.host_name(Request(scope).headers.get("host", ""))
        app = self._app if host in listening.hosts(self._console.gateway.settings.console) else _foreign_host(host)
        await app(scope, receive, send_with_headers)


def _foreign_host(host: str) -> Response:
    text = (
        f"This console is not called {keys.shown(host.encode('utf-8', 'surrogateescape'))!r}. Where a proxy or this "
        "machine has that name, put it into hosts in [console] of fsrepl.toml."
    )
    return HTMLResponse(_entrance("Unknown host", text), 421)


def _entrance(title: str, text: str, following: str = "") -> str:
    frame = rendering.Frame(site="", path="", csrf="")
    return rendering.render("entrance.html", frame, title=title, text=text, next=following)


async def _not_found(request: Request, error: Exception) -> Response:
    return HTMLResponse(_entrance("There is no such page", "The address may be mistyped.", "/"), 404)


_Endpoint = Callable[[Console, Request], Awaitable[Response]]


def _endpoint(console: Console, handle: _Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await handle(console, request)
        except _NoEntry as refused:
            if request.headers.get("accept") == "text/plain":
                return PlainTextResponse(refused.text, refused.status)
            return HTMLResponse(_entrance(refused.title, refused.text), refused.status)

    return endpoint


# -- admission


def _by_socket(request: Request) -> bool:
    return bool(request.scope.get(BY_SOCKET))


def _session(console: Console, request: Request) -> Session:
    """The visitor's session. Raises _NoEntry."""
    if _by_socket(request):
        return console.access.by_socket
    found = console.access.session(request.cookies.get(console.cookie, ""))
    if found is None:
        raise _NoEntry(
            401, "Sign in",
            "Run `fsrepl console` on the machine of this site, as the site's user: it prints a link that opens this "
            "console, once.",
        )  # fmt: skip
    return found


def _visit(console: Console, request: Request, form: dict[str, list[str]] | None = None) -> Visit:
    query = request.scope["query_string"].decode("ascii", "replace")
    parameters = dict(parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))
    path = request.scope["path"]
    return Visit(
        console.gateway, console.watch, _session(console, request), f"{path}?{query}" if query else path, parameters,
        form or {}, console.read_only, _by_socket(request),
    )  # fmt: skip


def _check_form(session: Session, token: str, read_only: bool) -> None:
    if not access.is_genuine(session, token):
        raise _NoEntry(
            403, "This form is out of date",
            "It did not come from a page of this session. Go back, load the page again, and repeat what you did.",
        )  # fmt: skip
    if read_only:
        raise _NoEntry(403, "Read-only", "This console is read-only: nothing was changed.")


def _check_site(request: Request) -> None:
    """Refuse what another site's page sent, where the browser says so. Raises _NoEntry."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise _NoEntry(403, "From another site", "This request came from a page of another site, and was refused.")


async def _form(request: Request) -> dict[str, list[str]]:
    """The fields of a form. Raises _NoEntry for a form that is too long, or of another kind."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise _NoEntry(415, "Not a form", "This address takes a form of the console.")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _FORM_MAX_BYTES:
            raise _NoEntry(413, "Too long", f"A form may have {_FORM_MAX_BYTES:,} bytes.")
    form: dict[str, list[str]] = {}
    text = data.decode("utf-8", "surrogateescape")
    for name, value in parse_qsl(text, keep_blank_values=True, errors="surrogateescape", max_num_fields=1000):
        form.setdefault(name, []).append(value)
    return form


# -- pages and forms


def _page(handler: Handler) -> _Endpoint:
    async def page(console: Console, request: Request) -> Response:
        visit = _visit(console, request)
        return await run_in_threadpool(_answer, handler, visit)

    return page


def _action(handler: Handler) -> _Endpoint:
    async def action(console: Console, request: Request) -> Response:
        session = _session(console, request)
        _check_site(request)
        try:
            form = await _form(request)
        except ValueError as error:  # too many fields
            raise _NoEntry(400, "Not a form", str(error)) from error
        _check_form(session, next(iter(form.get("csrf", ())), ""), console.read_only)
        visit = _visit(console, request, form)
        return await run_in_threadpool(_answer, handler, visit)

    return action


def _answer(handler: Handler, visit: Visit) -> Response:
    """The answer of a handler. An error of a form is reported on the page that the form is on."""
    try:
        return handler(visit)
    except FsreplError as error:
        if visit.form:
            visit.session.tell(str(error), is_error=True)
            visit.watch.look_again()
            return RedirectResponse(visit.back(), 303)
        title = next((_TITLES[each] for each in type(error).__mro__ if each in _TITLES), "That did not work")
        return visit.say(title, str(error), _status_of(error))
    except sqlite3.Error as error:
        return visit.say("The journal cannot be read now", str(error), 503)
    except OSError as error:
        return visit.say("That did not work", reason(error), 503)
    except Exception as error:
        log.exception("console: %s", visit.here)
        return visit.say("An unexpected error", f"{type(error).__name__}; the console's log has it.", 500)


_TITLES: dict[type, str] = {
    NotRunning: "The daemon is not running",
    TimedOut: "No answer in time",
    Unavailable: "Not available now",
}


def _status_of(error: FsreplError) -> int:
    match error:
        case Refused():
            return 404 if error.code.startswith("NoSuch") else 409
        case Usage():
            return 400
        case TimedOut():
            return 504
        case _:
            return 503


# -- sessions


async def _enter(console: Console, request: Request) -> Response:
    """A link that the command printed. The page leads on by itself: a redirect would send no SameSite=Strict cookie
    where the link was followed from another site, such as a web mail."""
    session = console.access.enter(request.query_params.get("token", ""))
    if session is None:
        raise _NoEntry(
            403, "This link was used already, or is too old",
            "A link works once, and for 15 minutes. `fsrepl console` prints another.",
        )  # fmt: skip
    response = HTMLResponse(_entrance("Welcome", "You are signed in.", "/"))
    response.set_cookie(
        console.cookie, session.id, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


async def _link(console: Console, request: Request) -> Response:
    """Another link, for the command: only by the Unix socket, which no other user can open. Empty where no browser
    reaches the console."""
    if not _by_socket(request) or LINK_HEADER not in request.headers:
        raise _NoEntry(403, "Not here", "Links are given to the command `fsrepl console` only.")
    link = console.new_link() if console.base else ""
    return PlainTextResponse(link, headers={READ_ONLY_HEADER: "1" if console.read_only else "0"})


async def _leave(console: Console, request: Request) -> Response:
    session = _session(console, request)
    form = await _form(request)
    _check_form(session, next(iter(form.get("csrf", ())), ""), False)
    console.access.leave(session)
    response = HTMLResponse(_entrance("Signed out", "`fsrepl console` prints another link."))
    response.delete_cookie(console.cookie, httponly=True, samesite="strict")
    return response


async def _static(console: Console, request: Request) -> Response:
    name = request.path_params["name"]
    if name not in _STATIC:
        raise _NoEntry(404, "There is no such page", "The address may be mistyped.")
    data = resources.files("fsrepl.console").joinpath("static", name).read_bytes()
    return Response(data, media_type=_STATIC[name])


# -- live parts


def _stream(page: str, part: Callable[[Visit], str]) -> _Endpoint:
    async def stream(console: Console, request: Request) -> Response:
        visit = replace(_visit(console, request), here=page)  # where its forms lead back to
        if console.streams >= _STREAMS_MAX:
            raise _NoEntry(503, "Too many", f"{_STREAMS_MAX} pages are kept up to date already.")
        return StreamingResponse(_events(console, visit, part), media_type="text/event-stream")

    return stream


async def _events(console: Console, visit: Visit, part: Callable[[Visit], str]) -> AsyncIterator[str]:
    """The part as an event, whenever it has changed; now and then a comment, so that a lost reader is noticed."""
    console.streams += 1
    try:
        sent, silent_s = "", 0.0
        while not console.stopping and (visit.by_socket or console.access.is_open(visit.session)):
            text = sent
            with contextlib.suppress(FsreplError, OSError, sqlite3.Error):  # the page says so when it is loaded
                text = await run_in_threadpool(part, visit)
            if text != sent:
                yield f"data: {json.dumps(text)}\n\n"
                sent, silent_s = text, 0.0
            elif silent_s >= _ALIVE_S:
                yield ":\n\n"
                silent_s = 0.0
            await asyncio.sleep(_LIVE_S)
            silent_s += _LIVE_S
    finally:
        console.streams -= 1


# -- uploads


async def _upload(console: Console, request: Request) -> Response:
    visit = _visit(console, request)
    _check_site(request)
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or b"boundary" not in options:
        raise _NoEntry(415, "Not a form", "This address takes files from a form of the console.")
    wants_text = request.headers.get("accept") == "text/plain"
    try:
        address = visit.bucket()
        site = await run_in_threadpool(visit.gateway.site_with, address.bucket)
        bucket = await run_in_threadpool(listing.open_bucket, site, address.bucket)
        upload = Upload(
            bucket, visit.folder(), options[b"boundary"],
            lambda fields: _check_form(visit.session, fields.get("csrf", ""), console.read_only),
        )  # fmt: skip
        try:
            async for chunk in request.stream():
                await run_in_threadpool(upload.feed, chunk)
            upload.finish()
        finally:
            await run_in_threadpool(upload.close)
            bucket.close()
    except ClientDisconnect:
        return PlainTextResponse("", 400)
    except FsreplError as error:
        if wants_text:
            return PlainTextResponse(str(error), _status_of(error))
        visit.session.tell(str(error), is_error=True)
        return RedirectResponse(visit.back(), 303)
    names = ", ".join(keys.shown(key) for key in upload.written[:3]) + (" and others" if upload.written[3:] else "")
    visit.session.tell(f"{counted(len(upload.written), 'file')} stored: {names}" if upload.written else "no file came")
    if wants_text:
        return PlainTextResponse("stored")
    back = upload.fields.get("back", "/")
    return RedirectResponse(back if visit.is_own(back) else "/", 303)
