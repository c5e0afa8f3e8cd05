"""Who is answered by Prefect's server: its own pages and programs, under its own names."""

import asyncio
import http.client
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from flows.origin_middleware import OwnPagesOnly, answered_for
from flows.server import SERVER_SETTINGS, free_port, serving

SOCKETS = ("events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled")
Headers = list[tuple[str, str]]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a server without a password, so that only its looking at origins protects it."""
    home = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(home))
        with serving(home, free_port(), SERVER_SETTINGS) as address:
            yield urlsplit(address).port or 0


def ask(
    port: int, headers: Headers, method: str = "POST", path: str = "/api/flows/"
) -> tuple[int, str, dict[str, str]]:
    """Send exactly these headers; return the status, the text and the headers of the answer."""
    body = json.dumps({"name": "from-outside"}).encode() if method == "POST" else b""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    for name, value in [*headers, ("Content-Length", str(len(body)))]:
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    said = answer.status, answer.read().decode(), {k.lower(): v for k, v in answer.getheaders()}
    connection.close()
    return said


def hosted(port: int, *more: tuple[str, str]) -> Headers:
    return [("Host", f"127.0.0.1:{port}"), *more]


def test_programs_are_answered_under_each_name_of_this_machine(port: int) -> None:
    for name in ("127.0.0.1", "localhost", "LocalHost"):
        assert ask(port, [("Host", f"{name}:{port}")])[0] in (200, 201)


@pytest.mark.parametrize(
    "host",
    ["evil.example:{port}", "evil.example", "127.0.0.1:1", "127.0.0.1", "localhost", "[::1]:{port}",
     "localhost.evil.example:{port}", "127.0.0.1.evil.example:{port}", "localhost:{port}@evil", ""],
)  # fmt: skip
def test_a_name_that_was_pointed_here_is_refused(port: int, host: str) -> None:
    status, said, headers = ask(port, [("Host", host.format(port=port))])
    assert status == 403
    assert "not known under this name: open it as http://127.0.0.1:" in said
    assert "access-control-allow-origin" not in headers


def test_a_request_without_a_name_or_with_two_is_refused(port: int) -> None:
    own = hosted(port)
    assert ask(port, [])[0] in (400, 403)
    assert ask(port, own + own)[0] in (400, 403)
    assert ask(port, [*own, ("Host", "evil.example")])[0] in (400, 403)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://localhost:3000",
     "http://127.0.0.1:{port}.evil.example", "http://[::1]:{port}", "null", "", "file://", "*",
     "chrome-extension://{port}", "http://127.0.0.1:{port}/"],
)  # fmt: skip
def test_a_page_of_another_origin_is_refused_and_told_nothing(port: int, origin: str) -> None:
    foreign = ("Origin", origin.format(port=port))
    preflight = ("Access-Control-Request-Method", "POST")
    for method, headers in (("POST", []), ("GET", []), ("OPTIONS", [preflight])):
        status, said, answered = ask(port, hosted(port, foreign, *headers), method)
        assert (status, said) == (403, "Pages of other origins may not ask this server.\n")
        assert "access-control-allow-origin" not in answered
    assert ask(port, hosted(port, ("Origin", f"http://127.0.0.1:{port}"), foreign))[0] == 403


def test_a_simple_request_of_a_page_is_refused_whatever_its_type(port: int) -> None:
    """Those that browsers send without asking first; Prefect takes JSON that has no type."""
    for kind in ((), (("Content-Type", "text/plain"),), (("Content-Type", "application/json"),)):
        assert ask(port, hosted(port, ("Origin", "http://evil.example"), *kind))[0] == 403
        assert ask(port, hosted(port, ("Sec-Fetch-Site", "cross-site"), *kind))[0] == 403


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_servers_own_pages_are_answered(port: int, name: str) -> None:
    origin = f"http://{name}:{port}"
    own = hosted(port, ("Origin", origin), ("Sec-Fetch-Site", "same-site"))
    status, _, headers = ask(port, own)
    assert status in (200, 201)
    assert headers["access-control-allow-origin"] == origin
    preflight = ("Access-Control-Request-Method", "POST")
    assert ask(port, [*own, preflight], "OPTIONS")[0] == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something-new"])
def test_without_an_origin_another_site_may_follow_links_to_pages_only(
    port: int, site: str
) -> None:
    link = hosted(port, ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate"))
    to_page = [*link, ("Sec-Fetch-Dest", "document")]
    assert ask(port, to_page, "GET", "/runs")[0] != 403
    assert ask(port, [*link, ("Sec-Fetch-Dest", "iframe")], "GET", "/runs")[0] == 403
    for path in ("/api", "/api/flows/count", "/api/admin/version"):
        assert ask(port, to_page, "GET", path)[0] == 403
    assert ask(port, to_page, "POST", "/runs")[0] == 403
    for destination in ("script", "image", "empty"):
        other = hosted(port, ("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "no-cors"))
        assert ask(port, [*other, ("Sec-Fetch-Dest", destination)], "GET", "/runs")[0] == 403


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_what_the_person_types_and_the_page_itself_asks_is_answered(port: int, site: str) -> None:
    own = hosted(port, ("Sec-Fetch-Site", site))
    assert ask(port, own, "GET", "/api/health")[0] == 200


def test_a_redirect_leads_to_the_servers_own_name(port: int) -> None:
    status, _, headers = ask(port, hosted(port), "GET", "/api/health/")
    assert status == 404 or headers["location"].startswith(f"http://127.0.0.1:{port}/")
    forwarded = hosted(port, ("X-Forwarded-Host", "evil.example"), ("X-Forwarded-Proto", "https"))
    status, _, headers = ask(port, forwarded, "POST", "/api/flows")
    assert status == 307
    assert headers["location"] == f"http://127.0.0.1:{port}/api/flows/"


def test_no_page_may_put_the_servers_pages_into_a_frame_nor_they_ask_others(port: int) -> None:
    _, _, headers = ask(port, hosted(port), "GET", "/api/health")
    assert headers["x-frame-options"] == "DENY"
    rules = headers["content-security-policy"].split("; ")
    assert rules[0] == "frame-ancestors 'none'"
    assert set(rules[1].split()[1:]) == {
        "'self'",
        *(
            f"{kind}://{name}:{port}"
            for kind in ("http", "ws")
            for name in ("127.0.0.1", "localhost")
        ),
    }


@pytest.mark.parametrize("path", SOCKETS)
def test_a_socket_is_opened_by_programs_and_own_pages_only(port: int, path: str) -> None:
    address = f"ws://127.0.0.1:{port}/api/{path}"
    for origin in (None, f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        connect(address, origin=origin, subprotocols=["prefect"]).close()  # type: ignore[arg-type,list-item]
    for origin in ("http://evil.example", "null", "http://localhost:3000"):
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin=origin)  # type: ignore[arg-type]
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, additional_headers={"Sec-Fetch-Site": "cross-site"})
    rebound = socket.create_connection(("127.0.0.1", port))
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://evil.example:{port}/api/{path}", sock=rebound, proxy=None)


def test_a_server_behind_a_sign_in_answers_its_pages_and_its_clients_names() -> None:
    answered = answered_for("https://hvkf.example.com/api", 4200, ["hvkf-server:4200"])
    assert answered.origins == {"https://hvkf.example.com"}
    assert answered.hosts == {
        *("hvkf.example.com", "hvkf-server:4200", "127.0.0.1:4200", "localhost:4200")
    }
    assert answered_for("http://127.0.0.1:4200/api", 4200).origins == {
        *("http://127.0.0.1:4200", "http://localhost:4200")
    }
    assert answered_for("http://[fd00::1]:8080/api", 4200).origins == {"http://[fd00::1]:8080"}


def test_a_pod_is_asked_by_its_own_address_and_a_forwarded_port_by_any_number() -> None:
    """As probes and scrapers of a cluster ask, and `kubectl port-forward`."""
    port = 4200
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["path"])

    async def ask_from(server: tuple[str, int], host: str) -> bool:
        headers = [(b"host", host.encode())]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "server": server}
        before = len(seen)
        await OwnPagesOnly(app, answered)(scope, receive, send)
        return len(seen) > before

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        """Take the answer."""

    answered = answered_for("https://hvkf.example.com/api", port, ["hvkf-server", "127.0.0.1"])
    for server, host, is_answered in (
        (("10.1.2.3", port), f"10.1.2.3:{port}", True),
        (("10.1.2.3", port), f"10.1.2.4:{port}", False),
        (("fd00::3", port), f"[fd00::3]:{port}", True),
        (("127.0.0.1", port), "127.0.0.1:14200", True),
        (("127.0.0.1", port), "hvkf-server", True),
        (("127.0.0.1", port), "hvkf-server.evil.example:80", False),
    ):
        assert asyncio.run(ask_from(server, host)) is is_answered, host
