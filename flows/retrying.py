"""Requests that Prefect's server refuses for a moment, done again by the server itself.

On SQLite a request that reads before it writes is refused (503) when another one wrote meanwhile.
Prefect's clients ask again; its pages do not: a form would end with "Oops. Something went wrong".
"""

import asyncio
import random
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.asgi import replayed, whole_request

UNAVAILABLE = 503
TRY_FOR_S = 30.0
PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0


class Retrying:
    """An ASGI application that asks another again while that answers 503, up to half a minute.

    Prefect means a 503 to be asked again: its transaction was rolled back.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; what is no request goes through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first, pause_s = await whole_request(receive), PAUSE_S
        deadline_s = time.monotonic() + TRY_FOR_S
        while time.monotonic() < deadline_s:
            if await self._answered(scope, replayed(first, receive), send):
                return
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        await self._app(dict(scope), replayed(first, receive), send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Ask once; whether the answer was sent on, for it was not 503."""
        is_unavailable = False

        async def send_on(message: Message) -> None:
            nonlocal is_unavailable
            if message["type"] == "http.response.start":
                is_unavailable = message["status"] == UNAVAILABLE
            if not is_unavailable:
                await send(message)

        try:
            await self._app(dict(scope), receive, send_on)
        except Exception:
            # The fault behind a 503 is raised once more when that is answered.
            if not is_unavailable:
                raise
        return not is_unavailable
