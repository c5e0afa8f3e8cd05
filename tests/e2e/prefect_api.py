"""Prefect's API, asked as its pages ask it."""

import json
import urllib.request
from base64 import b64encode
from typing import Any, NamedTuple

from tests.e2e.waiting import wait_for

ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
RUN_S = 1800.0


class PrefectApi(NamedTuple):
    """The API at an address that ends in /api, and the password of one that has one."""

    address: str
    password: str = ""

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Send a request, and return what the answer holds."""
        headers = {"Content-Type": "application/json"}
        if self.password:
            headers["Authorization"] = f"Basic {b64encode(self.password.encode()).decode()}"
        request = urllib.request.Request(
            f"{self.address}/{path}",
            None if body is None else json.dumps(body).encode(),
            headers,
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def start(self, deployment: str, **fields: Any) -> str:
        """Submit a deployment's form; return the run's id."""
        found = self.ask(f"deployments/name/{deployment}")
        given = {"parameters": {"request": fields}, "state": {"type": "SCHEDULED"}}
        run: str = self.ask(f"deployments/{found['id']}/create_flow_run", given)["id"]
        return run

    def state(self, run: str) -> dict[str, Any]:
        """Return the state that a run is in."""
        found: dict[str, Any] = self.ask(f"flow_runs/{run}")["state"]
        return found

    def cancel(self, run: str) -> None:
        """Press *Cancel*."""
        state = {"type": "CANCELLING", "name": "Cancelling"}
        self.ask(f"flow_runs/{run}/set_state", {"state": state, "force": True})

    def retry(self, run: str) -> None:
        """Press *Retry*."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
        answer = self.ask(f"flow_runs/{run}/set_state", {"state": state, "force": False})
        assert answer["status"] == "ACCEPT", answer

    def wait(self, run: str, kind: str, limit_s: float = RUN_S) -> dict[str, Any]:
        """Wait until a run is in a state of a kind; fail when it ends in another."""

        def look() -> dict[str, Any] | None:
            state = self.state(run)
            assert state["type"] not in ENDS or state["type"] == kind, self.told(run)
            return state if state["type"] == kind else None

        found: dict[str, Any] = wait_for(f"{kind} of run {run}", look, limit_s)
        return found

    def told(self, run: str) -> str:
        """Return the state and the newest lines of a run and of the runs below it."""
        state = self.state(run)
        wanted = {"logs": {"flow_run_id": {"any_": [run, *self.below(run)]}}}
        logs = self.ask("logs/filter", {**wanted, "sort": "TIMESTAMP_DESC", "limit": 40})
        lines = [entry["message"] for entry in reversed(logs)]
        return "\n".join([f"{state['name']}: {state['message']}", *lines])

    def below(self, run: str) -> list[str]:
        """List the runs that a run has started."""
        wanted = {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}
        return [found["id"] for found in self.ask("flow_runs/filter", wanted)]

    def artifacts(self, run: str) -> set[str]:
        """List the keys of the artifacts of a run and of the runs below it."""
        wanted = {"flow_runs": {"id": {"any_": [run, *self.below(run)]}}}
        return {found["key"] for found in self.ask("artifacts/filter", wanted)}
