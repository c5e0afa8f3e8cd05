"""`hvkf gc --older-than-hours 0` beside every stage: each result is that of an undisturbed run."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvkf import ledger
from hvkf.cli import stage_module
from hvkf.errors import TryAgain
from hvkf.garbage import find_garbage, remove_garbage
from hvkf.records import Plan
from hvkf.storage import FolderStore
from hvkf.uses import close_plan
from tests.drills.killing import stored_bytes
from tests.drills.states import MADE, STAGES, chain_config, prepare_states

PAUSE_S = 0.1
LEFT = "scenes/left/32x32x5/0123456789ab-0123456789ab/index.json"


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return prepare_states(tmp_path_factory.mktemp("beside"))


class Collector:
    """Somebody who deletes garbage all the time."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store
        self.num_refused = self.num_deleted = 0

    def collect(self) -> None:
        try:
            self.num_deleted += len(remove_garbage(self._store, find_garbage(self._store, 0)))
        except TryAgain:
            self.num_refused += 1


def run_part(plan: Plan, part: int, store: FolderStore, collector: Collector) -> None:
    """Run a part as a worker's process does, with the collector beside it."""
    where = ["--workspace", store.url, "--plan", plan.digest, "--parts", str(part)]
    worker = subprocess.Popen(
        [sys.executable, "-m", "hvkf.cli", plan.stage, "run", *where],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while worker.poll() is None:
        collector.collect()
        time.sleep(PAUSE_S)
    assert worker.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_gc_beside_a_stage_changes_nothing_of_its_result(
    stage: str, states: dict[str, Path], tmp_path: Path
) -> None:
    """Plan, parts and commit are steps of their own, as in a flow; gc comes between them too."""
    config = chain_config(tmp_path, states["after"].parent / "data" / "metadata.csv")
    root = tmp_path / "workspace"
    shutil.copytree(states[stage], root)
    store = FolderStore(root)
    store.put(LEFT, b"left by a killed worker")
    module, collector = stage_module(stage), Collector(store)
    plan = module.plan(config, store)
    ledger.put_plan(store, plan)
    collector.collect()
    for part in plan.parts:
        run_part(plan, part.index, store, collector)
        collector.collect()
    assert collector.num_refused > 0
    assert collector.num_deleted > 0
    module.commit(plan, store)
    close_plan(store, plan)
    collector.collect()
    assert not store.exists(LEFT)
    found = stored_bytes(root, MADE[stage])
    assert found.items() >= stored_bytes(states["after"], MADE[stage]).items()
