"""What the settings do to the trained weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hvkf.errors import BadInput
from hvkf.model.lora_file import read_lora
from hvkf.training.runs import read_result
from tests.training.latents import run_training, train_config
from tests.training.trainings import prepare, weights_of


def test_a_training_begins_from_the_weights_of_a_lora_file(tmp_path: Path) -> None:
    config, store = prepare(tmp_path / "first")
    run_training(config, store)
    file = store.root / "runs/test/step-00000004/pytorch_lora_weights.safetensors"
    network = {"lora_rank": 2, "lora_alpha": 4, "lora_weights": str(file)}
    hparams = {"mixed_precision": "no", "learning_rate": 1e-9, "max_train_steps": 1}
    config, second = prepare(tmp_path / "second", network=network, hparams=hparams)
    run_training(config, second)
    begun = read_lora(file).weights
    for name, weight in weights_of(second, 1).items():
        torch.testing.assert_close(weight, begun[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"lora_rank": 4, "lora_alpha": 4}, r"another rank, 2, than network.lora_rank 4"),
        ({"lora_rank": 2, "lora_alpha": 2}, r"another alpha, 4, than network.lora_alpha 2"),
        (
            {"lora_rank": 2, "lora_alpha": 4, "lora_layers": "to_q"},
            r"adapts other layers, such as",
        ),
    ],
)
def test_a_lora_file_that_does_not_fit_is_refused(
    network: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config, store = prepare(tmp_path)
    run_training(config, store)
    begin = {"lora_weights": "run:test", **network}
    config = train_config(tmp_path, network=begin, experiment={"run_id": "next", "trackers": []})
    with pytest.raises(BadInput, match=message):
        run_training(config, store)


@pytest.mark.parametrize(
    "hparams",
    [
        {"gradient_precision": "fp32", "mixed_precision": "bf16"},
        {"grad_clip_method": "value", "max_grad_norm": 1e-4},
        {"ema": {"use_ema": False}},
        {"ema": {"ema_update_interval": 2, "ema_device": "cpu"}},
        {"flow_match": {"weighting_scheme": "cosmap", "timestep_sampling": "uniform"}},
        {"optimizer_type": "torch.optim.AdamW", "lr_scheduler": "linear"},
        {"num_train_epochs": 2, "max_train_steps": None},
        {"packed_weights": "int8", "gradient_checkpointing": True},
        {"packed_weights": "fp8", "mixed_precision": "bf16"},
        {"packed_weights": "int8", "weights_in_main_memory": True},
        {"weights_in_main_memory": True, "mixed_precision": "bf16"},
    ],
    ids=lambda hparams: ",".join(hparams),
)
def test_settings_of_the_reference_train(hparams: dict[str, Any], tmp_path: Path) -> None:
    common = {"mixed_precision": "no", "learning_rate": 1e-3, "max_train_steps": 2}
    config, store = prepare(tmp_path, hparams={**common, **hparams})
    run_training(config, store)
    result = read_result(store, "test")
    assert result is not None
    # Two buckets of two and three items, one to a step.
    assert result.num_steps == (2 if "num_train_epochs" not in hparams else 10)
    weights = weights_of(store, result.num_steps)
    is_float32 = hparams.get("mixed_precision") != "bf16" or "gradient_precision" in hparams
    assert {weight.dtype for weight in weights.values()} == {
        torch.float32 if is_float32 else torch.bfloat16
    }
    lora = read_lora(store.root / result.lora)
    is_raw = all(lora.weights[name].equal(weight) for name, weight in weights.items())
    assert is_raw == ("ema" in hparams and not hparams["ema"].get("use_ema", True))
    assert lora.alpha == 4


def test_where_a_step_is_computed_and_weights_lie_changes_no_byte_of_the_result(
    tmp_path: Path,
) -> None:
    forms: list[dict[str, Any]] = [
        {"gradient_checkpointing": False},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "checkpoint_every_n_blocks": 2},
        {"gradient_checkpointing": True, "checkpoint_in_main_memory": True},
        {"gradient_checkpointing": False, "weights_in_main_memory": True},
        {"gradient_checkpointing": True, "weights_in_main_memory": True},
    ]
    common = {"mixed_precision": "no", "learning_rate": 1e-2, "max_train_steps": 3}
    found = []
    for number, form in enumerate(forms):
        config, store = prepare(tmp_path / str(number), hparams={**common, **form})
        run_training(config, store)
        found.append(weights_of(store, 3))

    for weights in found[1:]:
        assert all(weight.equal(found[0][name]) for name, weight in weights.items())


def test_a_lora_trained_over_eight_bits_is_near_the_one_trained_over_all(tmp_path: Path) -> None:
    common = {"mixed_precision": "no", "learning_rate": 1e-3, "max_train_steps": 3}
    found = []
    for packed in (None, "int8"):
        hparams = {**common, "packed_weights": packed}
        config, store = prepare(tmp_path / str(packed), hparams=hparams)
        run_training(config, store)
        weights = weights_of(store, 3)
        found.append(torch.cat([weights[name].flatten() for name in sorted(weights)]))

    apart = (found[1] - found[0]).norm() / found[0].norm()
    assert 0 < apart < 0.02
