"""A night's verdict reaches a webhook, or a sentence says why not; its address is never told."""

import base64
import json
import logging
import os
import socket
import threading
import time
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
        self.paths: list[str] = []
        self.authorizations: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Receiver)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        self.server.paths.append(self.path)
        self.server.authorizations.append(self.headers["Authorization"])
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
        f"The webhook was not told: the environment variable {VARIABLE} holds no address of "
        "http:// or https://."
    )
    monkeypatch.setattr(webhook, "PAUSE_S", 0.0)
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:1/")
    assert "it cannot be reached" in (post_verdict(VARIABLE, {}) or "")


def told_at(monkeypatch: pytest.MonkeyPatch, address: str) -> str:
    monkeypatch.setattr(webhook, "PAUSE_S", 0.0)
    monkeypatch.setenv(VARIABLE, address)
    return post_verdict(VARIABLE, {}) or ""


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:port/token-1234", "http://[::1/token-1234", "http://127.0.0.1:99999/token-1234",
     "http:///token-1234", "http://x\n/token-1234", "ftp://x/token-1234",
     "http://\udcff/token-1234", "http://127.0.0.1:-1/token-1234"],
)  # fmt: skip
def test_an_odd_address_is_called_no_address_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    said = told_at(monkeypatch, address)
    assert "holds no address of http:// or https://" in said
    assert "token-1234" not in said


def test_an_unknown_name_and_one_that_is_too_long_fail_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("nowhere.invalid", f"{'a' * 70}.invalid", "xn--", "host name", "."):
        said = told_at(monkeypatch, f"http://{name}/token-1234")
        assert "it cannot be reached (ConnectError), 3 times" in said or "no address" in said
        assert "token-1234" not in said


@pytest.mark.parametrize(
    "answer",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 2o4 x\r\n\r\n", b"", b"HTTP/1.1 204 x\r\nbad header\r\n\r\n"],
)
def test_an_answer_that_is_no_http_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_all, args=(server, answer), daemon=True).start()
        said = told_at(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/token-1234")
    assert "it cannot be reached (RemoteProtocolError), 3 times" in said


def test_a_service_that_sends_a_byte_now_and_then_holds_no_night(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(webhook, "PATIENCE_S", 0.5)
    ended = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            while not ended.wait(0.05):
                connection.sendall(b"H")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=drip, args=(server,), daemon=True).start()
        begin_s = time.monotonic()
        said = told_at(monkeypatch, f"http://127.0.0.1:{server.getsockname()[1]}/")
        ended.set()
    assert "it did not answer within" in said
    assert time.monotonic() - begin_s < 5


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.codes = [307] * 3
    assert "it answered 307 (redirects are not followed), 3 times" in (
        post_verdict(VARIABLE, {}) or ""
    )
    assert receiver.paths == ["/token-1234"] * 3


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.170.23",
     "0.0.0.0", "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]",
     "[64:ff9b::a9fe:a9fe]", "[::]",
     "[2002:a9fe:a9fe::]", "100.100.100.200", "168.63.129.16", "224.0.0.1"],
)  # fmt: skip
def test_a_metadata_address_is_refused_however_it_is_written(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    said = told_at(monkeypatch, f"http://{host}/token-1234")
    assert "nightly.webhook_any_address: true allows it" in said or "holds no address" in said
    assert "token-1234" not in said


def test_what_counts_is_the_address_that_is_connected_to(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is first harmless and then leads elsewhere is looked up once."""
    answers = iter(["127.0.0.1", "169.254.169.254"])
    look_up = socket.getaddrinfo

    def rebinding(host: str, *args: object, **options: object) -> object:
        found = next(answers) if host == "hooks.example" else host
        return look_up(found, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setenv(VARIABLE, f"http://hooks.example:{receiver.server_port}/")
    assert post_verdict(VARIABLE, {}) is None
    assert "link-local" in (post_verdict(VARIABLE, {}) or "")
    monkeypatch.setenv(VARIABLE, f"http://0.0.0.0:{receiver.server_port}/")
    assert post_verdict(VARIABLE, {}, is_any_allowed=True) is None


def test_a_proxy_of_the_environment_is_used_and_its_names_are_its_own(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://name:word@127.0.0.1:{receiver.server_port}")
    monkeypatch.setenv(VARIABLE, "http://hooks.invalid/token-1234")
    assert post_verdict(VARIABLE, {}) is None
    assert receiver.paths == ["http://hooks.invalid/token-1234"]
    monkeypatch.setenv(VARIABLE, "http://169.254.169.254/")
    assert "link-local" in (post_verdict(VARIABLE, {}) or "")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{receiver.server_port}/direct")
    assert post_verdict(VARIABLE, {}) is None
    assert receiver.paths[-1] == "/direct"


def test_name_and_password_in_the_address_are_sent_as_such(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    os.environ[VARIABLE] = f"http://name:pass%40word@127.0.0.1:{receiver.server_port}/token-1234"
    assert post_verdict(VARIABLE, {}) is None
    assert receiver.authorizations == [f"Basic {base64.b64encode(b'name:pass@word').decode()}"]
    assert not [secret for secret in ("token-1234", "pass") if secret in caplog.text]


def answer_all(server: socket.socket, answer: bytes) -> None:
    """Give this answer to every request until the socket is closed."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.recv(65_536)
            connection.sendall(answer)
