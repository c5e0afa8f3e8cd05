"""A night's verdict reaches a webhook, or a sentence says why not; its address is never told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hvkf import webhook
from hvkf.webhook import post_verdict

VARIABLE = "HVKF_TEST_WEBHOOK"


class Receiver(HTTPServer):
    """Keeps what was posted; answers with the codes given, then with 204."""

    def __init__(self) -> None:
        self.bodies: list[object] = []
        self.codes: list[int] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self.send_response(self.server.codes.pop(0) if self.server.codes else 204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "PAUSE_S", 0.0)
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}/token-1234")
        yield server
        server.shutdown()
        thread.join()


def test_the_verdict_is_posted_and_a_passing_fault_is_tried_again(receiver: Receiver) -> None:
    receiver.codes = [503]
    assert post_verdict(VARIABLE, {"outcome": "promoted"}) is None
    assert receiver.bodies == [{"outcome": "promoted"}] * 2


def test_a_refusal_is_told_without_the_address(receiver: Receiver) -> None:
    receiver.codes = [403] * 3
    sentence = post_verdict(VARIABLE, {})
    assert sentence == f"The webhook of {VARIABLE} was not told: it answered 403, 3 times."


def test_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert post_verdict(None, {}) is None
    monkeypatch.setenv(VARIABLE, "file:///etc/passwd")
    assert post_verdict(VARIABLE, {}) == (
        f"The webhook was not told: the environment variable {VARIABLE} holds no address."
    )
    monkeypatch.setattr(webhook, "PAUSE_S", 0.0)
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:1/")
    assert "it cannot be reached" in (post_verdict(VARIABLE, {}) or "")
