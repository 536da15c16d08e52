"""Whether an address that a program listens at is safe there, and what a browser may call it. Pure."""

from __future__ import annotations

import ipaddress

from fsrepl.settings import Console

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def hosts(console: Console) -> frozenset[str]:
    """The names by which a browser may address the console, in lower case.

    A page of another site that had its own name resolve to this machine would send that name, and is refused.
    """
    found = {*_LOOPBACK, *console.hosts}
    if console.listen is not None and not _is_wildcard(host := console.listen[0]):
        found.add(f"[{host}]" if ":" in host else host)
    return frozenset(name.lower() for name in found)


def trouble(console: Console) -> str:
    """Why the console does not listen as the settings say; empty where it does."""
    if (console.certificate is None) != (console.key is None):
        missing = "key" if console.key is None else "certificate"
        return f"[console] needs a {missing} too: TLS takes both a certificate and a key"
    if console.listen is None or is_loopback(console.listen[0]):
        return ""
    host = console.listen[0]
    if console.certificate is None:
        return (
            f"[console] listen: other machines reach {host}, and without TLS they can read what is sent; give "
            'certificate and key, or listen at "127.0.0.1:9751" behind a proxy with TLS, and name the proxy in hosts'
        )
    if _is_wildcard(host) and not console.hosts:
        return f"[console] listen: {host} is every address of this machine; give in hosts the name that browsers use"
    return ""
