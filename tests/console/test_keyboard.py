"""Each page of the console by keyboard alone, in Debian's Chromium.

At every step the focus can be seen, is not covered, and has gone in the order of reading; no action loses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.console.chromium import enter, needs_chromium
from tests.console.visitor import Console
from tests.site import DESTINATION, SOURCE, Site
from tests.waiting import until

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = needs_chromium

SKIP = "Skip to the content"
TABS_MAX = 150
FOCUS = """() => {
    const e = document.activeElement, box = e.getBoundingClientRect(), style = getComputedStyle(e);
    const label = e.labels?.length ? e.labels[0].innerText : e.ariaLabel || e.innerText || e.value || "";
    const x = Math.min(Math.max(box.left + Math.min(box.width / 2, 10), 0), innerWidth - 1);
    const y = Math.min(Math.max(box.top + Math.min(box.height / 2, 10), 0), innerHeight - 1);
    const there = document.elementFromPoint(x, y);
    return {
        is_body: e === document.body, label: label.trim(),
        by: (e.closest("tr, li") ?? e.closest("form, section"))?.innerText ?? "",
        is_outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 || style.boxShadow !== "none",
        is_uncovered: e.contains(there) || there.contains(e),
        top: box.top + scrollY, bottom: box.bottom + scrollY, html: e.outerHTML.slice(0, 200),
    };
}"""


class Hands:
    """Hands on the keyboard in front of a page, and an eye on the focus."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self._before: dict[str, Any] | None = None

    def focus(self) -> dict[str, Any]:
        """What has the focus, which can be seen. A part of the page that was only led to needs no outline."""
        found: dict[str, Any] = self.page.evaluate(FOCUS)
        assert not found["is_body"], f"nothing has the focus on {self.page.url}"
        assert found["is_uncovered"], f"covered on {self.page.url}: {found['html']}"
        return found

    def tab(self) -> dict[str, Any]:
        """What the focus has gone to: at the end of the page to its beginning."""
        self.page.keyboard.press("Tab")
        if self.page.evaluate("document.activeElement === document.body"):  # the end: the browser's own controls
            self.page.keyboard.press("Tab")
        found = self.focus()
        assert found["is_outlined"], f"no outline on {self.page.url}: {found['html']}"
        if self._before is not None and found["label"] != SKIP:
            assert found["bottom"] > self._before["top"], f"upwards from {self._before['html']} to {found['html']}"
        self._before = found
        return found

    def to(self, label: str, by: str = "") -> None:
        """Tab to what has a label, in a row, list item, form or section that has a text."""
        passed = []
        for _ in range(TABS_MAX):
            found = self.tab()
            if label in found["label"] and by in found["by"]:
                return
            passed.append(found["label"][:30])
        raise AssertionError(f"no way to {label!r} of {by!r} by keyboard on {self.page.url}: {passed}")

    def press(self, label: str, by: str = "", *, key: str = "Enter") -> None:
        """Go to a link or button and press it; the next page is there when this returns."""
        self.to(label, by)
        with self.page.expect_navigation():
            self.page.keyboard.press(key)
        self._before = None

    def choose(self, label: str) -> None:
        """Go to the first of some choices, and by arrows to the one with a label."""
        self.page.keyboard.press("Tab")
        while self.focus()["html"].startswith('<input type="radio"') is False:
            self.tab()
        first = self.focus()["label"]
        self.page.keyboard.press("Space")
        while label not in self.focus()["label"]:
            self.page.keyboard.press("ArrowDown")
            assert self.focus()["label"] != first, f"no choice {label} on {self.page.url}"

    def done(self, text: str) -> None:
        """The page says that something was done, and the focus is not lost."""
        sync_api.expect(self.page.locator("main")).to_contain_text(text, timeout=60_000)
        self.focus()

    def type(self, text: str) -> None:
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)


def in_step(site: Site) -> None:
    """All is replicated that was dropped into the source."""
    site.wait(SOURCE)


@pytest.fixture
def hands(browser: Any, console: Console) -> Iterator[Hands]:
    page = enter(browser, console, viewport={"width": 1280, "height": 720})
    yield Hands(page)
    page.context.close()
    assert page.faults == []


@pytest.fixture(scope="module")
def broken(site: Site) -> str:
    """A bucket with three failed deliveries, which fail again as long as their destination is suspended."""
    for bucket in ("east/broken", "west/broken-copy"):
        site.must("bucket", "create", bucket, "--versioning")
    site.must("replication", "enable", "east/broken", "west/broken-copy")
    site.must("versioning", "suspend", "west/broken-copy")
    for name in ("f1", "f2", "f3"):
        site.write(name, b"content", "east/broken")
    until(lambda: site.bucket_status("east/broken")["failed"] == 3, "all have failed")
    return "east/broken"


def test_the_overview_by_keyboard(hands: Hands, site: Site, broken: str) -> None:
    """The way past the header; a problem is mended where it is named; what others do in the meantime takes neither the
    focus nor what is open or half typed."""
    page = hands.page
    assert hands.tab()["label"] == SKIP
    page.keyboard.press("Enter")
    hands.tab()
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    sync_api.expect(page.locator("#problems")).to_contain_text(broken, timeout=60_000)
    hands.press("Retry all", broken)
    hands.done("deliveries are tried again")
    sync_api.expect(page.locator("#problems")).to_contain_text(broken, timeout=60_000)
    if hands.focus()["label"] != "Retry all":  # for a moment nothing was FAILED
        hands.to("Retry all", broken)
    page.evaluate("document.activeElement.marked = true")

    def dropped(name: str) -> None:
        """Somebody drops a file, and the page shows it."""
        number = page.locator(f"#buckets tr:has(a:text-is('{SOURCE}')) td:nth-child(3)")
        before = number.inner_text()
        site.write(name, b"x")
        sync_api.expect(number).not_to_have_text(before, timeout=60_000)

    dropped("live/1")
    assert page.evaluate("document.activeElement.marked"), "the button with the focus was replaced"
    assert hands.focus()["label"] == "Retry all"
    hands.to(SOURCE, "online")
    dropped("live/2")
    assert hands.focus()["label"] == SOURCE
    hands.to("Create a bucket")
    page.keyboard.press("Space")
    hands.to("Region")
    page.keyboard.type("east")
    hands.to("Name")
    page.keyboard.type("by-ha")
    dropped("live/3")
    assert hands.focus()["label"] == "Name"
    page.keyboard.type("nd")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    hands.done("Bucket east/by-hand is created.")


