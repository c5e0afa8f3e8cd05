"""Who may ask Prefect's server: its own pages and programs, not any page that a browser shows.

Prefect's server answers pages of every origin, under every name. Whoever may ask it may run
commands where its worker runs, so a page of another site that its operator happens to open must
not: not by a request across origins, not under a name of its own that it lets point here (DNS
rebinding), not by a WebSocket, and not by a frame over which the operator clicks.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.workspace_pages import PAGES_PATH

FORBIDDEN = 403
POLICY_VIOLATION = 1008
DEFAULT_PORTS = {"http": 80, "https": 443}
LOOPBACK_NAMES = ("127.0.0.1", "localhost")
API_PATH = "/api"
# What a browser says of where a request comes from, when it is no other page.
OWN_SITES = ("same-origin", "none")


class Answered(NamedTuple):
    """Which requests are answered: the values of their Host header, and of their Origin.

    A host without a port stands for that name with any port: a port may be forwarded under another
    number, and no attacker gains by one.
    """

    hosts: frozenset[str]
    origins: frozenset[str]


def answered_for(pages: str, port: int, names: Collection[str] = ()) -> Answered:
    """Say who is answered by a server on a port of this machine.

    Args:
        pages: Where browsers find the server's pages, such as `https://hvkf.example.com`.
        port: The port that the server listens on; programs of this machine ask there.
        names: More names that programs have for it, with any port or with one: `name:4200`.
    """
    page = urlsplit(pages)
    hostname, page_port = page.hostname or "", page.port or DEFAULT_PORTS[page.scheme]
    shown = f"[{hostname}]" if ":" in hostname else hostname
    aliases = LOOPBACK_NAMES if hostname in LOOPBACK_NAMES else (shown,)
    with_ports = {f"{alias}:{page_port}" for alias in aliases}
    if page_port == DEFAULT_PORTS[page.scheme]:
        with_ports = set(aliases)
    hosts = {*with_ports, *(f"{name}:{port}" for name in LOOPBACK_NAMES), *map(str.lower, names)}
    return Answered(frozenset(hosts), frozenset(f"{page.scheme}://{host}" for host in with_ports))


class OwnPagesOnly:
    """An ASGI application that passes on what its own pages, or no pages at all, ask.

    Programs send neither Origin nor Sec-Fetch-Site; browsers always send one of them when a page
    makes them write, and no page can change either.
    """

    def __init__(self, app: ASGIApp, answered: Answered) -> None:
        self._app = app
        self._answered = answered
        self._headers = [
            (b"content-security-policy", _page_rules(answered.origins).encode()),
            (b"x-frame-options", b"DENY"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or a WebSocket, or refuse it with a sentence."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif sentence := self._refusal(scope):
            await _refuse(scope, sentence, send)
        else:
            await self._app(scope, receive, self._with_rules(send))

    def _with_rules(self, send: Send) -> Send:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        return send_on

    def _refusal(self, scope: Scope) -> str | None:
        hosts = [host.lower() for host in _values(scope, b"host")]
        known = {*self._answered.hosts, _own_address(scope)}
        if len(hosts) != 1 or not {hosts[0], hosts[0].rpartition(":")[0]} & known:
            return (
                "This server is not known under this name: open it as "
                f"{min(self._answered.origins)}."
            )
        if scope["type"] == "http" and scope["path"].startswith(PAGES_PATH):
            # In a sandbox, each is another site to the next; their addresses are secret.
            return None
        origins = list(_values(scope, b"origin"))
        if origins:
            foreign = [origin for origin in origins if origin not in self._answered.origins]
            return "Pages of other origins may not ask this server." if foreign else None
        is_foreign = any(site not in OWN_SITES for site in _values(scope, b"sec-fetch-site"))
        if is_foreign and not _opens_a_page(scope):
            return "Pages of other sites may not ask this server."
        return None


def _values(scope: Scope, name: bytes) -> Iterator[str]:
    return (value.decode("latin-1") for key, value in scope["headers"] if key == name)


def _own_address(scope: Scope) -> str:
    """Write the address at which this request arrived: no other server's page can have it.

    Probes and scrapers of a cluster ask for a pod by its address.
    """
    address, port = scope.get("server") or ("", None)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _opens_a_page(scope: Scope) -> bool:
    """Say whether a person follows a link of another site to a page of this server."""
    path = scope["path"]
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and path != API_PATH
        and not path.startswith(f"{API_PATH}/")
        and list(_values(scope, b"sec-fetch-mode")) == ["navigate"]
        and list(_values(scope, b"sec-fetch-dest")) == ["document"]
    )


async def _refuse(scope: Scope, sentence: str, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": sentence})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": FORBIDDEN, "headers": headers})
    await send({"type": "http.response.body", "body": f"{sentence}\n".encode()})


def _page_rules(origins: Collection[str]) -> str:
    """Write what browsers let this server's pages do: be in no frame, and ask this server only."""
    sockets = [origin.replace("http", "ws", 1) for origin in origins]
    return f"frame-ancestors 'none'; connect-src 'self' {' '.join(sorted([*origins, *sockets]))}"
