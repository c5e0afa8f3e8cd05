"""Trackers, and what a machine lacks."""

import importlib
from pathlib import Path

import pytest
import torch

from hvkf.config import Config
from hvkf.errors import BadInput
from tests.training.latents import run_training
from tests.training.trainings import prepare, rows_of


def test_tensorboard_is_the_default_tracker_and_its_files_come_into_the_run(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, experiment={"trackers": Config().experiment.trackers})
    run_training(config, store)
    folder = store.root / "runs" / "test" / "logs" / "hvkf"
    event_accumulator = importlib.import_module(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    read = event_accumulator.EventAccumulator(str(folder)).Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4]
    losses = [row["loss"] for row in rows_of(store)]
    assert [event.value for event in read.Scalars("loss")] == pytest.approx(losses)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, experiment={"run_id": "test", "trackers": ["wandb"]})
    with pytest.raises(
        BadInput, match=r"wandb, which is not installed: pip install 'hvkf\[wandb\]'"
    ):
        run_training(config, store)


def test_fp16_without_a_gpu_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    config, store = prepare(tmp_path, hparams={"mixed_precision": "fp16"})
    with pytest.raises(BadInput, match=r"mixed_precision=fp16 needs a GPU"):
        run_training(config, store)
