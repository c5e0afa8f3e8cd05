"""Weights sharded over two gloo ranks by `fully_shard`: accelerate's FSDP is DDP on a CPU."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from hvkf.errors import BadInput
from hvkf.settings.training import HparamsConfig
from hvkf.storage import FolderStore
from hvkf.training import trainer
from hvkf.training.sharding import Sharding, check_sharding, shard, take_sharding
from tests.training.latents import run_training
from tests.training.trainings import (
    NUM_STEPS,
    PAIRS,
    SHARED,
    assert_same_training,
    prepare,
    rows_of,
    run_bytes,
    signal_at,
    train_in_ranks,
)

LAUNCHERS = {
    Sharding.ALL: {"ACCELERATE_USE_FSDP": "true"},
    Sharding.TRAINED: {"ACCELERATE_USE_DEEPSPEED": "true"},
}
CLIPPED = {**PAIRS["hparams"], "max_grad_norm": 0.1, "gradient_checkpointing": True}
DIVIDED = {**SHARED, "hparams": CLIPPED, "jobs": {"train": {"workers": 2}}}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """A run of one process, with what sharding has to do across ranks: clipping, averages."""
    config, store = prepare(tmp_path_factory.mktemp("alone"), **{**PAIRS, "hparams": CLIPPED})
    run_training(config, store)
    return store


def launched(sharding: Sharding, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """What a rank finds and checks when the launcher asks for sharding."""

    def checking(transformer: Any, wanted: Sharding, device: torch.device) -> None:
        shard(transformer, wanted, device)
        for name, weight in transformer.named_parameters():
            is_sharded = isinstance(weight, DTensor)
            assert is_sharded == (wanted is Sharding.ALL or weight.requires_grad), name
            if isinstance(weight, DTensor):
                assert weight.to_local().numel() < weight.numel()

    def before(rank: int) -> None:
        os.environ.update(LAUNCHERS[sharding])
        monkeypatch.setattr(trainer, "shard", checking)

    return before


@pytest.mark.parametrize("sharding", LAUNCHERS)
def test_sharded_ranks_train_as_one_process(
    sharding: Sharding, alone: FolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = prepare(tmp_path, **DIVIDED)
    assert train_in_ranks(config, store, launched(sharding, monkeypatch)) == [0, 0]
    assert_same_training(store, alone)


@pytest.mark.slow
def test_a_sharded_run_that_was_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = launched(Sharding.ALL, monkeypatch)
    config, undisturbed = prepare(tmp_path / "undisturbed", **DIVIDED)
    assert train_in_ranks(config, undisturbed, before) == [0, 0]
    config, store = prepare(tmp_path / "stopped", **DIVIDED)

    def first_rank_is_told(rank: int) -> None:
        before(rank)
        if rank == 0:
            signal_at(monkeypatch, 3, signal.SIGTERM)

    assert train_in_ranks(config, store, first_rank_is_told) == [143, 143]
    assert len(rows_of(store)) == 3 < NUM_STEPS
    assert train_in_ranks(config, store, before) == [0, 0]
    assert run_bytes(store) == run_bytes(undisturbed)


@pytest.mark.parametrize(
    ("environment", "sharding"),
    [
        ({}, Sharding.NOTHING),
        ({"ACCELERATE_USE_FSDP": "false"}, Sharding.NOTHING),
        ({"ACCELERATE_USE_FSDP": "true"}, Sharding.ALL),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, Sharding.TRAINED),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            Sharding.ALL,
        ),
    ],
)
def test_the_launchers_environment_says_what_to_shard(
    environment: dict[str, str], sharding: Sharding, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert take_sharding() is sharding
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ


@pytest.mark.parametrize(
    ("content", "sharding"),
    [({"zero_optimization": {"stage": 2}}, Sharding.TRAINED), ({}, None), ("text", None)],
)
def test_a_deepspeed_file_says_the_stage(
    content: Any, sharding: Sharding | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(content))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    if sharding is not None:
        assert take_sharding() is sharding
        return
    with pytest.raises(BadInput, match=r"zero.json says no ZeRO stage"):
        take_sharding()


@pytest.mark.parametrize("held", [{"packed_weights": "int8"}, {"weights_in_main_memory": True}])
def test_weights_that_are_packed_or_wait_are_not_shared_out(held: dict[str, Any]) -> None:
    hparams = HparamsConfig.model_validate(held)
    check_sharding(hparams, Sharding.TRAINED)
    with pytest.raises(BadInput, match=r"leave hparams.packed_weights and .* out, or use DDP"):
        check_sharding(hparams, Sharding.ALL)
