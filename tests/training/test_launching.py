"""Training started as users start it: by the launcher of hvkf, and by `accelerate launch`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.distributed import launch_command
from hvkf.stages import train as train_stage
from hvkf.storage import FolderStore, open_store
from tests.training.latents import run_training, train_config, write_latents
from tests.training.trainings import (
    PAIRS,
    SHARED,
    assert_same_training,
    prepare,
    run_bytes,
)

ROOT = Path(__file__).parents[2]
WAIT_S = 200.0
# What the reference ships for eight GPUs; here with two processes, of which none has one.
REFERENCE_LAUNCH = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_GPU
downcast_bf16: "no"
enable_cpu_affinity: false
gpu_ids: all
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 8
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""


def planned(folder: Path, **sections: dict[str, object]) -> tuple[FolderStore, list[str]]:
    """Prepare a workspace; return it and the words after `python -m` that train in it."""
    config, store = prepare(folder, **sections)
    open_store(str(folder))
    plan = train_stage.plan(config, store)
    ledger.put_plan(store, plan)
    return store, [
        *("hvkf.cli", "train", "run", "--workspace", str(folder), "--plan", plan.digest),
    ]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """A run of one process with batches of two."""
    config, store = prepare(tmp_path_factory.mktemp("alone"), **PAIRS)
    run_training(config, store)
    return store


@pytest.mark.slow
def test_the_launcher_trains_in_two_processes(alone: FolderStore, tmp_path: Path) -> None:
    store, words = planned(tmp_path, **SHARED)
    assert start(launch_command(words, num_processes=2)).wait(WAIT_S) == 0
    assert_same_training(store, alone)


@pytest.mark.slow
def test_accelerate_launch_with_the_references_file_trains_in_two_processes(
    alone: FolderStore, tmp_path: Path
) -> None:
    (tmp_path / "launch.yaml").write_text(REFERENCE_LAUNCH)
    store, words = planned(tmp_path / "workspace", **SHARED)
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    options = ["--config_file", str(tmp_path / "launch.yaml"), "--num_processes", "2", "-m"]
    assert start([*launcher, *options, *words]).wait(WAIT_S) == 0
    assert_same_training(store, alone)


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_ends_with_143_and_the_run_goes_on(
    tmp_path: Path,
) -> None:
    many = {**SHARED, "hparams": {**SHARED["hparams"], "max_train_steps": 100}}
    many["checkpointing"] = {"save_every_n_steps": 10, "save_last_n_steps": 0}
    store, words = planned(tmp_path, **many)
    process = start(launch_command(words, num_processes=2))
    until = time.monotonic() + WAIT_S
    while not any("commit.json" in path for path in store.list("runs")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 143
    assert not store.exists("runs/test/result.json")
    assert start(launch_command(words, num_processes=2)).wait(WAIT_S) == 0
    assert {path.split("/")[2] for path in run_bytes(store) if "step-" in path} == {"step-00000100"}


def test_ranks_that_a_launcher_started_plan_and_commit_by_themselves(tmp_path: Path) -> None:
    config = train_config(tmp_path)
    store = FolderStore(tmp_path)
    write_latents(store, config)
    first, again = (train_stage.run_as_rank(config, store) for _ in range(2))
    assert (first.reused, again.reused) == (False, True)
    assert again.figures == first.figures
    assert store.exists(first.links["lora"])
