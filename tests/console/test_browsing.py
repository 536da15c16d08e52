"""Buckets and objects in the console: what is there, what was, and the acts on both."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from fsrepl.console.handlers import PAGES
from fsrepl.console.pages.rendering import url
from tests.console.visitor import Console, Page, Visitor, settle
from tests.site import DESTINATION, SOURCE, Site
from tests.waiting import until

HOSTILE = (
    "<script>alert(1)<",
    'q" onmouseover="alert(1)',
    "a&amp;b",
    "%2e%2e",
    "{{ 7 * 7 }}",
    "\u202egpj.exe",
    "new\nline",
)


def folder(visitor: Visitor, path: str = "", bucket: str = SOURCE, **more: str) -> Page:
    return visitor.get(url("/bucket", bucket=bucket, folder=path or None, **more))


def names(page: Page) -> list[str]:
    links = [text for text, href in page.links if href.startswith("/object") or "&folder=" in href]
    return [text for text in links if text not in ("Show versions", "Hide versions", "Next page")]


def test_a_dropped_file_is_listed_with_its_status(visitor: Visitor, site: Site) -> None:
    """The first thing people do: drop a file, and look whether it is in the other region."""
    site.write("drop/2026/cat.jpg", b"meow")
    settle(site)
    page = folder(visitor, "drop/2026")
    assert names(page) == ["drop", "2026", "cat.jpg"]  # the way there, and the object
    assert "COMPLETED" in page.text
    assert "4 B" in page.text
    assert names(folder(visitor, "drop")) == ["drop", "2026/"]
    there = folder(visitor, "drop/2026", DESTINATION)
    assert "REPLICA" in there.text
    page = visitor.get(page.link("cat.jpg"))
    assert f"COMPLETED to {DESTINATION}" in page.text
    assert visitor.request("GET", page.link("Download")).body == b"meow"


def test_the_overview_leads_to_every_list(visitor: Visitor, site: Site) -> None:
    """Each number is a link to what it counts, and each of those pages can be opened."""
    site.write("counted", b"1")
    settle(site)
    until(lambda: SOURCE in visitor.get("/").text, "the overview names the bucket")
    page = visitor.get("/")
    for _, href in page.links:
        if href.startswith("/"):
            visitor.get(href)
    assert DESTINATION in page.text
    assert "The daemon is ready" in page.text


def test_names_are_never_markup(visitor: Visitor, site: Site) -> None:
    """Whoever may drop files chooses their names: the pages show them as text, and lead to exactly that object."""
    for name in HOSTILE:
        site.write(f"hostile/{name}", name.encode())
    site.write(b"hostile/bytes\xff", b"bytes")
    settle(site)
    page = folder(visitor, "hostile", versions="1")
    assert not {"script", "img"} & (page.tags - {"script"})
    assert page.body.count(b"<script") == 1  # the console's own
    assert "\u202e".encode() not in page.body
    for name in HOSTILE:
        address = url("/object", bucket=SOURCE, key=f"hostile/{name}".encode())
        assert any(href.startswith(address) for _, href in page.links), name
        shown = visitor.get(address)
        assert shown.body.count(b"<script") == 1
        assert visitor.request("GET", shown.link("Download")).body == name.encode()
    shown = visitor.get(f"/object?bucket={SOURCE}&key=hostile/bytes%FF")
    assert "bytes\\xff" in shown.text
    assert visitor.request("GET", shown.link("Download")).body == b"bytes"
    visitor.submit(shown, "Delete")
    settle(site)
    assert "bytes\\xff" not in folder(visitor, "hostile").text


def test_a_download_is_never_shown_by_the_browser(visitor: Visitor, site: Site) -> None:
    """A page that somebody dropped would run as the console."""
    site.write('down/pa"ge\r\n.html', b"<script>alert(1)</script>")
    settle(site)
    answer = visitor.request("GET", url("/download", bucket=SOURCE, key=b'down/pa"ge\r\n.html'))
    assert answer.body == b"<script>alert(1)</script>"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"pa_ge__.html\"; filename*=UTF-8''pa%22ge%0D%0A.html"
    )
    assert answer.headers["content-length"] == str(len(answer.body))


def test_an_old_version_is_brought_back(visitor: Visitor, site: Site) -> None:
    """Show versions, open the older one, restore it; it crosses as any new version."""
    for content in (b"one", b"two"):
        site.write("history/k", content)
        settle(site)
    page = folder(visitor, "history", versions="1")
    assert page.text.count("COMPLETED") == 2
    page = visitor.submit(page, "Restore")
    assert "is current again" in page.text
    settle(site)
    assert site.path("history/k", DESTINATION).read_bytes() == b"one"
    assert "is current already" not in page.text


def test_a_deletion_is_undone(visitor: Visitor, site: Site) -> None:
    site.write("undone/k", b"kept")
    settle(site)
    page = visitor.submit(folder(visitor, "undone"), "Delete")
    assert "is deleted" in page.text
    assert not site.path("undone/k").exists()
    assert names(folder(visitor, "undone")) == ["undone"]
    page = visitor.submit(folder(visitor, "undone", versions="1"), "Undelete")
    assert site.path("undone/k").read_bytes() == b"kept"
    settle(site)
    assert site.path("undone/k", DESTINATION).read_bytes() == b"kept"


def test_a_version_is_removed_for_good_only_after_a_tick(visitor: Visitor, site: Site) -> None:
    for content in (b"one", b"two"):
        site.write("gone/k", content)
        settle(site)
    old = site.history(SOURCE)[b"gone/k"][1][0]
    address = url("/object", bucket=SOURCE, key=b"gone/k", version=old)
    page = visitor.get(address)
    (form,) = [
        form for form in page.forms if form.action == url("/object/delete", bucket=SOURCE, key=b"gone/k", version=old)
    ]
    page.forms = [form]
    assert "was not ticked" in visitor.submit(page, "cannot be undone").text
    assert len(site.history(SOURCE)[b"gone/k"]) == 2
    assert "is removed for good" in visitor.submit(page, "cannot be undone", confirmed="yes").text
    assert len(site.history(SOURCE)[b"gone/k"]) == 1
    visitor.get(address, 404)


def test_tags_are_set_and_removed(visitor: Visitor, site: Site) -> None:
    site.write("tagged", b"x")
    settle(site)
    page = visitor.get(url("/object", bucket=SOURCE, key="tagged"))
    page = visitor.submit(page, "Set tag", name="class", value="<b>blue")
    assert "class = <b>blue" in page.text
    page = visitor.submit(page, "Remove tag class")
    assert "has no tags" in page.text


def test_an_upload_is_a_file_drop(visitor: Visitor, site: Site) -> None:
    """It has the name, becomes a version, and crosses; a second one of the same name is the next version."""
    big = bytes(range(256)) * 4096 * 3
    page = visitor.upload(folder(visitor, "up"), {"a b.txt": b"first", "big.bin": big, "empty": b"", "é;x": b"e"})
    assert "4 files stored" in page.text
    settle(site)
    assert visitor.upload(folder(visitor, "up"), {"a b.txt": b"second"}, below="more/deep").status == 200
    assert "1 file stored" in visitor.upload(folder(visitor, "up"), {"a b.txt": b"third"}).text
    settle(site)
    found = {key: data for key, data in site.tree(DESTINATION).items() if key.startswith("up/")}
    assert found == {"up/a b.txt": b"third", "up/big.bin": big, "up/empty": b"", "up/more/deep/a b.txt": b"second",
                     "up/é;x": b"e"}  # fmt: skip
    assert len(site.history(SOURCE)[b"up/a b.txt"]) == 2
    assert not list(site.path("up").glob(".fsrepl-upload*"))


def test_an_upload_stays_in_its_bucket(visitor: Visitor, site: Site) -> None:
    """G9: no name leads elsewhere, neither by dots nor by a link that somebody left, nor into what is the daemon's."""
    outside = site.home / "outside"
    outside.mkdir(exist_ok=True)
    site.path("trap").symlink_to(outside)
    page = folder(visitor)
    for below in ("../..", "x/../../y", ".fsrepl/versions", "trap", "a//b", "/../"):
        answer = visitor.upload(page, {"f": b"data"}, below=below)
        assert "stored" not in answer.text or "was not stored" in answer.text, below
    visitor.upload(page, {"../../climbed": b"data", "..": b"data"})
    assert list(outside.iterdir()) == []
    assert not (site.regions["east"] / "climbed").exists()
    assert not (site.root / "climbed").exists()
    assert not site.path(".fsrepl/versions/f").exists()
    site.path("trap").unlink()


