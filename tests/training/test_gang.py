"""Ranks that train together as one process would, and stop together."""

import signal
from pathlib import Path

import pytest

from hvkf.errors import BadInput, Stopped
from hvkf.stages import train as train_stage
from hvkf.storage import FolderStore
from tests.training.latents import run_training, train_config, write_latents
from tests.training.ranks import in_ranks
from tests.training.trainings import (
    PAIRS,
    SHARED,
    assert_same_training,
    prepare,
    rows_of,
    signal_at,
    train_in_ranks,
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """A run of one process with batches of two."""
    config, store = prepare(tmp_path_factory.mktemp("alone"), **PAIRS)
    run_training(config, store)
    return store


def test_two_processes_with_batch_one_equal_one_with_batch_two_step_by_step(
    alone: FolderStore, tmp_path: Path
) -> None:
    config, store = prepare(tmp_path, **SHARED)
    assert train_in_ranks(config, store) == [0, 0]
    # A bucket's odd last sample makes a step that only one of the ranks has a sample of.
    assert {row["samples"] for row in rows_of(store)} == {1, 2}
    assert_same_training(store, alone)


def test_accumulating_two_batches_equals_one_batch_of_two(
    alone: FolderStore, tmp_path: Path
) -> None:
    hparams = {**PAIRS["hparams"], "gradient_accumulation_steps": 2}
    sections = {**PAIRS, "data": {"batch_size": 1}, "hparams": hparams}
    config, store = prepare(tmp_path, **sections)
    run_training(config, store)
    assert_same_training(store, alone)


def test_a_run_of_one_process_goes_on_in_two_with_the_items_of_each_step(
    alone: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(tmp_path, **PAIRS)
    with monkeypatch.context() as patched:
        signal_at(patched, 3, signal.SIGTERM)
        with pytest.raises(Stopped):
            run_training(config, store)
    assert train_in_ranks(train_config(tmp_path, **SHARED), store) == [0, 0]
    assert_same_training(store, alone)


def test_sigterm_at_one_rank_stops_all_after_the_step_and_they_go_on(
    alone: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(tmp_path, **SHARED)

    def second_rank_is_told(rank: int) -> None:
        if rank == 1:
            signal_at(monkeypatch, 3, signal.SIGTERM)

    assert train_in_ranks(config, store, second_rank_is_told) == [143, 143]
    assert [row["step"] for row in rows_of(store)] == [1, 2, 3]
    assert train_in_ranks(config, store) == [0, 0]
    assert_same_training(store, alone)


def test_bad_input_that_the_main_rank_finds_ends_all_of_them(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, **SHARED)
    plan = train_stage.plan(config, store)
    taken = train_stage.run_of(plan).model_copy(update={"digest": "other"})
    store.put("runs/test/run.json", taken.to_json())

    def work(rank: int) -> None:
        train_stage.run(plan, store, plan.parts)

    assert in_ranks(2, work) == [65, 65]


def test_ranks_that_planned_different_work_are_refused(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, **SHARED)
    other = train_config(tmp_path, **{**SHARED, "network": {"lora_rank": 1}})
    plans = [train_stage.plan(of_rank, store) for of_rank in (config, other)]

    def work(rank: int) -> None:
        train_stage.run(plans[rank], store, plans[rank].parts)

    assert in_ranks(2, work) == [75, 75]
    assert not list(store.list("runs"))


def test_ranks_that_do_not_make_up_the_global_batch_are_refused(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, **PAIRS)
    plan = train_stage.plan(config, store)
    shared = plan.model_copy(
        update={"config": train_config(tmp_path, data={"batch_size": 3}).model_dump(mode="json")}
    )
    with pytest.raises(BadInput, match=r"has 2 samples in a step.*batch_size 3 x 1 rank "):
        train_stage.run(shared, store, plan.parts)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_of_them(tmp_path: Path) -> None:
    config, store = train_config(tmp_path, **SHARED), FolderStore(tmp_path)
    write_latents(store, config, {"32x32x5": 5}, spoil={"32x32x5-3": float("nan")})
    assert train_in_ranks(config, store) == [65, 65]
    assert not store.exists("runs/test/result.json")
