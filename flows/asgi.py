"""Requests and answers as whole messages: what the server's middlewares have in common."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Answer(NamedTuple):
    """What an application answered: its first message, and all of the body.

    `error` is what it raised all the same, as it does behind a 503.
    """

    start: Message
    body: bytes
    error: Exception | None = None

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.start["status"])

    def read(self) -> Mapping[str, Any]:
        """Read an answer in JSON; empty where it is none."""
        return read_mapping(self.body)

    def with_content(self, content: object) -> "Answer":
        """Make the same answer with another content."""
        body = json.dumps(content).encode()
        start = {**self.start, "headers": _sized(self.start["headers"], body)}
        return self._replace(start=start, body=body)

    async def send_on(self, send: Send) -> None:
        """Answer with it, and end as the application did."""
        await send(self.start)
        await send({"type": "http.response.body", "body": self.body})
        if self.error is not None:
            raise self.error


async def ask(app: ASGIApp, scope: Scope, asked: Message, receive: Receive) -> Answer:
    """Ask an application, and read all of its answer, uncompressed.

    Args:
        app: The application.
        scope: Of the request.
        asked: The whole request, as `whole_request` reads it.
        receive: Gives what comes after it.
    """
    start: Message = {}
    body = b""

    async def take(message: Message) -> None:
        nonlocal start, body
        if message["type"] == "http.response.start":
            start = message
        elif message["type"] == "http.response.body":
            body += message.get("body", b"")

    headers = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
    headers = _sized(headers, asked.get("body", b""))
    error = None
    try:
        await app({**scope, "headers": headers}, replayed(asked, receive), take)
    except Exception as raised:
        if not start:
            raise
        error = raised
    return Answer(start, body, error)


async def look_up(app: ASGIApp, scope: Scope, path: str, receive: Receive) -> Mapping[str, Any]:
    """Get a path of an application with the rights of another request; empty: no answer."""
    asks = {**scope, "method": "GET", "path": path, "raw_path": path.encode()}
    asked: Message = {"type": "http.request", "body": b"", "more_body": False}
    return (await ask(app, asks, asked, receive)).read()


async def whole_request(receive: Receive) -> Message:
    """Read a request with all of its body, or that the client is gone."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return message
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return {"type": "http.request", "body": body, "more_body": False}


def replayed(first: Message, receive: Receive) -> Receive:
    """Give a request that was read already, then what comes after it."""
    waiting = [first]

    async def replay() -> Message:
        return dict(waiting.pop()) if waiting else await receive()

    return replay


def read_mapping(data: bytes) -> Mapping[str, Any]:
    """Read a JSON object; empty where it is none."""
    try:
        return mapping(json.loads(data))
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return {}


def mapping(value: object) -> Mapping[str, Any]:
    """Take a value of JSON for an object; empty where it is none."""
    return value if isinstance(value, dict) else {}


def _sized(headers: Any, body: bytes) -> list[tuple[bytes, bytes]]:
    others = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*others, (b"content-length", str(len(body)).encode())]
