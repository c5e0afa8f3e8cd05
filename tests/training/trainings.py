"""Trainings of a few steps, what they leave, and what can happen to them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from hvkf.config import Config
from hvkf.stages import train as train_stage
from hvkf.storage import FolderStore
from hvkf.training import loop
from hvkf.training.steps import Gradients
from tests.training.latents import train_config, write_latents
from tests.training.ranks import in_ranks

NUM_STEPS = 5
TOLERANCE = 2e-5
# All that a step can depend on besides the weights: dropout, captions, averages, accumulation.
EVENTFUL: dict[str, dict[str, Any]] = {
    "network": {"lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.3, "train_norm_layers": True},
    "hparams": {
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "learning_rate": 1e-2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "max_train_steps": NUM_STEPS,
        "max_grad_norm": 0.1,
        "caption_dropout_p": 0.5,
        "gradient_accumulation_steps": 2,
    },
}
PAIRS: dict[str, dict[str, Any]] = {
    "data": {"batch_size": 2},
    "hparams": {
        "mixed_precision": "no",
        "learning_rate": 1e-2,
        "gradient_checkpointing": False,
        "lr_warmup_steps": 2,
        "max_train_steps": NUM_STEPS,
        "caption_dropout_p": 0.5,
    },
    "validation": {"num_items": 2, "sigmas": [0.5]},
}
SHARED = {**PAIRS, "data": {"batch_size": 1}, "jobs": {"train": {"workers": 2}}}


def prepare(folder: Path, **sections: dict[str, Any]) -> tuple[Config, FolderStore]:
    """Make a workspace with latents."""
    config = train_config(folder, **sections)
    store = FolderStore(folder)
    write_latents(store, config)
    return config, store


def run_bytes(store: FolderStore) -> dict[str, bytes]:
    """Read all that counts of a run."""
    return {path: store.read(path) for path in store.list("runs") if "/logs/" not in path}


def rows_of(store: FolderStore) -> list[dict[str, Any]]:
    """Read a run's losses."""
    return [json.loads(line) for line in store.read("runs/test/losses.jsonl").splitlines()]


def weights_of(store: FolderStore, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    """Read a checkpoint's trained weights."""
    tensors: dict[str, torch.Tensor] = load(
        store.read(f"runs/test/step-{step:08d}/weights.safetensors")
    )
    return tensors


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, signum: int) -> None:
    """Send this process a signal while it computes a step."""
    compute = loop.Loop._compute

    def computing(self: loop.Loop, number: int, *arguments: Any) -> Gradients:
        if number == step:
            os.kill(os.getpid(), signum)
        return compute(self, number, *arguments)

    monkeypatch.setattr(loop.Loop, "_compute", computing)


def train_in_ranks(
    config: Config, store: FolderStore, before: Callable[[int], None] | None = None
) -> list[int]:
    """Train in two processes, each calling `before(rank)` first."""
    plan = train_stage.plan(config, store)

    def work(rank: int) -> None:
        if before is not None:
            before(rank)
        train_stage.run(plan, store, plan.parts)

    return in_ranks(2, work)


def assert_same_training(store: FolderStore, expected: FolderStore) -> None:
    """Check the items of each step exactly, and losses and weights to float tolerance."""
    rows, wanted = rows_of(store), rows_of(expected)
    assert [row["batch"] for row in rows] == [row["batch"] for row in wanted]
    for name in ("loss", "grad_norm", "validation_loss"):
        values = [row.get(name, 0.0) for row in rows]
        assert values == pytest.approx([row.get(name, 0.0) for row in wanted], rel=TOLERANCE)
    weights, same = weights_of(store), weights_of(expected)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, same[name], rtol=1e-3, atol=TOLERANCE)
