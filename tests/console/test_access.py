"""Who gets in: links, sessions, hosts, forms, other sites; over real sockets."""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest

from fsrepl.console.access import IDLE_S, LINK_S, Access, host_name, is_genuine
from fsrepl.settings import listening, reading
from tests.console.visitor import Console, Visitor
from tests.site import SOURCE, Site

PAGES = ("/", "/failures", f"/bucket?bucket={SOURCE}", f"/deliveries?bucket={SOURCE}&status=FAILED")


def test_nobody_gets_in_without_a_link(console: Console) -> None:
    """Another user of the machine reaches the port, and learns nothing there but what to do."""
    stranger = Visitor(console.port)
    for address in (*PAGES, "/live", f"/download?bucket={SOURCE}&key=k"):
        page = stranger.get(address, 401)
        assert "fsrepl console" in page.text
        assert str(console.site.root) not in page.body.decode()
    assert stranger.post("/bucket/create", b"region=east&name=x").status == 401


def test_the_link_that_is_printed_opens_the_console_once(console: Console) -> None:
    """It may be in a shell's history, or in a screenshot. The command prints another one for a console that runs."""
    first = Visitor(console.port)
    first.get(console.link)
    assert first.get("/").status == 200
    first.get(console.link, 403)
    again = console.site.must("console").out  # which listens elsewhere by its settings: the one that runs knows where
    link = again.split(f"http://127.0.0.1:{console.port}")[1].split()[0]
    Visitor(console.port).get(link)
    ran = console.site.run("console", "--read-only")
    assert (ran.code, "is not read-only" in ran.err) == (1, True)


def test_a_link_works_for_one_visitor(console: Console) -> None:
    link = console.another_link()
    first = Visitor(console.port)
    first.get(link)
    second = Visitor(console.port)
    assert second.get(link, 403).status == 403
    second.get("/", 401)
    second.get("/enter?token=guessed", 403)


def test_the_cookie_is_for_this_console_alone(console: Console) -> None:
    """No script reads it, and no other site's page sends it."""
    page = Visitor(console.port).get(console.another_link())
    cookie = page.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_the_first_page_after_the_link_needs_no_redirect(console: Console) -> None:
    """A SameSite=Strict cookie is not sent along redirects that began on another site, such as a web mail."""
    page = Visitor(console.port).request("GET", console.another_link())
    assert page.status == 200
    assert b'http-equiv="refresh" content="0;url=/"' in page.body


def test_a_foreign_host_is_refused(console: Console, visitor: Visitor) -> None:
    """DNS rebinding: a page of evil.example, whose name now means 127.0.0.1, sends its own name."""
    for host in ("evil.example", f"evil.example:{console.port}", "127.0.0.1.evil.example", ""):
        visitor.host = host
        assert visitor.request("GET", "/").status == 421, host
        assert visitor.request("GET", "/static/console.css").status == 421, host
    for host in ("localhost", f"LOCALHOST:{console.port}", f"127.0.0.1:{console.port}", "[::1]:1"):
        visitor.host = host
        assert visitor.request("GET", "/").status == 200, host


def test_a_form_of_another_page_is_refused(visitor: Visitor, site: Site) -> None:
    """CSRF: without this session's token, or from another site by the browser's own word, nothing is done."""
    page = visitor.get("/")
    token = dict(page.form("Create").fields)["csrf"]
    wanted = {"region": "east", "name": "forged"}
    for fields in (wanted, {**wanted, "csrf": ""}, {**wanted, "csrf": "0" * 64}, {**wanted, "csrf": "\udcff"}):
        body = urlencode(fields, errors="surrogateescape").encode()
        assert visitor.post("/bucket/create", body).status == 403
    good = urlencode({**wanted, "csrf": token}).encode()
    for other in ("cross-site", "same-site"):
        assert visitor.post("/bucket/create", good, {"Sec-Fetch-Site": other}).status == 403
    assert visitor.post("/bucket/create", good, {"Content-Type": "text/plain"}).status == 415
    assert not (site.regions["east"] / "forged").exists()
    assert visitor.post("/bucket/create", good, {"Sec-Fetch-Site": "same-origin"}).status == 303
    assert (site.regions["east"] / "forged").exists()


def test_the_token_of_another_session_is_refused(console: Console) -> None:
    one, other = console.visitor(), console.visitor()
    token = dict(one.get("/").form("Create").fields)["csrf"]
    body = urlencode({"region": "east", "name": "forged2", "csrf": token}).encode()
    assert other.post("/bucket/create", body).status == 403


def test_every_answer_lets_no_other_site_in(visitor: Visitor) -> None:
    """Pages, files, errors and refusals: the browser runs only the console's script, and frames nothing."""
    for address in (*PAGES, "/static/console.js", "/nowhere", "/enter?token=x", f"/object?bucket={SOURCE}&key=none"):
        headers = visitor.request("GET", address).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; "), address
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


def test_a_get_changes_nothing(visitor: Visitor) -> None:
    """An image or a link on another site makes a browser ask with GET; those addresses take forms only."""
    for address in ("/bucket/create", "/object/delete", "/retry", "/leave", "/upload", "/link"):
        assert visitor.request("GET", address).status == 404, address


def test_signing_out_ends_the_session(console: Console) -> None:
    visitor = console.visitor()
    cookie = visitor.cookie
    visitor.submit(visitor.get("/"), "Sign out")
    visitor.cookie = cookie
    visitor.get("/", 401)


def test_the_unix_socket_is_for_the_site_s_user(console: Console) -> None:
    """0600 in a folder that is 0700: who opens it needs no link, but a browser behind it still needs the right Host."""
    assert stat.S_IMODE(os.stat(console.unix).st_mode) == 0o600
    visitor = Visitor(unix=console.unix, host="localhost")
    assert visitor.get("/").status == 200
    visitor.host = "evil.example"
    visitor.get("/", 421)


