"""kill -9 at any moment, the same command again, and the bytes of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# What the workers load, loaded once here: each drill forks a child.
import hvkf.stages.cache_group
import hvkf.stages.encode_segments  # noqa: F401
from hvkf import ledger
from hvkf.cli import stage_module
from hvkf.config import Config
from hvkf.storage import FolderStore
from tests.drills.killing import (
    PHASES,
    DyingStore,
    Moment,
    run_and_count,
    run_and_kill,
    stored_bytes,
)
from tests.workspaces import small_config, write_dataset

NUM_MOMENTS = 12
KILL_DELAYS_S = [random.Random("delays").uniform(4.0, 14.0) for _ in range(3)]
KINDS = {"ingest": ("datasets",), "cache": ("scenes",), "encode": ("latents",), "train": ("runs",)}


def stage_work(stage: str, config: Config) -> Callable[[FolderStore], None]:
    """What the stage's command does, in one process: plan, all parts, commit."""

    def work(store: FolderStore) -> None:
        module = stage_module(stage)
        plan = module.plan(config, store)
        if plan.committed is None:
            ledger.put_plan(store, plan)
            module.run(plan, store, ledger.pending_parts(store, plan))
        module.commit(plan, store)

    return work


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A workspace as it is before each stage."""
    folder = tmp_path_factory.mktemp("drill")
    metadata = write_dataset(folder / "data", 4)
    config = small_config(folder, metadata)
    root = folder / "workspace"
    states = {}
    for stage, following in zip(KINDS, [*list(KINDS)[1:], None], strict=True):
        states[stage] = folder / f"before-{stage}"
        if root.exists():
            shutil.copytree(root, states[stage])
        else:
            states[stage].mkdir()
        if following is not None:
            run_and_count(root, stage_work(stage, config))
    return states


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", KINDS)
def test_a_stage_killed_at_any_moment_ends_with_the_same_bytes(
    stage: str, prepared: dict[str, Path], tmp_path: Path
) -> None:
    metadata = prepared[stage].parent / "data" / "metadata.csv"
    config = small_config(tmp_path, metadata)
    work: Callable[[DyingStore], None] = stage_work(stage, config)
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(prepared[stage], undisturbed)
    num_writes = run_and_count(undisturbed, work)
    expected = stored_bytes(undisturbed, KINDS[stage])
    assert expected
    moments = [Moment(write, phase) for write in range(num_writes) for phase in PHASES]
    chosen = random.Random(stage).sample(moments, min(NUM_MOMENTS, len(moments)))
    for moment in chosen:
        root = tmp_path / f"{moment.write}-{moment.phase}"
        shutil.copytree(prepared[stage], root)
        run_and_kill(root, moment, work)
        run_and_count(root, work)
        assert stored_bytes(root, KINDS[stage]) == expected, moment
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_command_killed_with_all_its_processes_ends_with_the_same_bytes(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    """The real command with two workers, killed at seeded seconds after it began."""
    metadata = prepared["encode"].parent / "data" / "metadata.csv"
    found = []
    for name, delays_s in (("undisturbed", []), ("killed", KILL_DELAYS_S)):
        config = small_config(tmp_path / name, metadata, jobs={"encode": {"workers": 2}})
        shutil.copytree(prepared["encode"], config.workspace)
        file = tmp_path / name / "config.yaml"
        file.write_text(config.model_dump_json())
        command = [sys.executable, "-m", "hvkf.cli", "encode", "--config", str(file)]
        for delay_s in delays_s:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            time.sleep(delay_s)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found.append(stored_bytes(Path(config.workspace), ("latents",)))
    assert found[0] == found[1]
    assert found[0]
