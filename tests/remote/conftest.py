"""One service for all tests of a process; each test begins without buckets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import KEYS, Service


@pytest.fixture(scope="session")
def running_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service") / "log") as service:
        yield service


@pytest.fixture
def service(running_service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    running_service.start()  # where a test has stopped it
    running_service.reset()
    return running_service