def test_an_upload_needs_the_token(visitor: Visitor, site: Site) -> None:
    """CSRF: another site's page could send a form with a file too. The token comes before the first file."""
    page = folder(visitor)
    answer = visitor.upload(page, {"forged.txt": b"data"}, follow=False, csrf="0" * 64)
    assert answer.status == 403
    page.form("Upload").fields = [(n, v) for n, v in page.form("Upload").fields if n != "csrf"]
    assert visitor.upload(page, {"forged.txt": b"data"}, follow=False).status == 403
    assert not site.path("forged.txt").exists()


def test_an_upload_replaces_nothing_that_would_be_lost(visitor: Visitor, site: Site) -> None:
    """A never-versioned bucket keeps no older content."""
    visitor.submit(visitor.get("/"), "Create", region="east", name="plain", versioning=())
    plain = "east/plain"
    assert "1 file stored" in visitor.upload(folder(visitor, bucket=plain), {"f": b"one"}).text
    answer = visitor.upload(folder(visitor, bucket=plain), {"f": b"two"})
    assert "it was not replaced" in answer.text
    assert site.tree(plain) == {"f": b"one"}
    page = visitor.submit(folder(visitor, bucket=plain), "Enable versioning")
    assert "Versioning of east/plain is Enabled" in page.text
    assert "1 file stored" in visitor.upload(folder(visitor, bucket=plain), {"f": b"two"}).text


