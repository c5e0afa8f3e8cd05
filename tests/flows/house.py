"""Server, worker and deployments as `make serve` starts them, asked as a person would."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from playwright.sync_api import Page, expect

from flows.server import free_port
from hvkf.config import Config
from hvkf.media.writing import write_png
from hvkf.video import decode_frames
from tests.workspaces import small_config, write_dataset

START_S = 240.0
RUN_S = 300.0
SUBMIT_S = 60.0
"""The server checks a form before it takes it, and its first check is slow."""


class House:
    """Server, worker and deployments as `make serve` starts them, on a small data set."""

    def __init__(self, folder: Path, address: str, process: int) -> None:
        self.folder, self.address, self.process = folder, address, process

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/api/{path}", data, self.headers())
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def password(self) -> str:
        """Read the password that `make serve` made."""
        return (self.folder / "prefect" / "password").read_text()

    def headers(self) -> dict[str, str]:
        """Write the headers of a request in JSON that knows the password."""
        token = base64.b64encode(self.password().encode()).decode()
        return {"Content-Type": "application/json", "Authorization": f"Basic {token}"}

    def sign_in(self, page: Page) -> None:
        """Type the password into the page that asks for it."""
        page.goto(self.address)
        page.get_by_role("textbox").fill(self.password())
        page.get_by_role("button", name="Login").click()
        expect(page.get_by_role("link", name="Deployments").first).to_be_visible(timeout=20_000)

    def form(self, page: Page, flow: str, deployment: str) -> None:
        """Open a deployment's form."""
        found = self.ask(f"deployments/name/{flow}/{deployment}")
        page.goto(f"{self.address}/deployments/deployment/{found['id']}/run")
        expect(page.get_by_text("Deployed settings (Optional)")).to_be_visible(timeout=20_000)

    def start(self, deployment: str, **request: Any) -> str:
        """Run a deployment without its form; return the run's id."""
        found = self.ask(f"deployments/name/{deployment}")
        given = {"parameters": {"request": request}, "state": {"type": "SCHEDULED"}}
        run: str = self.ask(f"deployments/{found['id']}/create_flow_run", given)["id"]
        return run

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes below `make serve` whose command has all these words."""
        found = []
        for process in psutil.Process(self.process).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                if all(word in command for word in words):
                    found.append(process)
        return found

    def runs(self) -> set[str]:
        """List the ids of all runs."""
        return {run["id"] for run in self.ask("flow_runs/filter", {"limit": 200})}

    def submit(self, page: Page) -> str:
        """Submit the form that is open, and go to the new run's page; return its id."""
        before, deadline_s = self.runs(), time.monotonic() + SUBMIT_S
        page.get_by_role("button", name="Submit").click()
        while not (new := self.runs() - before):
            if time.monotonic() > deadline_s:
                page.screenshot(path=self.folder / "not-submitted.png")
                pytest.fail(f"the form was not submitted: see {self.folder}/not-submitted.png")
            time.sleep(0.2)
        (run,) = new
        page.goto(f"{self.address}/runs/flow-run/{run}")
        return run

    def wait(self, run: str, *names: str, within_s: float = RUN_S) -> dict[str, Any]:
        """Wait until a run is in one of the states."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            state: dict[str, Any] = self.ask(f"flow_runs/{run}")["state"]
            if state["name"] in names:
                return state
            time.sleep(0.5)
        pytest.fail(f"the run is {state['name']} ({state['message']}), not {names}")

    def wait_while_it_proceeds(self, run: str, name: str, still_s: float = 120.0) -> None:
        """Wait until a run is in a state, for as long as its progress goes on."""
        shown, seen_s = "", time.monotonic()
        while (state := self.state(run)) != name:
            if (now := self.progress(run).partition(",")[0]) != shown:
                shown, seen_s = now, time.monotonic()
            assert time.monotonic() - seen_s < still_s, f"the run is {state}, at {shown}"
            time.sleep(0.5)

    def state(self, run: str) -> str:
        """The name of the state that a run is in."""
        name: str = self.ask(f"flow_runs/{run}")["state"]["name"]
        return name

    def states(self, run: str, name: str) -> list[str]:
        """The messages of all states of this name that a run was in."""
        found = self.ask(f"flow_run_states/?flow_run_id={run}")
        return [str(state["message"]) for state in found if state["name"] == name]

    def progress(self, run: str) -> str:
        """What the run's newest progress artifact says; empty while there is none."""
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "sort": "UPDATED_DESC"}
        found = self.ask("artifacts/filter", wanted)
        said = [entry["description"] for entry in found if entry["key"].endswith("-progress")]
        return str(said[0] or "") if said else ""

    def artifact(self, run: str, key: str) -> str:
        """The address of the newest artifact of a run with this key."""
        wanted = {"flow_runs": {"id": {"any_": [run]}}, "artifacts": {"key": {"any_": [key]}}}
        found = self.ask("artifacts/filter", {**wanted, "sort": "CREATED_DESC"})
        return f"{self.address}/artifacts/artifact/{found[0]['id']}"

    def logs(self, run: str) -> list[str]:
        """What the run's workers said, the newest first."""
        chosen = {"logs": {"flow_run_id": {"any_": [run]}}}
        wanted = {**chosen, "sort": "TIMESTAMP_DESC", "limit": 200}
        return [entry["message"] for entry in self.ask("logs/filter", wanted)]

    def manifest(self) -> Path:
        """A table of one pair, two frames of a clip."""
        (clip, *_) = sorted((self.folder / "data" / "videos").iterdir())
        for position, frame in decode_frames(clip, [0, 4]):
            write_png(self.folder / f"{position}.png", frame)
        table = self.folder / "manifest.csv"
        table.write_text("id,first_frame,last_frame,prompt\none,0.png,4.png,a square moves\n")
        return table

    def pasted_rows(self) -> str:
        """Rows of one pair whose frames lie in the workspace, as a person pastes them."""
        images = self.folder / "workspace" / "images"
        images.mkdir(exist_ok=True)
        (clip, *_) = sorted((self.folder / "data" / "videos").iterdir())
        for position, frame in decode_frames(clip, [0, 4]):
            write_png(images / f"{position}.png", frame)
        return (
            "id,first_frame,last_frame,prompt,seed\n"
            "pasted,workspace:images/0.png,workspace:images/4.png,a square moves,7\n"
        )


def wait_until(is_so: Callable[[], bool], complaint: str, within_s: float) -> None:
    """Ask again and again."""
    deadline_s = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline_s, complaint
        time.sleep(0.3)


@contextmanager
def serving_house(folder: Path) -> Iterator[House]:
    """Start everything on a small data set, and end it as Ctrl-C does."""
    config = small_config(folder, write_dataset(folder / "data", 3))
    environment = {key: value for key, value in os.environ.items() if "PREFECT" not in key}
    with serving(folder, config, sys.executable, environment) as house:
        yield house


@contextmanager
def serving(
    folder: Path, config: Config, python: str, environment: dict[str, str]
) -> Iterator[House]:
    """Start everything with settings of a test's own; with another interpreter's packages."""
    (folder / "configs").mkdir()
    for name in ("default", "tiny", "seldom-saved"):
        values = json.loads(config.model_dump_json(exclude_unset=True))
        if name == "seldom-saved":
            values["checkpointing"]["save_every_n_steps"] = 500
        (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(values))
    port = free_port()
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [python, "-m", "flows.serve", str(folder), "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
    try:
        deadline_s = time.monotonic() + START_S
        while "Prefect's UI" not in (folder / "serve.log").read_text():
            assert process.poll() is None, (folder / "serve.log").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.5)
        yield House(folder, f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
