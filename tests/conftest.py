"""What all tests share."""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from hvkf import stops
from tests.s3_server import S3Service, s3_service

# Shared machines pause: a property is right or wrong, not fast or slow.
settings.register_profile("hvkf", deadline=None)
settings.load_profile("hvkf")

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def s3_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    """Run one S3 service for all tests of this process."""
    with s3_service(tmp_path_factory.mktemp("s3")) as service:
        yield service


@pytest.fixture
def s3(s3_session: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    """Point this test, and the processes it starts, at the S3 service."""
    s3_session.use(monkeypatch)
    return s3_session


@pytest.fixture
def takes_stops(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process answer SIGTERM as a worker does, until the test ends."""
    monkeypatch.setattr(stops, "_told", False)
    before = signal.getsignal(signal.SIGTERM)
    stops.listen()
    yield
    signal.signal(signal.SIGTERM, before)