def test_a_bucket_by_keyboard(hands: Hands, site: Site) -> None:
    """A folder is opened, a version looked at, restored, deleted, undeleted, downloaded, and a file is uploaded."""
    page = hands.page
    page.on("filechooser", lambda chooser: None)  # from now on: else the browser may not know in time that it is wanted
    for content in (b"one", b"two"):
        site.write("hand/k", content)
        in_step(site)
    hands.press(SOURCE, "online")
    hands.to("Properties")
    page.keyboard.press("Enter")
    hands.to("Rules, role and backfill")
    hands.press("hand/")
    hands.press("Show versions", key="Space")
    assert hands.focus()["label"] == "Show versions"
    assert page.locator("[role=switch]").get_attribute("aria-checked") == "true"
    hands.press("k", "latest")
    sync_api.expect(page.locator("main")).to_contain_text("COMPLETED", timeout=60_000)
    hands.to("Download", "Delete")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    assert download.value.path().read_bytes() == b"two"
    hands.press("Restore", "Restore")
    hands.done("is current again")
    in_step(site)
    assert site.path("hand/k").read_bytes() == b"one"
    hands.press("Delete")
    hands.done("is deleted")
    hands.press("Undelete")
    in_step(site)
    assert site.path("hand/k").read_bytes() == b"one"
    hands.press("hand")
    hands.to("Files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "up.txt", "mimeType": "text/plain", "buffer": b"by hand"}])
    hands.press("Upload", "drop files")
    hands.done("1 file stored")
    assert hands.focus()["label"] == "Upload"
    in_step(site)
    assert site.path("hand/up.txt", DESTINATION).read_bytes() == b"by hand"


def test_failures_by_keyboard(hands: Hands, site: Site, broken: str) -> None:
    """One is retried from its list, where the focus goes on to the next; then all of a kind."""
    until(lambda: site.bucket_status(broken)["failed"] == 3, "all have failed")
    hands.press("Failures")
    hands.press("List 3 deliveries")
    site.must("versioning", "enable", "west/broken-copy")
    hands.press("Retry", "f1")
    hands.done("1 delivery is tried again")
    until(lambda: site.bucket_status(broken)["failed"] == 2, "one is replicated")
    hands.press("Failures")
    hands.press("Retry all of these")
    hands.done("2 deliveries are tried again")
    in_step(site)
    assert site.bucket_status(broken)["failed"] == 0


def test_jobs_by_keyboard(hands: Hands, site: Site) -> None:
    """A backfill, the scrub, and a comparison that repairs."""
    page = hands.page
    page.goto(f"/replication?bucket={SOURCE}")
    hands.to("COMPLETED", "Objects from before a rule")
    page.keyboard.press("Space")
    hands.press("Start", "Objects from before a rule")
    hands.done("Complete")
    hands.press("Jobs")
    for label, said in (("Pause", "is paused"), ("Resume", "goes on"), ("Run now", "are read now")):
        hands.press(label, SOURCE)
        hands.done(said)
        assert hands.focus()["label"] in ("Pause", "Resume", "Run now")
    hands.to("Source")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    hands.to("Repair")
    page.keyboard.press("Space")
    hands.press("Verify")
    hands.done("being compared")
    until(lambda: page.reload() and "Running" not in page.inner_text("main"), "the comparison is over")
    assert "Source and replicas are the same" in page.inner_text("main")


def test_a_lifecycle_by_keyboard(hands: Hands, site: Site) -> None:
    """Edited, tried at a time, saved and removed; the keyboard leads out of the text as it leads in."""
    wanted = {"Rules": [{"ID": "hand", "Filter": {}, "Status": "Enabled", "Expiration": {"Days": 1}}]}
    hands.press("Lifecycle")
    hands.press(DESTINATION)
    hands.to("configuration")
    hands.type(json.dumps(wanted))
    hands.to("As of")
    hands.type("2030-01-01")
    hands.press("Preview")
    hands.done("What would be due")
    assert hands.focus()["label"] == "Preview"
    hands.press("Save")
    hands.done("is saved")
    assert site.json("lifecycle", "get", DESTINATION)["Rules"][0]["ID"] == "hand"
    hands.press("Remove the lifecycle")
    hands.done("has no lifecycle any more")


def test_the_doctor_by_keyboard(hands: Hands) -> None:
    hands.press("Doctor")
    hands.press("Look again")
    assert hands.page.title().startswith("Doctor")


def test_the_guide_by_keyboard(hands: Hands, site: Site) -> None:
    """Tab, space, arrows and return lead through the five steps."""
    hands.press("Replicate a bucket")
    for choice in (SOURCE, "west", DESTINATION):
        hands.choose(choice)
        hands.press("Next")
    hands.press("Whole bucket")
    hands.choose("STANDARD_IA")
    hands.press("Next")
    hands.choose("Create new role")
    hands.press("Next")
    assert "Review" in hands.page.title()
