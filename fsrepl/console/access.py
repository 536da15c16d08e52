"""Access to the console: links that work once, sessions, and the tokens in forms. Pure, except for random tokens.

At a TCP address a browser needs a session, which begins with a link that the command prints. At the Unix socket, which
only the site's user and root can open, all visitors share one session. Times are seconds of a clock that never steps.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct, field

LINK_S = 15 * 60.0
"""How long an unused link works."""
IDLE_S = 12 * 3600.0
"""How long a session lasts without a request."""
_LINKS_MAX = 16
_SESSIONS_MAX = 64
_NOTICES_MAX = 8


class Notice(Struct, frozen=True):
    """The result of the last form, shown with the next page."""

    text: str
    is_error: bool = False


class Session(Struct):
    """One browser. csrf: the token that each of its forms contains, which no other site can read."""

    id: str
    csrf: str
    seen_s: float
    notices: list[Notice] = field(default_factory=list)

    def tell(self, text: str, *, is_error: bool = False) -> None:
        self.notices = [*self.notices, Notice(text, is_error)][-_NOTICES_MAX:]

    def take_notices(self) -> list[Notice]:
        taken, self.notices = self.notices, []
        return taken


class Access:
    """The links and sessions of one process; they end with it."""

    def __init__(
        self, now_s: Callable[[], float], token: Callable[[], str] = lambda: secrets.token_urlsafe(32)
    ) -> None:
        self._now_s, self._token = now_s, token
        self._secret = token().encode()
        self._links: OrderedDict[str, float] = OrderedDict()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self.by_socket = self._session("socket")
        """The session of the Unix socket."""

    def _session(self, session_id: str) -> Session:
        csrf = hmac.new(self._secret, session_id.encode(), hashlib.sha256).hexdigest()
        return Session(session_id, csrf, self._now_s())

    def new_link(self) -> str:
        """The token of a link that opens one session, once."""
        token = self._token()
        self._links[token] = self._now_s() + LINK_S
        while len(self._links) > _LINKS_MAX:
            self._links.popitem(last=False)
        return token

    def enter(self, token: str) -> Session | None:
        """A new session for the token of a link; None where it was used, is too old, or was never given."""
        until_s = self._links.pop(token, None)
        if until_s is None or until_s < self._now_s():
            return None
        session = self._session(self._token())
        self._sessions[session.id] = session
        while len(self._sessions) > _SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return session

    def session(self, session_id: str) -> Session | None:
        """A session that is not over, by the value of its cookie."""
        found = self._sessions.get(session_id)
        if found is None:
            return None
        if self._now_s() - found.seen_s > IDLE_S:
            del self._sessions[session_id]
            return None
        found.seen_s = self._now_s()
        self._sessions.move_to_end(session_id)
        return found

    def is_open(self, session: Session) -> bool:
        """Whether a session is not over; asking does not prolong it."""
        return self._sessions.get(session.id) is session and self._now_s() - session.seen_s <= IDLE_S

    def leave(self, session: Session) -> None:
        self._sessions.pop(session.id, None)


def is_genuine(session: Session, token: str) -> bool:
    """Whether a form came from a page of this session."""
    return hmac.compare_digest(session.csrf.encode(), token.encode("utf-8", "surrogatepass"))


def host_name(header: str) -> str:
    """The name in a Host header, in lower case and without its port."""
    name = header.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.partition(":")[0]
