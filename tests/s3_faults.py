"""A proxy before an S3 service that answers with faults, drops connections and loses answers."""

import asyncio
import io
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import NamedTuple
from urllib.parse import unquote

import botocore.session
from aiohttp import ClientSession, TCPConnector, web
from yarl import URL

NOT_FORWARDED = {"connection", "expect", "keep-alive", "transfer-encoding"}
CONDITIONS = {"if-none-match", "if-match"}
ERROR_XML = "<Error><Code>{code}</Code><Message>{code}, injected</Message></Error>"


class Fault(Enum):
    """What happens to a request instead of its answer."""

    UNAVAILABLE = auto()  # 503 SlowDown, not forwarded
    INTERNAL = auto()  # 500 without a body, not forwarded
    DROPPED = auto()  # the connection closes, not forwarded
    LOST = auto()  # done, but the connection closes before its answer
    CUT = auto()  # done; half of the answer's body arrives
    FLIPPED = auto()  # one bit of the request's body changes on its way
    UNCONDITIONAL = auto()  # done, but its conditions are ignored
    SKEWED = auto()  # the service finds the client's clock wrong


class Refused(NamedTuple):
    """An answer that a service, or a network before it, gives instead of doing what was asked."""

    status: int
    code: str  # '' for an answer that is no XML of S3's


class Request(NamedTuple):
    """What a rule may look at."""

    number: int
    method: str
    path: str
    is_conditional: bool
    headers: frozenset[str] = frozenset()  # their names, in lower case


Rule = Callable[[Request], Fault | Refused | None]


def no_faults(request: Request) -> None:
    """Let everything pass."""


def random_faults(share: float, seed: int) -> Rule:
    """Make a rule that breaks the given share of all requests, and loses puts' answers first.

    The answer to the first of every four conditional puts is lost after the put was done.
    """
    generator, conditional = random.Random(seed), [0]

    def rule(request: Request) -> Fault | None:
        if request.is_conditional:
            conditional[0] += 1
            if conditional[0] % 4 == 1:
                return Fault.LOST
        if generator.random() >= share:
            return None
        kinds = [Fault.UNAVAILABLE, Fault.INTERNAL, Fault.DROPPED, Fault.LOST, Fault.CUT]
        return generator.choice(kinds)

    return rule


class FaultyS3:
    """The running proxy: its address, its rule (which tests may change), and what it did."""

    def __init__(self, service: str) -> None:
        self.rule: Rule = no_faults
        self.counts: Counter[Fault | Refused | None] = Counter()
        self.lost_conditional = 0
        self.address = ""
        self._service = service.rstrip("/")
        self._session: ClientSession | None = None

    async def start(self) -> web.AppRunner:
        """Listen on a free port."""
        self._session = ClientSession(auto_decompress=False, connector=TCPConnector(limit=0))
        application = web.Application(client_max_size=1 << 31)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def stop(self, runner: web.AppRunner) -> None:
        """Close all connections."""
        await runner.cleanup()
        if self._session is not None:
            await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        conditional = "If-None-Match" in request.headers and request.method == "PUT"
        names = frozenset(name.lower() for name in request.headers)
        seen = Request(sum(self.counts.values()), request.method, request.path, conditional, names)
        fault = self.rule(seen)
        self.counts[fault] += 1
        if isinstance(fault, Refused):
            said = ERROR_XML.format(code=fault.code) if fault.code else "<html>an error</html>"
            # An answer to HEAD has no body, and so no code.
            return web.Response(status=fault.status, text="" if request.method == "HEAD" else said)
        if fault is Fault.UNAVAILABLE:
            return web.Response(status=503, text=ERROR_XML.format(code="SlowDown"))
        if fault is Fault.INTERNAL:
            return web.Response(status=500)
        if fault is Fault.SKEWED:
            return web.Response(status=403, text=ERROR_XML.format(code="RequestTimeTooSkewed"))
        if fault is Fault.DROPPED:
            return _hang_up(request)
        if fault is Fault.UNCONDITIONAL and request.method == "PUT":
            return await asyncio.to_thread(self._put_anyway, request, body)
        if fault is Fault.FLIPPED and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        return await self._forward(request, body, fault, conditional)

    def _put_anyway(self, request: web.Request, body: bytes) -> web.Response:
        """Put an object without its conditions; their signature is made anew."""
        bucket, _, key = unquote(request.path).lstrip("/").partition("/")
        prefix = "x-amz-meta-"
        metadata = {
            name.lower().removeprefix(prefix): value
            for name, value in request.headers.items()
            if name.lower().startswith(prefix)
        }
        client = botocore.session.get_session().create_client(
            "s3", endpoint_url=self._service, region_name="us-east-1"
        )
        answer = client.put_object(Bucket=bucket, Key=key, Body=body, Metadata=metadata)
        client.close()
        return web.Response(headers={"ETag": answer["ETag"]})

    async def _forward(
        self, request: web.Request, body: bytes, fault: Fault | None, conditional: bool
    ) -> web.StreamResponse:
        assert self._session is not None
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in NOT_FORWARDED
        }
        address = URL(f"{self._service}{request.raw_path}", encoded=True)
        async with self._session.request(
            request.method, address, data=io.BytesIO(body), headers=headers, allow_redirects=False
        ) as answer:
            content = await answer.read()
        if fault is Fault.LOST:
            self.lost_conditional += conditional and answer.status == 200
            return _hang_up(request)
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in NOT_FORWARDED
        }
        if request.method == "HEAD":
            return web.Response(status=answer.status, headers=kept)
        kept["Content-Length"] = str(len(content))
        response = web.StreamResponse(status=answer.status, headers=kept)
        await response.prepare(request)
        if fault is Fault.CUT and content:
            await response.write(content[: len(content) // 2])
            return _hang_up(request, response)
        await response.write(content)
        await response.write_eof()
        return response


def _hang_up(
    request: web.Request, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()


@contextmanager
def faulty_s3(service: str) -> Iterator[FaultyS3]:
    """Run a proxy in front of the service at this address, in a thread."""
    proxy, loop = FaultyS3(service), asyncio.new_event_loop()
    runner = loop.run_until_complete(proxy.start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy.stop(runner), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
