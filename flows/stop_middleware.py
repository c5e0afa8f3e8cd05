"""What a run that was cancelled says of itself stays: what it saved, and how to go on.

A flow ends its cancelled run with these words. Then Prefect's worker, which has waited for the
process, sets the same state once more with a sentence of its own that says nothing of them.
"""

import json
import re

from starlette.types import ASGIApp, Receive, Scope, Send

from flows.asgi import ask, look_up, mapping, read_mapping, whole_request

SETS_STATE = re.compile(r"(/api/flow_runs/[0-9a-fA-F-]{36})/set_state")
CANCELLED = "CANCELLED"
PREFECTS_WORDS = "Flow run was cancelled successfully."


class OwnLastWords:
    """An ASGI application that lets a cancelled run keep the message it ended with."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        sets = SETS_STATE.fullmatch(scope.get("path", "")) if scope["type"] == "http" else None
        if sets is None:
            await self._app(scope, receive, send)
            return
        asked = await whole_request(receive)
        given = read_mapping(asked.get("body", b""))
        state = mapping(given.get("state"))
        if (state.get("type"), state.get("message")) == (CANCELLED, PREFECTS_WORDS):
            before = mapping((await look_up(self._app, scope, sets[1], receive)).get("state"))
            if before.get("type") == CANCELLED and before.get("message"):
                kept = {**given, "state": {**state, "message": before["message"]}}
                asked = {**asked, "body": json.dumps(kept).encode()}
        await (await ask(self._app, scope, asked, receive)).send_on(send)
