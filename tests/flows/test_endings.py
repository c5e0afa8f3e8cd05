"""How runs end: in words, with the errors' table, with what is saved, and without tracebacks."""

import base64
import csv
import json
import logging
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.exceptions import CancelledRun, FailedRun

from flows.endings import RUN_LOGGER, told
from flows.server import (
    CLIENT_PASSWORD,
    SERVER_PASSWORD,
    free_port,
    new_password,
    serving,
)
from flows.stage import what_is_saved
from flows.stop_middleware import PREFECTS_WORDS
from hvkf.records import Part, Plan
from hvkf.storage import FolderStore
from tests.workspaces import TINY

SAVED = "Run r is saved at step-00000002."
STOPPED = f"Stopped. {SAVED} Retried, or run again, it goes on from there."
# A chain whose stage works until it is told to stop; a person's cancel where `cancel` is given.
CHAIN = f"""
import sys, time
from prefect import flow
from flows import endings, pipeline
from hvkf.config import Config
if sys.argv[1] == "cancel":
    endings.get_intent = lambda: "cancel"

def run_stage(*_):
    with endings.stop_told(lambda: {SAVED!r}):
        print("ready", flush=True)
        time.sleep(100)

pipeline.run_stage = run_stage
ran = []

@flow(name="chain", persist_result=False)
def chain():
    return endings.told(
        "pipeline", lambda: pipeline.run_below("train", Config(), on_end=ran.append)
    )

chain(return_state=True)
print(ran[0].ended, ran[0].error)
"""
RENDER = """
import sys
from flows.render import render
render({"manifest": sys.argv[1]}, return_state=True)
"""


class Server:
    """Prefect's server as ours runs it."""

    def __init__(self, address: str, password: str) -> None:
        self.address, self.password = address, password

    def ask(self, path: str, body: object = None) -> Any:
        token = base64.b64encode(self.password.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def start(self, program: str, argument: str, **variables: str) -> "subprocess.Popen[str]":
        known = {"PREFECT_API_URL": self.address, CLIENT_PASSWORD: self.password}
        return subprocess.Popen(
            [sys.executable, "-c", program, argument],
            env={**os.environ, **known, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PREFECT_HOME", str(home))
        password = new_password()
        with serving(home, free_port(), {SERVER_PASSWORD: password}) as address:
            yield Server(address, password)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("how", "kind"), [("cancel", "CANCELLED"), ("machine", "CRASHED")])
def test_a_run_that_is_stopped_says_what_is_saved_and_so_does_its_chain(
    server: Server, how: str, kind: str
) -> None:
    before = {run["id"] for run in server.ask("flow_runs/filter", {})}
    process = server.start(CHAIN, how)
    assert process.stdout is not None
    said = ""
    while "ready" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=100)[0]
    assert f"stopped {STOPPED}" in said
    for word in ("Crash detected", "Traceback", "Running()"):
        assert word not in said
    runs = [run for run in server.ask("flow_runs/filter", {}) if run["id"] not in before]
    states = [(run["state"]["type"], run["state"]["message"]) for run in runs]
    assert states == [(kind, STOPPED)] * 2, "the chain's and the stage's"


def test_a_cancelled_run_keeps_its_words_when_prefects_worker_sets_its_own(server: Server) -> None:
    flow = server.ask("flows/", {"name": "kept"})

    def ended(words: list[str]) -> str:
        run = server.ask("flow_runs/", {"flow_id": flow["id"], "state": {"type": "RUNNING"}})
        path = f"flow_runs/{run['id']}"
        for message in words:
            state = {"type": "CANCELLED", "name": "Cancelled", "message": message}
            server.ask(f"{path}/set_state", {"state": state, "force": True})
        kept: str = server.ask(path)["state"]["message"]
        return kept

    assert ended([STOPPED, PREFECTS_WORDS]) == STOPPED
    assert ended([PREFECTS_WORDS]) == PREFECTS_WORDS, "a run that could say nothing"
    assert ended([STOPPED, "By hand."]) == "By hand."


def test_all_errors_of_a_manifest_are_a_table_in_the_run_and_a_csv_beside_it(
    server: Server, tmp_path: Path
) -> None:
    manifest = tmp_path / "pairs.csv"
    manifest.write_text("id,first_frame,last_frame,prompt,seed\none,../a.png,b.png,,-4\n")
    (tmp_path / "configs").mkdir()
    settings = {
        "workspace": str(tmp_path / "workspace"),
        "model": {"pretrained_model_name_or_path": str(TINY)},
        "render": {"lora": "none", "width": 32, "height": 32, "num_frames": 5},
    }
    (tmp_path / "configs" / "default.yaml").write_text(yaml.safe_dump(settings))
    process = server.start(RENDER, str(manifest), HVKF_CONFIGS=str(tmp_path / "configs"))
    said = process.communicate(timeout=200)[0]
    assert "Traceback" not in said
    (table,) = server.ask("artifacts/filter", {"artifacts": {"key": {"any_": ["render-errors"]}}})
    run = server.ask(f"flow_runs/{table['flow_run_id']}")
    assert run["state"]["name"] == "Failed"
    assert "cannot be rendered; 4 errors in 1 row: row 1: " in run["state"]["message"]
    head, line, *rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in table["data"].splitlines()
    ]
    assert head == ["row", "id", "field", "value", "what to do"]
    assert set("".join(line)) == {"-"}, "Markdown's sign of a table"
    assert sorted(row[:3] for row in rows) == [
        ["1", "one", field] for field in ("first_frame", "last_frame", "prompt", "seed")
    ]
    with (tmp_path / "pairs.csv.errors.csv").open(encoding="utf-8-sig") as file:
        assert [row[:3] for row in csv.reader(file)] == [head[:3], *(row[:3] for row in rows)]


def plan_of(stage: str, **inputs: object) -> Plan:
    parts = tuple(Part(index=i, outputs=(f"renders/{i}",), work={}) for i in range(3))
    return Plan(stage=stage, digest="d", config={}, inputs=inputs, parts=parts)


def test_what_is_saved_is_the_last_checkpoint_or_the_parts_that_are_done(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    train = plan_of("train", run={"run_id": "kf-7"})
    assert what_is_saved(train, store) == "Run kf-7 has no checkpoint yet."
    store.put("runs/kf-7/step-00000002/commit.json", b"{}")
    store.put("runs/kf-7/step-00000004/weights.safetensors", b"cut off")
    assert what_is_saved(train, store) == "Run kf-7 is saved at step-00000002."
    render = plan_of("render")
    assert what_is_saved(render, store) == "0 of 3 parts are done."
    store.put("renders/1", b"{}")
    assert what_is_saved(render, store) == "1 of 3 parts are done."


@pytest.mark.parametrize(
    ("error", "is_logged"),
    [(FailedRun("told"), False), (CancelledRun("told"), False), (ZeroDivisionError("?"), True)],
)
def test_only_endings_in_words_are_without_a_traceback(error: Exception, is_logged: bool) -> None:
    assert told("train", lambda: 5) == 5
    record = logging.makeLogRecord({"exc_info": (type(error), error, None)})
    assert bool(logging.getLogger(RUN_LOGGER).filter(record)) is is_logged