def test_a_folder_with_files_is_adopted(visitor: Visitor, site: Site) -> None:
    """What that takes is said first; then each file is a version, and stays where it is."""
    path = site.regions["east"] / "grown"
    path.mkdir()
    (path / "old").write_bytes(b"before")
    page = visitor.submit(visitor.get("/"), "Say what that takes", region="east", name="grown")
    assert "holds 1 file, 6 B" in page.text
    assert not (path / ".fsrepl").exists()
    page = visitor.submit(page, "Adopt it")
    assert "1 file adopted" in page.text
    assert (path / "old").read_bytes() == b"before"
    assert site.history("east/grown")[b"old"][0][0] == "null"
    visitor.get("/adopt?region=east&name=none", 404)


def test_a_form_leads_back_to_no_other_site(visitor: Visitor) -> None:
    for back in (
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "javascript:alert(1)",
    ):
        page = visitor.get("/")
        form = page.form("Create")
        answer = visitor.post(
            form.action,
            f"csrf={dict(form.fields)['csrf']}&region=nowhere&name=x&back={quote(back, safe='')}".encode(),
        )
        assert (answer.status, answer.headers["location"]) == (303, "/"), back


def test_a_large_folder_has_pages(visitor: Visitor, site: Site) -> None:
    """450 names: three pages without a gap; and those that begin with something, found at once."""
    top = site.path("large")
    top.mkdir()
    for number in range(450):
        (top / f"{number:04}").write_bytes(b"")
    settle(site)
    page, found = folder(visitor, "large"), list[str]()
    while True:
        found += names(page)[1:]
        if not any(text == "Next page" for text, _ in page.links):
            break
        page = visitor.get(page.link("Next page"))
    assert found == [f"{number:04}" for number in range(450)]
    page = visitor.submit(folder(visitor, "large"), "Find", starts="004")
    assert names(page)[1:] == [f"004{digit}" for digit in range(10)]


def test_what_does_not_exist_is_said(visitor: Visitor) -> None:
    """Addresses that are old, mistyped or made up: a sentence, and never a traceback."""
    for address, status in (
        ("/bucket?bucket=east/none", 404),
        ("/bucket?bucket=nowhere/none", 400),
        ("/bucket", 400),
        (f"/object?bucket={SOURCE}", 400),
        (f"/object?bucket={SOURCE}&key=none", 404),
        (f"/object?bucket={SOURCE}&key=../../etc/passwd", 404),
        (f"/download?bucket={SOURCE}&key=.fsrepl/bucket.json", 404),
        (f"/bucket?bucket={SOURCE}&folder=../..", 200),
        (f"/deliveries?bucket={SOURCE}&status=SOME", 400),
        (f"/deliveries?bucket={SOURCE}&status=FAILED&skip=-1", 400),
        ("/nowhere", 404),
        ("/static/../app.py", 404),
    ):
        page = visitor.get(address, status)
        assert "Traceback" not in page.text


def test_the_console_stays_small(visitor: Visitor, console: Console) -> None:
    """60 MiB at most, after every page was opened: it runs beside the daemon on a small NAS."""
    for address in PAGES:
        if "{" not in address and address not in ("/download", "/job", "/object", "/bucket", "/deliveries"):
            visitor.request("GET", address)
    visitor.get(f"/bucket?bucket={SOURCE}&versions=1")
    status = Path(f"/proc/{console.process.pid}/status").read_text()
    (resident_kib,) = map(int, re.findall(r"VmRSS:\s+(\d+) kB", status))
    assert resident_kib < 60 * 1024
