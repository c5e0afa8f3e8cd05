import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvkf.errors import BadInput
from hvkf.stages import train as train_stage
from hvkf.storage import FolderStore
from tests.training.latents import run_training, train_config, write_latents


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path)
    write_latents(store, train_config(tmp_path))
    return store


def planned(store: FolderStore, **sections: dict[str, Any]) -> Any:
    return train_stage.plan(train_config(store.root, **sections), store)


def digest_of(store: FolderStore, **sections: dict[str, Any]) -> str:
    digest: str = planned(store, **sections).digest
    return digest


def test_a_plan_has_one_part_whose_output_is_the_result(store: FolderStore) -> None:
    plan = planned(store)
    assert [part.outputs for part in plan.parts] == [("runs/test/result.json",)]
    assert plan.committed is None
    assert plan == planned(store)
    assert "5 samples train, 2 held out" in plan.note
    assert not list(store.list("runs")), "planning writes nothing"


def test_planning_and_committing_load_neither_torch_nor_streaming(store: FolderStore) -> None:
    config = train_config(store.root)
    run_training(config, store)
    program = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from hvkf.config import Config\n"
        "from hvkf.stages import train\n"
        "from hvkf.storage import FolderStore\n"
        "config = Config.model_validate(json.loads(sys.argv[1]))\n"
        "store = FolderStore(Path(config.workspace))\n"
        "plan = train.plan(config, store)\n"
        "assert train.commit(plan, store).reused\n"
        "print([name for name in ('torch', 'streaming', 'diffusers') if name in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, json.dumps(config.model_dump(mode="json"))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == "[]"


def test_a_finished_run_is_found_done_and_summed_up(store: FolderStore) -> None:
    config = train_config(store.root)
    run_training(config, store)
    plan = train_stage.plan(config, store)
    assert plan.parts == ()
    assert plan.committed == "runs/test/result.json"
    summary = train_stage.commit(plan, store)
    assert summary.reused
    assert summary.counts == {"steps": 4, "items": 5}
    assert set(summary.figures) == {"loss", "validation_loss"}
    assert all(store.exists(summary.links[name]) for name in ("lora", "losses"))


def test_a_run_that_has_not_ended_cannot_be_committed(store: FolderStore) -> None:
    with pytest.raises(BadInput, match=r"'test' has no result yet: run `hvkf train run`"):
        train_stage.commit(planned(store), store)


def changed(store: FolderStore, changes: dict[str, Any]) -> dict[str, Any]:
    """Change settings of the test's configuration, section by section."""
    settings = train_config(store.root).model_dump(mode="json")
    sections = {name: value for name, value in settings.items() if isinstance(value, dict)}
    return {name: _merged(sections[name], changes.get(name, {})) for name in sections}


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    nested = {
        name: _merged(values[name], change) if isinstance(change, dict) else change
        for name, change in changes.items()
    }
    return {**values, **nested}


@pytest.mark.parametrize(
    "same",
    [
        {"jobs": {"train": {"threads": 3, "max_attempts": 9}}},
        {"data": {"dataloader_kwargs": {"num_workers": 4}}},
        {"checkpointing": {"save_every_n_steps": 7, "resume_from_checkpoint": "latest"}},
        {"experiment": {"trackers": ["tensorboard"]}},
        {"model": {"attention": "auto"}},
        {"hparams": {"gradient_checkpointing": True, "ema": {"ema_device": "cpu"}}},
        {"ddp_kwargs": {"static_graph": True}},
        {"render": {"steps": 3}},
    ],
    ids=str,
)
def test_how_and_where_it_runs_is_not_the_work(store: FolderStore, same: dict[str, Any]) -> None:
    assert digest_of(store, **changed(store, same)) == digest_of(store)


@pytest.mark.parametrize(
    "other",
    [
        {"hparams": {"learning_rate": 2e-2}},
        {"hparams": {"ema": {"ema_decay": 0.9}}},
        {"hparams": {"flow_match": {"discrete_flow_shift": 1.0}}},
        {"network": {"lora_rank": 3}},
        {"experiment": {"random_seed": 8}},
        {"data": {"batch_size": 2}},
        {"validation": {"sigmas": [0.4]}},
    ],
    ids=str,
)
def test_what_changes_the_result_is_the_work(store: FolderStore, other: dict[str, Any]) -> None:
    assert digest_of(store, **changed(store, other)) != digest_of(store)


def test_ranks_batch_and_accumulation_count_by_their_product(store: FolderStore) -> None:
    def of(batch_size: int, workers: int, accumulated: int) -> str:
        hparams = {
            "mixed_precision": "no",
            "max_train_steps": 4,
            "gradient_accumulation_steps": accumulated,
        }
        return digest_of(
            store,
            data={"batch_size": batch_size},
            jobs={"train": {"workers": workers}},
            hparams=hparams,
        )

    assert of(4, 1, 1) == of(1, 4, 1) == of(2, 1, 2) == of(1, 2, 2)
    assert of(4, 1, 1) != of(4, 2, 1)


def test_ranks_of_a_launcher_count_for_the_configured_ones(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_for_two = digest_of(store, jobs={"train": {"workers": 2}})
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert digest_of(store) == planned_for_two


def test_a_run_id_is_made_of_the_name_and_the_work(store: FolderStore) -> None:
    unnamed: dict[str, Any] = {"experiment": {"name": "keys", "run_id": None}}
    first = planned(store, **unnamed).parts[0].work["run_id"]
    other = planned(store, **unnamed, network={"lora_rank": 3}).parts[0].work["run_id"]
    assert first.startswith("keys-")
    assert len(first) == len("keys-") + 8
    assert first != other


def test_a_run_id_taken_by_other_work_is_refused_with_what_differs(store: FolderStore) -> None:
    run_training(train_config(store.root), store)
    with pytest.raises(
        BadInput,
        match=r"'test' was begun as other work: network.lora_rank was 2 and is 3. Set "
        r"experiment.run_id",
    ):
        planned(store, network={"lora_rank": 3, "lora_alpha": 4})


def test_a_run_id_is_not_for_other_data_either(store: FolderStore, tmp_path: Path) -> None:
    run_training(train_config(store.root), store)
    folder = tmp_path / "other"
    other = FolderStore(folder)
    write_latents(other, train_config(folder), {"32x32x5": 9})
    other.put("runs/test/run.json", store.read("runs/test/run.json"))
    with pytest.raises(BadInput, match=r"latents was '[0-9a-f]{32}' and is"):
        train_stage.plan(train_config(folder), other)


def test_dropping_every_batch_is_refused(store: FolderStore) -> None:
    data = {"batch_size": 9, "dataloader_kwargs": {"drop_last": True}}
    with pytest.raises(
        BadInput, match=r"No bucket has the 9 samples of a step \(the largest has 3"
    ):
        planned(store, data=data)


def test_a_run_without_an_end_is_refused(store: FolderStore) -> None:
    with pytest.raises(BadInput, match=r"set hparams.num_train_epochs or hparams.max_train_steps"):
        planned(store, hparams={"num_train_epochs": None, "max_train_steps": None})


def test_latents_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no latents of data set 'default'.*run `hvkf encode`"):
        planned(FolderStore(tmp_path))
