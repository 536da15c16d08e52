"""A service for all tests of a process, of each kind that is asked for; each test begins without buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.radosgw import Radosgw, only_with_radosgw
from tests.services import KEYS, Service

EACH = pytest.mark.parametrize(
    "service",
    ["moto", "ministack", pytest.param("radosgw", marks=[pytest.mark.slow, only_with_radosgw])],
    indirect=True,
)
"""For a test that every service is to pass."""


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """The running service of a kind."""
    running: dict[str, Service] = {}

    def service(kind: str) -> Service:
        if kind not in running:
            log = tmp_path_factory.mktemp("service") / "log"
            running[kind] = Radosgw(log) if kind == "radosgw" else Service(log, kind)
        running[kind].start()  # the first time, or where a test has stopped it
        return running[kind]

    yield service
    for each in running.values():
        each.end()


@pytest.fixture
def service(
    services: Callable[[str], Service], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Service:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    found = services(getattr(request, "param", "moto"))
    found.reset()
    return found
