"""Schedules on a real server: what a person switches on runs, and stays as it was set."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.local import PREFECT_SETTINGS
from flows.server import free_port, serving
from flows.service_errors import ServiceErrors
from hvkf.processes import PARENT_VARIABLE
from tests.flows.postgres_server import postgres_server
from tests.k8s.flow_pods import ROOT

pytestmark = [pytest.mark.lengthy, pytest.mark.slow, pytest.mark.timeout(900)]

PLANNED_WITHIN_S = 120.0
# The server may look for new schedules when the coming minute has just begun.
STARTED_WITHIN_S = 240.0
NO_PLANNED_RUNS = (
    "CREATE TRIGGER none_planned BEFORE INSERT ON flow_run WHEN NEW.auto_scheduled "
    "BEGIN SELECT RAISE(ABORT, 'no run can be planned'); END"
)


class Server:
    """A server with all deployments, asked as its pages ask it."""

    def __init__(self, address: str, home: Path) -> None:
        self.address, self.home = address, home
        self.environment = {
            **os.environ,
            "PREFECT_API_URL": address,
            "HVKF_CONFIGS": str(home / "configs"),
            PARENT_VARIABLE: str(os.getpid()),
        }

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.address}/{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def deploy(self, *more: str) -> None:
        """Register everything, as each start of `make serve` and of the worker's pod does."""
        command = [sys.executable, "-m", "flows.deploy", "--pool", "local", *more]
        subprocess.run(command, env=self.environment, cwd=ROOT, check=True)

    def nightly(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("deployments/name/nightly/nightly")
        return found

    def change_schedule(self, **changes: Any) -> None:
        """Change the nightly schedule, as its page does."""
        deployment = self.nightly()
        (schedule,) = deployment["schedules"]
        path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
        self.ask(path, changes, "PATCH")

    def runs(self) -> list[dict[str, Any]]:
        """List the runs of the nightly deployment."""
        wanted = {"deployments": {"id": {"any_": [self.nightly()["id"]]}}}
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", wanted)
        return found

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Run a worker of the pool."""
        with (self.home / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "flows.worker", "local"],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield
        finally:
            worker.terminate()
            worker.wait(60)


@contextmanager
def server_on(home: Path, database: str) -> Iterator[Server]:
    with ExitStack() as stack:
        settings = {**PREFECT_SETTINGS, "PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_HOME": str(home)}
        if database == "postgresql":
            address = stack.enter_context(postgres_server())
            settings["PREFECT_API_DATABASE_CONNECTION_URL"] = address
        yield Server(stack.enter_context(serving(home, free_port(), settings)), home)


@contextmanager
def chat() -> Iterator[tuple[str, list[str]]]:
    """Run what a chat's webhook is; yield its address, and the texts that are posted to it."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            texts.append(json.loads(content)["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/", texts
    finally:
        server.shutdown()
        server.server_close()


def wait_for(what: str, look: Callable[[], Any], within_s: float) -> Any:
    deadline_s = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s:.0f} s"
        time.sleep(1.0)
    return found


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_schedule_that_is_switched_on_plans_runs_and_one_that_is_due_starts(
    tmp_path: Path, database: str
) -> None:
    with server_on(tmp_path, database) as server, chat() as (address, posted):
        server.environment["HVKF_FAILED_NIGHT_WEBHOOK"] = address
        server.deploy()
        (schedule,) = server.nightly()["schedules"]
        assert not schedule["active"], "a night begins only when somebody wants it"
        server.change_schedule(active=True)
        planned = wait_for("three planned runs", lambda: server.runs()[2:], PLANNED_WITHIN_S)
        assert planned[0]["state"]["type"] == "SCHEDULED"

        server.change_schedule(schedule={"cron": "* * * * *", "timezone": "Etc/UTC"})
        with server.worker():
            started = wait_for(
                "a run that was due",
                lambda: [run for run in server.runs() if run["state"]["type"] == "FAILED"],
                STARTED_WITHIN_S,
            )
            # It ran the flow's own code, which finds no settings here: the message is the reason.
            assert started[0]["state"]["message"].startswith("No settings 'default' are deployed")
            server.change_schedule(active=False)
            # By hand: the first event of a planned run is never sent, and Prefect's rules wait a
            # quarter of an hour for it before they take those that follow.
            body = {"state": {"type": "SCHEDULED"}}
            server.ask(f"deployments/{server.nightly()['id']}/create_flow_run", body)
            (text, *_) = wait_for("a word of the failed night", lambda: list(posted), 240)
        assert ": Failed: No settings 'default' are deployed" in text


def test_deploying_again_leaves_everything_as_people_set_it(tmp_path: Path) -> None:
    with server_on(tmp_path, "sqlite") as server:
        template = ["--template", str(ROOT / "k8s" / "base" / "pool.json")]
        server.environment |= {"HVKF_FLOW_IMAGE": "hvkf-flow:1", "HVKF_NAMESPACE": "hvkf"}
        server.deploy(*template)
        tokyo = {"cron": "30 3 * * 1-5", "timezone": "Asia/Tokyo"}
        server.change_schedule(active=True, schedule=tokyo)
        paused = server.ask("deployments/name/render/render")
        server.ask(f"deployments/{paused['id']}", {"paused": True}, "PATCH")
        server.ask("work_pools/local", {"is_paused": True, "concurrency_limit": 3}, "PATCH")
        (rule,) = server.ask("automations/filter", {})
        server.ask(f"automations/{rule['id']}", {"enabled": False}, "PATCH")

        server.environment["HVKF_FLOW_IMAGE"] = "hvkf-flow:2"
        server.deploy(*template)

        (schedule,) = server.nightly()["schedules"]
        assert schedule["active"]
        assert tokyo.items() <= schedule["schedule"].items()
        assert not server.nightly()["paused"]
        assert server.ask("deployments/name/render/render")["paused"]
        pool = server.ask("work_pools/local")
        assert (pool["is_paused"], pool["concurrency_limit"]) == (True, 3)
        assert "hvkf-flow:2" in json.dumps(pool["base_job_template"]), "the image is deployed"
        (rule,) = server.ask("automations/filter", {})
        assert not rule["enabled"]


def test_a_server_whose_services_fail_says_so(tmp_path: Path) -> None:
    with server_on(tmp_path, "sqlite") as server:
        server.deploy()
        with closing(sqlite3.connect(tmp_path / "prefect.db", timeout=60)) as database:
            database.execute(NO_PLANNED_RUNS)
            database.commit()
        server.change_schedule(active=True)
        errors = ServiceErrors(tmp_path / "server.log")
        told: list[str] = wait_for("a sentence in the terminal", errors.new, 300)
        assert len(told) == 1
        assert "no run can be planned" in told[0]
        assert "schedule" in told[0]
        assert str(tmp_path / "server.log") in told[0]
        examined = subprocess.run(
            [
                *(sys.executable, "-c"),
                "from flows.server_check import examine_server, timedelta\n"
                "print('\\n'.join(examine_server(timedelta(0))))",
            ],
            env=server.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        (line,) = [line for line in examined if "nightly" in line]
        assert line.startswith("lacks   a planned run of nightly, whose schedule is on")
        (line,) = [line for line in examined if "worker" in line]
        assert line.startswith("lacks   a worker of the pool local")
