"""What a running flow survives, and what a person sees when it does not."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.house import House, serving_house, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

AWAY_S = 60.0
CRASHED_WITHIN_S = 120.0
LONG_STEPS = 100_000


def train_for_long(house: House, run_id: str) -> str:
    """Start a training that will not end by itself, and wait until it shows progress."""
    for stage in ("ingest", "cache", "encode"):
        house.wait(house.start(f"{stage}/{stage}", settings="seldom-saved"), "Completed")
    run = house.start(
        "train/train", settings="seldom-saved", run_id=run_id, max_train_steps=LONG_STEPS
    )
    wait_until(lambda: " steps" in house.progress(run), "no progress was shown", 300)
    return run


def test_a_flow_whose_process_and_worker_were_killed_is_crashed_and_its_job_is_gone(
    tmp_path: Path,
) -> None:
    with serving_house(tmp_path) as house:
        run = train_for_long(house, "killed")
        trainers = house.processes("hvkf.cli", "train")
        workers, flows = house.processes("flows.worker"), house.processes("prefect.engine")
        assert trainers
        assert len(workers) == len(flows) == 1
        for process in (*workers, *flows):
            process.kill()
        killed_s = time.monotonic()
        log = tmp_path / "serve.log"
        wait_until(lambda: "The worker ended" in log.read_text(), "nobody noticed", 20)
        house.wait(run, "Crashed", within_s=CRASHED_WITHIN_S)
        assert time.monotonic() - killed_s < CRASHED_WITHIN_S
        message = house.ask(f"flow_runs/{run}")["state"]["message"]
        assert "was not heard for 90 s" in message
        assert "Retry the run" in message
        psutil.wait_procs(trainers, timeout=30)
        assert not [process for process in trainers if process.is_running()]


def test_a_server_that_is_away_for_a_minute_ends_no_run(tmp_path: Path) -> None:
    with serving_house(tmp_path) as house:
        for stage in ("ingest", "cache", "encode"):
            house.wait(house.start(f"{stage}/{stage}", settings="seldom-saved"), "Completed")
        run = house.start(
            "train/train", settings="seldom-saved", run_id="away", max_train_steps=600
        )
        wait_until(lambda: " steps" in house.progress(run), "no progress was shown", 300)
        (server,) = house.processes("flows.server")
        server.send_signal(signal.SIGSTOP)
        time.sleep(AWAY_S)
        server.send_signal(signal.SIGCONT)
        house.wait(run, "Completed", within_s=600)
        assert (house.folder / "workspace" / "runs" / "away" / "result.json").exists()
