"""Odd addresses of a webhook and odd answers of its server: a sentence, in time, no secret."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hvkf import webhook
from hvkf.redaction import without_userinfo
from hvkf.webhook import post_verdict
from tests.fuzz.bounds import fuzzed, in_bounds

VARIABLE = "HVKF_TEST_WEBHOOK"
SECRET = "T0KEN-that-nobody-may-see"
VALID = f"http://user:{SECRET}@127.0.0.1:9/hooks/{SECRET}?key={SECRET}#part"
ANSWER = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nServer: x\r\n\r\n"


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(webhook, "NUM_TRIES", 1)
        patch.setattr(webhook, "TIMEOUT_S", 0.2)
        patch.setattr(webhook, "PATIENCE_S", 2.0)
        # No name is looked up: addresses are, as they are written.
        resolve = socket.getaddrinfo

        def numeric(host: str, port: int | None, *kind: Any, type: int = 0, flags: int = 0) -> Any:
            return resolve(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

        patch.setattr(socket, "getaddrinfo", numeric)
        yield


@st.composite
def mutated(draw: st.DrawFn, valid: str) -> str:
    """Cut, repeat and insert into a valid text."""
    text = valid
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        inserted = draw(
            st.one_of(
                st.text(st.characters(codec=None), max_size=6),
                st.sampled_from(
                    ["@", ":", "//", "[", "]", "%", "\\", "#", "?", "\n", "\0", " ", "."]
                ),
                st.sampled_from(["[::1", "xn--", "a" * 70, "99999", "-1", "0x7f", "\udcff", "é"]),
            )
        )
        text = text[:start] + inserted + text[end:]
    return text


def told(address: str) -> str | None:
    """Post to an address as the environment holds it."""
    try:
        os.environ[VARIABLE] = address
    except (ValueError, UnicodeError):  # no environment holds this
        return None
    return post_verdict(VARIABLE, {"outcome": "kept"})


@fuzzed(480)
@given(address=mutated(VALID))
@example(address="http://[::1")
@example(address="http://127.0.0.1:port/" + SECRET)
@example(address="http://127.0.0.1:99999/" + SECRET)
@example(address="http://" + "a" * 70 + ".example/" + SECRET)
@example(address="http://xn--/" + SECRET)
@example(address="http://./" + SECRET)
@example(address="http://127.0.0.1:9/\n" + SECRET)
@example(address="http://\udcff/" + SECRET)
@example(address="https://127.0.0.1:0/" + SECRET)
def test_an_odd_address_is_a_sentence_without_its_secrets(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    with in_bounds():
        sentence = told(address)
    assert SECRET not in (sentence or "")
    assert SECRET not in caplog.text


@fuzzed(160)
@given(
    answer=st.one_of(
        mutated(ANSWER.decode()).map(lambda text: text.encode("utf-8", "replace")), st.binary()
    )
)
@example(answer=b"")
@example(answer=b"HTTP/1.1\r\n\r\n")
@example(answer=b"HTTP/1.1 999999999999 x\r\n\r\n")
@example(answer=b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n")
@example(answer=b"HTTP/1.1 204 x\r\n" + b"X: " + b"y" * 200_000)
def test_an_odd_answer_is_a_sentence(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, in_bounds():
        thread = threading.Thread(target=answer_all, args=(server, answer), daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/{SECRET}"
        sentence = told(address)
        assert SECRET not in (sentence or "")


def answer_all(server: socket.socket, answer: bytes) -> None:
    """Give this answer to every request until the socket is closed."""
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(1)
            try:
                connection.recv(65_536)
                connection.sendall(answer)
            except OSError:
                continue


@fuzzed(800)
@given(text=mutated(VALID))
@example(text="'http://key:SECRET@host/path' and \"https://SECRET@host\"")
@example(text="s3://k:S@E@b/prefix")
def test_addresses_in_a_text_lose_names_and_passwords_and_nothing_else_is_cut(text: str) -> None:
    shown = without_userinfo(text)
    assert without_userinfo(shown) == shown
    assert len(shown) <= len(text)
