"""The nightly flow's own part: it asks the registry what is in use, and the gate what to do."""

from pathlib import Path

import pytest

from flows.nightly import _Stages
from hvkf.config import Config
from hvkf.records import Summary
from hvkf.registry import read_registered
from hvkf.storage import FolderStore
from tests.stages.test_evaluate_gate import write_evaluation


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "workspace")


def settings(store: FolderStore) -> Config:
    return Config.model_validate(
        {
            "workspace": str(store.root),
            "nightly": {"name": "house"},
            "gate": {"registry": "elsewhere"},
        }
    )


def judged(store: FolderStore, run_id: str) -> tuple[bool, str]:
    summary = Summary(
        stage="evaluate", result=f"evals/{run_id}/metrics.json", reused=False, text=""
    )
    decision = _Stages().judge(settings(store), summary)
    return decision.promoted, decision.reason


def test_a_better_lora_comes_into_use_under_the_nights_name_and_a_worse_does_not(
    store: FolderStore,
) -> None:
    stages = _Stages()
    assert stages.in_use(settings(store)) is None
    write_evaluation(store, "one", 25, 1.0)
    promoted, reason = judged(store, "one")
    assert promoted
    assert "promote: clip_psnr_db: +5" in reason
    assert "registry/decisions/" in reason
    assert stages.in_use(settings(store)) == "registry:house@1"

    write_evaluation(store, "worse", 24, 0.5)
    promoted, reason = judged(store, "worse")
    assert not promoted
    assert "against version 1" in reason
    assert read_registered(store, "house").in_use.run_id == "one"
