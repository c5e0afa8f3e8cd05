"""The nightly flow's own part: it asks the registry what is in use, and the gate what to do."""

from pathlib import Path

import pytest

from flows.nightly import _model_card, _Stages
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.nightly import NightRecord, Outcome
from hvkf.records import Summary
from hvkf.registry import read_registered
from hvkf.storage import FolderStore
from tests.stages.test_evaluate_gate import write_evaluation
from tests.workspaces import TINY


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
    night = NightRecord(
        name="house",
        number=1,
        owner="a flow run",
        started_at="2026-01-01T00:00:00+00:00",
        lease_until_s=0.0,
        outcome=Outcome.PROMOTED,
        run_id="one",
    )
    (card, _) = _model_card(night, str(store.root))  # without pictures, no samples
    assert card.startswith("- model card: ")
    assert store.exists(card.split("`")[1].removeprefix(f"{store.root}/"))
    assert _model_card(night.model_copy(update={"run_id": "another"}), str(store.root)) == []

    write_evaluation(store, "worse", 24, 0.5)
    promoted, reason = judged(store, "worse")
    assert not promoted
    assert "against version 1" in reason
    assert read_registered(store, "house").in_use.run_id == "one"


def checkable(store: FolderStore, **changed: object) -> Config:
    """Settings of a night that can work, with some changed."""
    metadata = store.root.parent / "metadata.csv"
    metadata.write_text("caption,video_file\n")
    return Config.model_validate(
        {
            "workspace": str(store.root),
            "ingest": {"metadata": str(metadata)},
            "model": {"pretrained_model_name_or_path": str(TINY)},
            "cache": {"bucket_reso": ["32x32x5"]},
            "nightly": {"name": "house"},
            **changed,
        }
    )


def test_a_night_refuses_before_its_first_stage_what_a_later_one_would(store: FolderStore) -> None:
    stages = _Stages()
    stages.check(checkable(store))
    wrong = checkable(
        store,
        cache={"bucket_reso": []},
        model={"pretrained_model_name_or_path": "/no/such"},
        network={"lora_weights": "run:never-trained"},
    )
    with pytest.raises(BadInput) as error:
        stages.check(wrong)
    for said in ("Nothing was begun.", "cache.bucket_reso", "/no/such", "never-trained"):
        assert said in str(error.value)


def test_what_a_night_does_not_use_is_not_looked_at(store: FolderStore) -> None:
    _Stages().check(
        checkable(
            store,
            render={"manifest": "/gone.csv"},
            network={"lora_weights": "run:gone"},
            nightly={"name": "house", "begin_from": "scratch"},
        )
    )
