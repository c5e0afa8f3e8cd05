"""Exact resume, checkpoints that count, and ends that say why."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hvkf.errors import BadInput, CorruptData, Stopped
from hvkf.storage import FolderStore
from hvkf.training.runs import Checkpoints, list_checkpoints, read_result
from tests.training.latents import run_training, train_config, write_latents
from tests.training.ranks import in_ranks
from tests.training.test_dataset import write_cache
from tests.training.trainings import (
    EVENTFUL,
    NUM_STEPS,
    prepare,
    rows_of,
    run_bytes,
    signal_at,
    weights_of,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an eventful run leaves when nothing happens to it."""
    config, store = prepare(tmp_path_factory.mktemp("undisturbed"), **EVENTFUL)
    run_training(config, store)
    return run_bytes(store)


def test_two_runs_of_the_same_training_are_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    config, store = prepare(tmp_path, **EVENTFUL)
    run_training(config, store)
    assert run_bytes(store) == undisturbed
    checkpoints = {path.split("/")[2] for path in undisturbed if "step-" in path}
    assert checkpoints == {"step-00000002", "step-00000004", "step-00000005"}


@pytest.mark.parametrize("step", range(1, NUM_STEPS))
def test_a_run_told_to_stop_after_any_step_ends_with_the_same_bytes(
    step: int, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(tmp_path, **EVENTFUL)
    with monkeypatch.context() as patched:
        signal_at(patched, step, signal.SIGTERM)
        with pytest.raises(Stopped, match=f"saved step-{step:08d}"):
            run_training(config, store)
    assert len(rows_of(store)) == step
    run_training(config, store)
    assert run_bytes(store) == undisturbed


def test_a_run_told_to_stop_in_its_last_step_ends(
    undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(tmp_path, **EVENTFUL)
    signal_at(monkeypatch, NUM_STEPS, signal.SIGTERM)
    run_training(config, store)
    assert run_bytes(store) == undisturbed


@pytest.mark.parametrize("step", [1, 3, NUM_STEPS])
def test_a_run_killed_between_checkpoints_ends_with_the_same_bytes(
    step: int, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(tmp_path, **EVENTFUL)

    def killed(rank: int) -> None:
        signal_at(monkeypatch, step, signal.SIGKILL)
        run_training(config, store)

    assert in_ranks(1, killed) == [-signal.SIGKILL]
    run_training(config, store)
    assert run_bytes(store) == undisturbed


def test_a_run_goes_on_from_a_named_checkpoint_to_the_same_bytes(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    config, store = prepare(tmp_path, **EVENTFUL)
    run_training(config, store)
    store.delete("runs/test/result.json")
    checkpointing = {"save_every_n_steps": 2, "resume_from_checkpoint": "step-00000002"}
    run_training(train_config(tmp_path, **EVENTFUL, checkpointing=checkpointing), store)
    assert run_bytes(store) == undisturbed


def test_a_checkpoint_without_its_record_is_skipped_and_said(
    undisturbed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = prepare(tmp_path, **EVENTFUL)
    run_training(config, store)
    store.delete("runs/test/result.json")
    store.delete("runs/test/step-00000005/commit.json")
    run_training(config, store)
    said = capsys.readouterr().out
    assert "skipped step-00000005: it was not completely written" in said
    assert "goes on from step-00000004" in said
    assert run_bytes(store) == undisturbed


def test_a_checkpoint_with_a_flipped_bit_is_refused_by_name(tmp_path: Path) -> None:
    config, store = prepare(tmp_path)
    run_training(config, store)
    store.delete("runs/test/result.json")
    path = "runs/test/step-00000004/optimizer.safetensors"
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.put(path, bytes(data))
    with pytest.raises(CorruptData, match=r"step-00000004/optimizer.safetensors.*commit.json"):
        run_training(config, store)


def test_losses_that_are_gone_are_not_made_up(tmp_path: Path) -> None:
    config, store = prepare(tmp_path)
    run_training(config, store)
    store.delete("runs/test/result.json")
    store.put("runs/test/losses.jsonl", store.read("runs/test/losses.jsonl").split(b"\n", 1)[1])
    with pytest.raises(CorruptData, match=r"losses.jsonl does not hold the steps 1 to 4"):
        run_training(config, store)


def test_old_checkpoints_go_and_the_last_stays(tmp_path: Path) -> None:
    config, store = prepare(
        tmp_path, checkpointing={"save_every_n_steps": 1, "save_last_n_steps": 1}
    )
    run_training(config, store)
    folders = {path.split("/")[2] for path in run_bytes(store) if "step-" in path}
    assert folders == {"step-00000003", "step-00000004"}


def test_old_checkpoints_go_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(
        tmp_path, checkpointing={"save_every_n_steps": 1, "save_last_n_steps": 0}
    )
    signal_at(monkeypatch, 3, signal.SIGTERM)
    with pytest.raises(Stopped):
        run_training(config, store)
    assert list_checkpoints(store, "test") == Checkpoints(whole=(3,), partial=())


def test_without_a_schedule_only_the_end_is_saved(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, checkpointing={"save_every_n_steps": None})
    run_training(config, store)
    folders = {path.split("/")[2] for path in run_bytes(store) if "step-" in path}
    assert folders == {"step-00000004"}
    assert [row["step"] for row in rows_of(store) if "validation_loss" in row] == [4]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_step_item_and_checkpoint(
    value: float, tmp_path: Path
) -> None:
    config = train_config(tmp_path, checkpointing={"save_every_n_steps": 1})
    store = FolderStore(tmp_path)
    write_latents(store, config, {"32x32x5": 6}, spoil={"32x32x5-3": value})
    with pytest.raises(BadInput, match=r"32x32x5-3") as caught:
        run_training(config, store)
    message = str(caught.value)
    assert caught.value.exit_code == 65
    last = max(row["step"] for row in rows_of(store))
    assert f"at step {last + 1} " in message
    assert f"last good checkpoint is step-{last:08d}" in message
    assert all(torch.isfinite(weight).all() for weight in weights_of(store, last).values())


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_weights_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(tmp_path)
    backward: Callable[..., None] = torch.Tensor.backward

    def spoiling(loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        backward(loss * float("inf"), *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", spoiling)
    with pytest.raises(BadInput, match=r"The gradient is not finite at step 1 .*is none"):
        run_training(config, store)


def test_a_cache_of_the_reference_trains_as_it_is(tmp_path: Path) -> None:
    folders = [tmp_path / "cache" / name for name in ("32x32x5_00", "32x32x5_01")]
    for seed, folder in enumerate(folders):
        write_cache(folder, 2, seed=seed)
    config = train_config(tmp_path, data={"local": [str(folder) for folder in folders]})
    store = FolderStore(tmp_path)
    run_training(config, store)
    rows = rows_of(store)
    assert [row["samples"] for row in rows] == [1, 1, 1, 1]
    assert len({row["batch"] for row in rows}) == 4
    result = read_result(store, "test")
    assert result is not None
    assert (result.num_items, result.num_holdout, result.validation_loss) == (4, 0, None)
