"""The console in Debian's Chromium: on a narrow screen, without JavaScript, and judged by axe-core.

Skipped where Playwright, Chromium or axe-core is missing; tests/run installs the three.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsrepl.console.pages.rendering import url
from tests.console.chromium import enter, needs_chromium
from tests.console.visitor import Console, settle
from tests.site import DESTINATION, SOURCE, Site
from tests.world import World

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = needs_chromium
AXE = Path(__file__).parents[2] / ".venv" / "axe" / "node_modules" / "axe-core" / "axe.min.js"

needs_axe = pytest.mark.skipif(
    not AXE.exists(), reason="axe-core is not installed: npm install --prefix .venv/axe axe-core"
)

REVIEW = (
    f"/replicate?source={SOURCE}&region=west&destination={DESTINATION}&scope=whole&storage_class=&role=&existing=add"
)
PAGES = (
    "/",
    f"/bucket?bucket={SOURCE}&versions=1",
    f"/bucket?bucket={SOURCE}&folder=hostile",
    url("/object", bucket=SOURCE, key="hostile/<b>name"),
    "/replicate",
    f"/replicate?source={SOURCE}",
    f"/replicate?source={SOURCE}&region=west",
    f"/replicate?source={SOURCE}&region=west&destination={DESTINATION}",
    f"/replicate?source={SOURCE}&region=west&destination={DESTINATION}&scope=whole",
    f"/replicate?source={SOURCE}&region=west&destination={DESTINATION}&scope=whole&storage_class=",
    REVIEW,
    f"/replication?bucket={SOURCE}",
    "/failures",
    f"/deliveries?bucket={SOURCE}&status=COMPLETED",
    "/jobs",
    "/lifecycle",
    f"/lifecycle?bucket={SOURCE}",
    "/doctor",
    f"/object?bucket={SOURCE}&key=none",
)


@pytest.fixture(scope="module")
def filled(site: Site) -> Site:
    """Hostile names, a name without a place to break it, and versions."""
    for name in ("<b>name", "x" * 200, "\u202egpj.exe", "a b"):
        site.write(f"hostile/{name}", b"content")
    settle(site)
    site.write("hostile/a b", b"changed")
    settle(site)
    return site


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    """A console of a site with 10,000 keys in one folder, captured in this process; no daemon runs."""
    home = tmp_path_factory.mktemp("crowded")
    with World(home, buckets=(SOURCE,), replicate=False) as world:
        top = world.path("camera")
        top.mkdir()
        for number in range(10_000):
            (top / f"img-{number:05}.jpg").write_bytes(b"")
        world.settle()
    with Console(home) as console:
        yield console


@needs_axe
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_accessible_and_fits(browser: Any, console: Console, filled: Site, scheme: str) -> None:
    """axe-core finds no violation, and at 320 pixels nothing is cut off to the right; in the dark, colours again."""
    page = enter(browser, console, color_scheme=scheme, viewport={"width": 320, "height": 640})
    faults = []
    for address in PAGES:
        page.goto(address)
        if page.evaluate("document.documentElement.scrollWidth") > 320:
            faults.append(f"{address} is wider than 320 pixels")
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run({runOnly: ['color-contrast']})" if scheme == "dark" else "axe.run()")
        faults += [
            f"{address}: {violation['id']}: {node['html'][:200]}: {node['failureSummary']}"
            for violation in found["violations"]
            for node in violation["nodes"][:3]
        ]
    page.context.close()
    assert faults == []
    assert [fault for fault in page.faults if "404" not in fault] == []


def test_the_overview_follows_without_a_reload(browser: Any, console: Console, filled: Site) -> None:
    """A file is dropped into the folder by somebody else: its number appears, and no policy of the page is violated."""
    page = enter(browser, console)
    objects = f"xpath=//tr[th/a[text()='{SOURCE}']]/td[2]"
    before = filled.bucket_status(SOURCE)["objects"]
    sync_api.expect(page.locator(objects).first).to_have_text(f"{before:,}", timeout=60_000)  # it looked a while ago
    filled.write("appears", b"x")
    sync_api.expect(page.locator(objects).first).to_have_text(f"{before + 1:,}", timeout=60_000)
    page.context.close()
    assert page.faults == []


def test_files_are_dropped_on_a_folder(browser: Any, console: Console, filled: Site) -> None:
    page = enter(browser, console)
    page.goto(f"/bucket?bucket={SOURCE}&folder=dropped")
    page.evaluate(
        """() => {
            const files = new DataTransfer();
            files.items.add(new File(["by hand"], "dropped.txt"));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: files, bubbles: true, cancelable: true}));
        }"""
    )
    sync_api.expect(page.get_by_text("1 file stored")).to_be_visible(timeout=60_000)
    settle(filled)
    assert filled.path("dropped/dropped.txt", DESTINATION).read_bytes() == b"by hand"
    page.context.close()
    assert page.faults == []


@needs_axe
@pytest.mark.parametrize("script", [True, False])
def test_a_folder_of_ten_thousand_keys_is_browsed(browser: Any, crowded: Console, script: bool) -> None:
    """A page has 200 of them and is no larger than that; the next page, and what begins with a prefix, are one click
    away, also without JavaScript; axe-core finds no violation."""
    page = enter(browser, crowded, java_script_enabled=script, viewport={"width": 320, "height": 640})
    page.goto(f"/bucket?bucket={SOURCE}")
    page.click("a:text('camera/')")
    rows = page.locator("tbody tr")

    def first() -> str:
        return str(rows.first.locator("th").inner_text())

    assert (rows.count(), first()) == (200, "img-00000.jpg")
    assert len(page.content()) < 250_000
    if script:
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        page.evaluate(AXE.read_text())
        assert page.evaluate("axe.run()")["violations"] == []
    page.click("a:text('Next page')")
    assert (rows.count(), first()) == (200, "img-00200.jpg")
    page.fill("input[name=starts]", "img-0999")
    page.press("input[name=starts]", "Enter")
    page.wait_for_url("**starts=img-0999*")
    assert (rows.count(), first()) == (10, "img-09990.jpg")
    assert page.locator("a:text('Next page')").count() == 0
    page.context.close()
    assert page.faults == []


def test_without_javascript_everything_is_still_done(browser: Any, console: Console, filled: Site) -> None:
    page = enter(browser, console, java_script_enabled=False)
    page.goto(f"/bucket?bucket={SOURCE}&folder=plain")
    page.set_input_files("input[type=file]", [{"name": "plain.txt", "mimeType": "text/plain", "buffer": b"plain"}])
    page.click("button:text('Upload')")
    settle(filled)
    page.goto(url("/bucket", bucket=SOURCE, folder="plain"))
    page.click("button:text('Delete')")
    assert "is deleted" in page.inner_text("main")
    page.context.close()