def test_links_are_given_at_the_unix_socket_alone(console: Console) -> None:
    assert Visitor(console.port).post("/link", b"", {"X-Fsrepl-Link": "1"}).status == 403
    assert Visitor(unix=console.unix, host="localhost").post("/link", b"").status == 403  # a form has no such header


def test_a_read_only_console_changes_nothing(tmp_path: Path) -> None:
    """Buttons are missing, and forms made by hand are refused, uploads too."""
    site = Site(tmp_path, replicate=False)
    site.must("bucket", "create", "east/plain")
    site.write("readable", b"content", "east/plain")
    with Console(site, "--read-only") as console:
        visitor = console.visitor()
        page = visitor.get("/")
        assert "read-only" in page.text
        assert [form.text.strip() for form in page.forms if form.method == "post"] == ["Sign out"]
        token = dict(page.form("Sign out").fields)["csrf"]
        body = urlencode({"region": "east", "name": "written", "csrf": token}).encode()
        refused = visitor.post("/bucket/create", body)
        assert (refused.status, "read-only" in refused.text) == (403, True)
        form = b'--x\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n%s\r\n' % token.encode()
        form += b'--x\r\nContent-Disposition: form-data; name="files"; filename="f"\r\n\r\ndata\r\n--x--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert visitor.request("POST", "/upload?bucket=east/plain", form, kind).status == 403
        assert site.tree("east/plain") == {"readable": b"content"}
        assert visitor.request("GET", "/download?bucket=east/plain&key=readable").body == b"content"
        assert console.stop() == 0
        assert not console.unix.exists()


# -- without a process


class _Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_links_and_sessions_end_with_time() -> None:
    clock = _Clock()
    access = Access(clock)
    late, used = access.new_link(), access.new_link()
    clock.now_s = LINK_S - 1
    session = access.enter(used)
    assert session is not None
    clock.now_s = LINK_S + 1
    assert access.enter(late) is None
    clock.now_s += IDLE_S - 2
    assert access.session(session.id) is session
    clock.now_s += IDLE_S - 1
    assert access.session(session.id) is session
    assert is_genuine(session, session.csrf)
    assert not is_genuine(session, "")
    clock.now_s += IDLE_S + 1
    assert access.session(session.id) is None


@pytest.mark.parametrize(
    ("header", "name"),
    [("localhost:1", "localhost"), ("[::1]:9751", "[::1]"), ("A.example", "a.example"), ("", ""), ("[", "[]")],
)
def test_a_host_is_read_without_its_port(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ('listen = "0.0.0.0:9751"', "without TLS"),
        ('listen = "console.example.org:9751"', "without TLS"),
        ('listen = "0.0.0.0:9751"\ncertificate = "c"\nkey = "k"', "give in hosts the name"),
        ('certificate = "c"', "needs a key too"),
        ('key = "k"', "needs a certificate too"),
    ],
)
def test_an_unsafe_address_is_refused(lines: str, what: str) -> None:
    """Other machines reach the console only with TLS, or through a proxy."""
    found = reading.parse(f"[console]\n{lines}\n", Path("/site/fsrepl.toml"))
    assert what in listening.trouble(found.console)


def test_an_unsafe_address_is_said_by_check(tmp_path: Path) -> None:
    site = Site(tmp_path, replicate=False, settings='[console]\nlisten = "0.0.0.0:9751"')
    for command in ("check", "console"):
        ran = site.run(command)
        assert (ran.code, "without TLS" in ran.err, "[console]" in ran.err) == (2, True, True), ran


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_with_a_certificate_it_speaks_tls_alone(tmp_path: Path) -> None:
    """The cookie is Secure then, and plain HTTP gets no answer. Files that cannot be used are named at the start."""
    (tmp_path / "bad.pem").write_text("nothing")
    bad = Site(tmp_path / "bad", replicate=False, settings='[console]\ncertificate = "../../bad.pem"\nkey = "none"')
    ran = bad.run("console")
    assert (ran.code, "bad.pem" in ran.err, "cannot be used" in ran.err) == (2, True, True), ran
    names = ("cert.pem", "key.pem")
    certificate, key = (str(tmp_path / name) for name in names)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    lines = f'[console]\ncertificate = "{certificate}"\nkey = "{key}"'
    site = Site(tmp_path / "good", replicate=False, settings=lines)
    with Console(site) as console:
        context = ssl.create_default_context(cafile=certificate)
        connection = http.client.HTTPSConnection("localhost", console.port, context=context, timeout=60)
        connection.request("GET", console.link)
        answer = connection.getresponse()
        assert (answer.status, "Secure" in answer.getheader("set-cookie", "")) == (200, True)
        connection.close()
        with pytest.raises((OSError, http.client.HTTPException)):
            Visitor(console.port).get("/")


def test_a_port_that_is_taken_is_named(tmp_path: Path, console: Console) -> None:
    site = Site(tmp_path, replicate=False)
    ran = site.run("console", "--listen", f"127.0.0.1:{console.port}")
    assert (ran.code, ran.out) == (1, "")
    assert "another program listens there" in ran.err
    assert site.run("console", "--listen", "nonsense").code == 2


def test_without_its_packages_the_command_says_what_to_install(tmp_path: Path) -> None:
    site = Site(tmp_path, replicate=False)
    code = "import sys; sys.modules['starlette'] = None; from fsrepl import cli; cli.main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "--site", str(site.root), "console"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, "pip install 'fsrepl[console]'" in ran.stderr) == (2, True), ran
