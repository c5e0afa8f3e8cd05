"""Requests that are done again while the server cannot."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows import retrying
from flows.retrying import Retrying
from flows.server import SERVER_SETTINGS, free_port, serving

NUM_CLIENTS, NUM_RUNS_EACH = 4, 15
PARTS = (b"first ", b"second")


class Unsteady:
    """Answers 503 so many times, as Prefect does: then it raises what it answered for."""

    def __init__(self, num_refusals: int, status: int = 503) -> None:
        self._num_refusals = num_refusals
        self._status = status
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert "path_params" not in scope
        scope["path_params"] = {}  # routing writes into it
        self.bodies.append((await receive())["body"])
        is_refused = len(self.bodies) <= self._num_refusals
        status, body = (self._status, b"no") if is_refused else (201, b"done")
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})
        if is_refused:
            raise OSError("locked")


def ask_app(app: ASGIApp) -> list[Message]:
    """Send one request in two parts; return what is answered."""
    waiting: list[Message] = [
        {"type": "http.request", "body": PARTS[0], "more_body": True},
        {"type": "http.request", "body": PARTS[1]},
        {"type": "http.disconnect"},
    ]
    answers: list[Message] = []

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(Retrying(app)({"type": "http"}, receive, send))
    return answers


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "PAUSE_S", 0.001)
    monkeypatch.setattr(retrying, "LONGEST_PAUSE_S", 0.002)


def test_a_request_is_repeated_with_its_whole_body_and_only_the_last_answer_is_sent() -> None:
    app = Unsteady(3)
    answers = ask_app(app)
    assert app.bodies == [b"first second"] * 4
    assert [answers[0]["status"], answers[1]["body"]] == [201, b"done"]
    assert len(answers) == 2


def test_another_fault_is_raised_at_once_behind_its_answer() -> None:
    app = Unsteady(1, status=500)
    with pytest.raises(OSError, match="locked"):
        ask_app(app)
    assert len(app.bodies) == 1


def test_a_server_that_stays_unavailable_says_so_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrying, "TRY_FOR_S", 0.05)
    app = Unsteady(1_000_000)
    with pytest.raises(OSError, match="locked"):
        ask_app(app)
    assert len(app.bodies) > 2


def test_what_is_no_request_goes_through() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    for kind in ("lifespan", "websocket"):
        scope: Scope = {"type": kind}
        asyncio.run(Retrying(app)(scope, receive, send))
        assert seen.pop() == (scope, receive, send)


def test_runs_that_are_submitted_together_are_all_made_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with serving(tmp_path, free_port(), SERVER_SETTINGS) as address:

        def ask(path: str, body: dict[str, Any]) -> Any:
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(
                f"{address}/{path}", json.dumps(body).encode(), headers
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        flow = ask("flows/", {"name": "flow"})["id"]
        deployment = ask("deployments/", {"name": "deployment", "flow_id": flow})["id"]
        answers: Counter[int] = Counter()

        def submit_runs() -> None:
            """Submit as a page does, which does not ask twice."""
            for _ in range(NUM_RUNS_EACH):
                try:
                    ask(f"deployments/{deployment}/create_flow_run", {})
                    answers[201] += 1
                except urllib.error.HTTPError as fault:
                    answers[fault.code] += 1
                    fault.close()

        clients = [threading.Thread(target=submit_runs) for _ in range(NUM_CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert answers == {201: NUM_CLIENTS * NUM_RUNS_EACH}
        assert ask("flow_runs/count", {}) == NUM_CLIENTS * NUM_RUNS_EACH
