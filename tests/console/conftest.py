"""One site with a daemon and a console for all tests of a file: each uses keys, and a visitor, of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.console.chromium import CHROMIUM
from tests.console.visitor import Console, Visitor
from tests.site import Site

MISSING = [
    name for name in ("starlette", "uvicorn", "jinja2", "python_multipart") if not importlib.util.find_spec(name)
]


class _Unusable(pytest.Module):
    """A file of tests that cannot be imported here."""

    def collect(self) -> NoReturn:
        pytest.skip(f"the extra [console] is not installed: no {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _Unusable.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("console")) as site:
        site.start()
        yield site


@pytest.fixture(scope="module")
def console(site: Site) -> Iterator[Console]:
    with Console(site) as console:
        yield console


@pytest.fixture
def visitor(console: Console) -> Visitor:
    return console.visitor()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One for all tests; each has a context of its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
