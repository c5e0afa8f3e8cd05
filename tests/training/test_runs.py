from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvkf.errors import BadInput
from hvkf.records import RunRecord
from hvkf.storage import FolderStore
from hvkf.training.runs import (
    Checkpoints,
    begin_run,
    choose_checkpoint,
    delete_checkpoints,
    list_checkpoints,
    parse_step,
    stale_steps,
    step_name,
)


@given(st.integers(0, 10**10))
def test_a_checkpoints_name_parses_to_its_step(step: int) -> None:
    assert parse_step(step_name(step)) == step


def test_names_of_checkpoints_sort_as_their_steps() -> None:
    steps = [0, 9, 10, 500, 99_999_999]
    assert sorted(map(step_name, steps)) == [step_name(step) for step in steps]


@pytest.mark.parametrize("name", ["step-5", "checkpoint-step00000500", "logs", "step-00000500x"])
def test_other_names_are_no_checkpoints(name: str) -> None:
    assert parse_step(name) is None


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    store = FolderStore(tmp_path)
    for step in (500, 1000, 1500):
        store.put(f"runs/r/{step_name(step)}/weights.safetensors", b"x")
    for step in (500, 1000):
        store.put(f"runs/r/{step_name(step)}/commit.json", b"{}")
    store.put("runs/r/losses.jsonl", b"")
    store.put("runs/r/logs/step-00000007/events", b"")
    store.put("runs/r-2/step-00009000/commit.json", b"{}")
    return store


def test_a_folder_without_its_record_is_not_whole(store: FolderStore) -> None:
    assert list_checkpoints(store, "r") == Checkpoints(whole=(500, 1000), partial=(1500,))
    assert list_checkpoints(store, "none") == Checkpoints((), ())


@pytest.mark.parametrize("wanted", [None, "latest"])
def test_latest_is_the_newest_whole_checkpoint(store: FolderStore, wanted: str | None) -> None:
    found = list_checkpoints(store, "r")
    assert choose_checkpoint(found, wanted, "r") == 1000
    assert choose_checkpoint(Checkpoints((), ()), wanted, "r") is None


@pytest.mark.parametrize("wanted", ["step-00000500", "runs/r/step-00000500", "step-00000500/"])
def test_a_checkpoint_is_chosen_by_name_or_path(store: FolderStore, wanted: str) -> None:
    assert choose_checkpoint(list_checkpoints(store, "r"), wanted, "r") == 500


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("step-00001500", "was not completely written"),
        ("step-00000007", "there is none"),
        ("newest", "there is none"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_with_those_that_can(
    store: FolderStore, wanted: str, reason: str
) -> None:
    with pytest.raises(BadInput, match=f"{reason}.*latest.*step-00000500, step-00001000"):
        choose_checkpoint(list_checkpoints(store, "r"), wanted, "r")


@pytest.mark.parametrize(
    ("every", "keep_back", "stale"),
    [
        (500, 1500, [500, 700]),
        (500, None, [700]),
        (500, 0, [500, 700, 1000, 1500, 2000]),
        (None, 1500, [500, 700, 1000, 1500, 2000]),
    ],
)
def test_old_checkpoints_and_those_of_a_stop_are_stale(
    every: int | None, keep_back: int | None, stale: list[int]
) -> None:
    found = Checkpoints(whole=(500, 700, 1000, 1500, 2000, 2500), partial=(900, 3000))
    expected = sorted([*stale, 900])
    assert stale_steps(found, 2500, every=every, keep_back=keep_back) == expected


def test_deleting_takes_the_record_first(store: FolderStore, tmp_path: Path) -> None:
    deleted = []

    class Recording(FolderStore):
        def delete(self, path: str) -> None:
            deleted.append(path)
            super().delete(path)

    delete_checkpoints(Recording(tmp_path), "r", [500])
    assert deleted[0] == "runs/r/step-00000500/commit.json"
    assert list_checkpoints(store, "r") == Checkpoints(whole=(1000,), partial=(1500,))


def test_a_run_begins_once_and_its_id_is_not_for_other_work(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    settings = {"hparams": {"learning_rate": 1e-4, "ema": {"use_ema": True}}, "latents": "a"}
    first = RunRecord(run_id="r", digest="1", settings=settings)
    begin_run(store, first)
    begin_run(store, first)
    other = {"hparams": {"learning_rate": 2e-4, "ema": {"use_ema": True}}, "latents": "a"}
    with pytest.raises(
        BadInput, match=r"hparams.learning_rate was 0.0001 and is 0.0002. Set experiment.run_id"
    ):
        begin_run(store, RunRecord(run_id="r", digest="2", settings=other))
