"""A service for all tests of a process, of each kind that is asked for; each test begins without buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.services import KEYS, Service

BOTH = pytest.mark.parametrize("service", ["moto", "ministack"], indirect=True)
"""For a test that both services are to pass."""


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """The running service of a kind."""
    running: dict[str, Service] = {}

    def service(kind: str) -> Service:
        if kind not in running:
            running[kind] = Service(tmp_path_factory.mktemp("service") / "log", kind)
        running[kind].start()  # the first time, or where a test has stopped it
        return running[kind]

    yield service
    for each in running.values():
        each.stop()


@pytest.fixture
def service(
    services: Callable[[str], Service], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Service:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    found = services(getattr(request, "param", "moto"))
    found.reset()
    return found
