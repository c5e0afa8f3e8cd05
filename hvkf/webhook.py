"""Telling a webhook how a night ended.

The address comes from an environment variable of the flow, which a Secret sets: it needs none of
Prefect's blocks and automations, and the night's own log says when nobody could be told.
"""

import base64
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

NUM_TRIES = 3
TIMEOUT_S = 10.0
# Of all tries together: a service that sends a byte now and then holds no night.
PATIENCE_S = 60.0
PAUSE_S = 2.0
MAX_PORT = 65_535
SCHEMES = ("http", "https")
# Where clouds hand out keys, besides all link-local addresses.
METADATA_NETWORKS = tuple(
    map(
        ipaddress.ip_network,
        ("fd00:ec2::/32", "fd20:ce::/32", "100.100.100.200/32", "168.63.129.16/32"),
    )
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Refused(Exception):
    """The address is none that a verdict may be sent to; the message says why, without it."""


def post_verdict(
    variable: str | None, verdict: Mapping[str, object], is_any_allowed: bool = False
) -> str | None:
    """Post a verdict as JSON to the address that an environment variable holds.

    The address may hold a token: it is in no message and no log. A webhook that is away fails no
    night. Redirects are not followed.

    Args:
        variable: Name of the environment variable; None: nobody is to be told.
        verdict: What to post.
        is_any_allowed: Post to link-local and metadata addresses as well.

    Returns:
        A sentence when nobody could be told, else None.
    """
    if variable is None:
        return None
    try:
        url = _parse(os.environ.get(variable, ""))
    except _Refused as error:
        return f"The webhook was not told: the environment variable {variable} holds {error}."
    body = json.dumps(verdict).encode()
    reasons: list[str | None] = []
    thread = threading.Thread(
        target=lambda: reasons.append(_post_repeatedly(url, body, is_any_allowed)), daemon=True
    )
    thread.start()
    thread.join(PATIENCE_S)
    reason = reasons[0] if reasons else f"it did not answer within {PATIENCE_S:.0f} s"
    return reason and f"The webhook of {variable} was not told: {reason}."


def _parse(address: str) -> httpx.URL:
    """Read an address of http or https.

    Raises:
        _Refused: it is none.
    """
    try:
        url = httpx.URL(address)
        is_usable = url.scheme in SCHEMES and bool(url.raw_host.decode("ascii"))
        port = url.port
    except (httpx.InvalidURL, ValueError):  # among them those of Unicode
        raise _Refused("no address of http:// or https://") from None
    if not is_usable or not 0 < (port or 1) <= MAX_PORT:
        raise _Refused("no address of http:// or https://")
    return url


def _post_repeatedly(url: httpx.URL, body: bytes, is_any_allowed: bool) -> str | None:
    """Post up to NUM_TRIES times; return why it was not taken, or None."""
    reason = ""
    for attempt in range(NUM_TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            status = _post(url, body, is_any_allowed)
        except _Refused as error:
            return str(error)
        except _FAILURES as error:
            reason = f"it cannot be reached ({type(error).__name__})"
        else:
            if 200 <= status < 300:
                return None
            is_redirect = 300 <= status < 400
            reason = f"it answered {status}" + (" (redirects are not followed)" * is_redirect)
    return f"{reason}, {NUM_TRIES} times"


_FAILURES = (
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException),
    *(httpcore.ProxyError, httpcore.UnsupportedProtocol, OSError, ValueError),
)


def _post(url: httpx.URL, body: bytes, is_any_allowed: bool) -> int:
    """Post once; return the answer's status. Its body is not read: it may have no end."""
    headers: dict[bytes | str, bytes | str] = {"Content-Type": "application/json"}
    if url.userinfo:
        credentials = f"{url.username}:{url.password}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(credentials).decode()}"
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_S)
    # httpcore, not httpx: that one writes each address into its log.
    with (
        _pool(url, is_any_allowed) as pool,
        pool.stream(
            "POST", target, headers=headers, content=body, extensions={"timeout": timeouts}
        ) as answer,
    ):
        return answer.status


def _pool(url: httpx.URL, is_any_allowed: bool) -> httpcore.ConnectionPool:
    """Make what connects: directly, or through the proxy that the environment names."""
    certificates = ssl.create_default_context() if url.scheme == "https" else None
    host = url.raw_host.decode()
    proxy = None if proxy_bypass(host) else getproxies().get(url.scheme)
    backend = _CheckedBackend(is_any_allowed)
    if proxy is None:
        return httpcore.ConnectionPool(certificates, network_backend=backend)
    backend.check(_literal(host))  # names are the proxy's to look up
    through = _parse(proxy)
    credentials = through.username, through.password
    return httpcore.HTTPProxy(
        f"{through.scheme}://{through.netloc.decode()}",
        proxy_auth=credentials if through.userinfo else None,
        ssl_context=certificates,
    )


class _CheckedBackend(httpcore.SyncBackend):
    """Looks a name up once, and connects to the very address that was looked at."""

    def __init__(self, is_any_allowed: bool) -> None:
        self._is_any_allowed = is_any_allowed

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("its name is not known") from error
        addresses = [str(address[0]) for *_, address in found]
        self.check(addresses)
        return super().connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    def check(self, addresses: Iterable[str]) -> None:
        """Look at all addresses of a name.

        Raises:
            _Refused: one of them is link-local, or hands out a machine's keys, or is none.
        """
        refused = [address for address in addresses if _is_refused(address)]
        if refused and not self._is_any_allowed:
            raise _Refused(
                "it lies at a link-local or metadata address, which hands out this machine's keys; "
                "nightly.webhook_any_address: true allows it"
            )


def _literal(host: str) -> list[str]:
    """Return a host that is an address, as the only entry."""
    try:
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return []
    return [str(address[0]) for *_, address in found]


def _is_refused(text: str) -> bool:
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        address = _embedded(address) or address
    return (
        address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or any(address in network for network in METADATA_NETWORKS)
    )


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Find the IPv4 address that an IPv6 address stands for."""
    if address in NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour
