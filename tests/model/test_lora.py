import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline

from hvkf.errors import BadInput
from hvkf.model.lora import (
    add_lora,
    fuse_lora,
    load_lora,
    load_lora_state,
    lora_state_dict,
    target_layers,
)
from hvkf.model.lora_file import FILE_NAME, is_norm_weight, save_lora

from .conftest import GOLDEN_FOLDER, relative_difference
from .test_lora_file import REFERENCE_FILE
from .test_widening import narrow_transformer

Transformer = HunyuanVideoTransformer3DModel
TOLERANCE = 2e-5


def output_of(model: Transformer, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(**inputs)[0]
        return output


def randomise(model: Transformer) -> None:
    """Stand for training: give the LoRA's up matrices and the trained norms other values."""
    with torch.no_grad():
        for name, weight in lora_state_dict(model).items():
            if "lora_A" not in name:
                weight.add_(torch.randn_like(weight) * 0.1)


def test_all_linear_adapts_the_references_layers(transformer: Transformer) -> None:
    add_lora(transformer, rank=4, alpha=8)
    expected = json.loads((GOLDEN_FOLDER / "lora_keys.json").read_text())["keys"]
    state = lora_state_dict(transformer)
    assert {f"transformer.{name}": list(w.shape) for name, w in state.items()} == expected


def test_a_new_lora_changes_nothing_and_only_it_is_trained(
    transformer: Transformer, transformer_inputs: dict[str, Any]
) -> None:
    before = output_of(transformer, transformer_inputs)
    trained = add_lora(transformer, rank=4, alpha=8)
    assert torch.equal(output_of(transformer, transformer_inputs), before)
    state = lora_state_dict(transformer).values()
    assert {id(parameter) for parameter in trained} == {id(weight) for weight in state}


def test_listed_layers_are_matched_by_their_end_and_the_input_layer_joins(
    transformer: Transformer,
) -> None:
    layers = target_layers(transformer, "to_q, to_out.0")
    assert layers[0] == "x_embedder.proj"
    assert all(name.endswith(("to_q", "to_out.0")) for name in layers[1:])
    assert "transformer_blocks.0.attn.to_q" in layers
    exact = ["single_transformer_blocks.0.attn.to_q"]
    assert target_layers(transformer, exact) == exact


def test_a_layer_that_does_not_exist_is_refused(transformer: Transformer) -> None:
    with pytest.raises(BadInput, match="'to_x'"):
        add_lora(transformer, rank=4, alpha=8, target="to_q,to_x")


@pytest.mark.parametrize("init", ["pissa", "olora", "eva"])
def test_an_initialisation_that_changes_the_base_weights_is_refused(
    init: str, transformer: Transformer
) -> None:
    with pytest.raises(BadInput, match=init):
        add_lora(transformer, rank=4, alpha=8, init=init)


def test_a_gaussian_start_changes_nothing_either(
    transformer: Transformer, transformer_inputs: dict[str, Any]
) -> None:
    before = output_of(transformer, transformer_inputs)
    add_lora(transformer, rank=4, alpha=8, init="gaussian")
    assert torch.equal(output_of(transformer, transformer_inputs), before)


def test_the_lora_can_be_kept_in_float32_on_16_bit_weights(
    transformer: Transformer, transformer_inputs: dict[str, Any]
) -> None:
    torch.nn.Module.to(transformer, torch.bfloat16)
    trained = add_lora(transformer, rank=4, alpha=8, dtype=torch.float32)
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert transformer.dtype == torch.bfloat16
    inputs = {
        name: value.bfloat16() if getattr(value, "dtype", None) == torch.float32 else value
        for name, value in transformer_inputs.items()
    }
    assert torch.isfinite(output_of(transformer, inputs)).all()


def test_a_transformer_that_is_not_widened_is_refused() -> None:
    with pytest.raises(BadInput, match="not widened"):
        add_lora(narrow_transformer(), rank=4, alpha=8)
    with pytest.raises(BadInput, match="not widened"):
        load_lora(narrow_transformer(), REFERENCE_FILE)


@pytest.mark.parametrize(
    ("alpha", "fused", "expected"),
    [
        (8, False, "out.lora_alpha8_trainside"),
        (8, True, "out.fused_alpha_corrected"),
        (None, True, "out.fused_as_seed"),
    ],
)
def test_the_references_lora_gives_its_outputs(
    alpha: float | None,
    fused: bool,
    expected: str,
    transformer: Transformer,
    transformer_inputs: dict[str, Any],
    golden: Callable[[str], dict[str, torch.Tensor]],
) -> None:
    load_lora(transformer, REFERENCE_FILE, alpha=alpha)
    if fused:
        fuse_lora(transformer)
    output = output_of(transformer, transformer_inputs)
    assert relative_difference(output, golden("transformer")[expected]) < TOLERANCE


def test_an_assumed_alpha_is_said(
    transformer: Transformer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_lora(transformer, REFERENCE_FILE)
    assert (loaded.rank, loaded.alpha, loaded.num_layers) == (4, 4, 41)
    assert "records no alpha" in caplog.text


@pytest.mark.parametrize("fused", [False, True])
def test_a_saved_lora_with_alpha_and_norms_renders_as_it_was_trained(
    fused: bool,
    loaded_transformer: Transformer,
    transformer: Transformer,
    transformer_inputs: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Fault 8 of the reference: alpha and the trained norms were lost on the way."""
    trained = copy.deepcopy(loaded_transformer)
    add_lora(trained, rank=4, alpha=16, train_norm_layers=True)
    untrained = output_of(trained, transformer_inputs)
    randomise(trained)
    expected = output_of(trained, transformer_inputs)
    save_lora(lora_state_dict(trained), tmp_path, alpha=16)

    loaded = load_lora(transformer, tmp_path, alpha=4)
    assert (loaded.alpha, loaded.num_norm_weights) == (16, 8)
    assert "the given alpha 4 is not" in caplog.text
    if fused:
        fuse_lora(transformer)
    assert relative_difference(output_of(transformer, transformer_inputs), expected) < TOLERANCE
    assert relative_difference(untrained, expected) > 0.01


def test_diffusers_loads_a_saved_lora_with_its_alpha(
    loaded_transformer: Transformer,
    transformer: Transformer,
    transformer_inputs: dict[str, Any],
    tmp_path: Path,
) -> None:
    trained = copy.deepcopy(loaded_transformer)
    add_lora(trained, rank=4, alpha=16)
    randomise(trained)
    save_lora(lora_state_dict(trained), tmp_path, alpha=16)
    state, metadata = HunyuanVideoPipeline.lora_state_dict(
        str(tmp_path), weight_name=FILE_NAME, return_lora_metadata=True
    )
    HunyuanVideoPipeline.load_lora_into_transformer(state, transformer, metadata=metadata)
    difference = relative_difference(
        output_of(transformer, transformer_inputs), output_of(trained, transformer_inputs)
    )
    assert difference < TOLERANCE


def test_merging_removes_the_loras_layers(transformer: Transformer) -> None:
    names = set(transformer.state_dict())
    load_lora(transformer, REFERENCE_FILE, alpha=8)
    fuse_lora(transformer)
    assert set(transformer.state_dict()) == names
    assert load_lora(transformer, REFERENCE_FILE, alpha=8).rank == 4


def test_merging_into_16_bit_weights_rounds_once(transformer: Transformer) -> None:
    base = transformer.proj_out.weight.bfloat16().float()
    torch.nn.Module.to(transformer, torch.bfloat16)
    load_lora(transformer, REFERENCE_FILE, alpha=8)
    layer: Any = transformer.proj_out
    down, up = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    fuse_lora(transformer)
    expected = (base.double() + 2 * up @ down).to(torch.bfloat16)
    assert transformer.proj_out.weight.dtype == torch.bfloat16
    assert torch.equal(transformer.proj_out.weight, expected)


def test_a_lora_of_one_layer_adapts_no_layer_whose_name_ends_alike(
    transformer: Transformer, tmp_path: Path
) -> None:
    weights = {"proj_out.lora_A.weight": torch.randn(2, 32)}
    weights["proj_out.lora_B.weight"] = torch.randn(64, 2)
    save_lora(weights, tmp_path, alpha=2)
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    assert load_lora(transformer, tmp_path).num_layers == 1
    fuse_lora(transformer)
    after = transformer.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [
        "proj_out.weight"
    ]


def test_a_second_lora_over_the_first_is_refused(transformer: Transformer) -> None:
    load_lora(transformer, REFERENCE_FILE, alpha=8)
    with pytest.raises(BadInput, match="over another LoRA"):
        load_lora(transformer, REFERENCE_FILE, alpha=8)


def test_a_lora_of_other_layers_is_refused_by_name(
    transformer: Transformer, tmp_path: Path
) -> None:
    weights = {"blocks.7.to_q.lora_A.weight": torch.ones(2, 8)}
    weights["blocks.7.to_q.lora_B.weight"] = torch.ones(8, 2)
    save_lora(weights, tmp_path, alpha=2)
    with pytest.raises(BadInput, match=r"lacks: blocks\.7\.to_q"):
        load_lora(transformer, tmp_path)


def test_a_lora_of_another_size_is_refused_by_name(
    transformer: Transformer, tmp_path: Path
) -> None:
    weights = {"proj_out.lora_A.weight": torch.ones(2, 8)}
    weights["proj_out.lora_B.weight"] = torch.ones(64, 2)
    save_lora(weights, tmp_path, alpha=2)
    with pytest.raises(BadInput, match=r"layers proj_out \(\[64, 32\]\)"):
        load_lora(transformer, tmp_path)


def test_trained_weights_return_into_a_new_lora(
    transformer: Transformer, transformer_inputs: dict[str, Any]
) -> None:
    add_lora(transformer, rank=4, alpha=8, train_norm_layers=True)
    fresh = {name: weight.clone() for name, weight in lora_state_dict(transformer).items()}
    assert any(is_norm_weight(name) for name in fresh)
    before = output_of(transformer, transformer_inputs)
    randomise(transformer)
    assert not torch.equal(output_of(transformer, transformer_inputs), before)
    load_lora_state(transformer, fresh)
    assert torch.equal(output_of(transformer, transformer_inputs), before)


def test_weights_that_do_not_fit_the_lora_are_named_and_nothing_is_copied(
    transformer: Transformer,
) -> None:
    add_lora(transformer, rank=4, alpha=8)
    own = {name: weight.clone() for name, weight in lora_state_dict(transformer).items()}
    changed = {name: weight + 1 for name, weight in own.items()}
    name = "proj_out.lora_A.weight"
    cases = [
        ({key: value for key, value in changed.items() if key != name}, "lacks"),
        ({**changed, "other.lora_A.weight": torch.ones(1)}, "other layers"),
        ({**changed, name: torch.ones(8, 32)}, "other shapes"),
    ]
    for state, message in cases:
        with pytest.raises(BadInput, match=message):
            load_lora_state(transformer, state)
    for key, weight in lora_state_dict(transformer).items():
        assert torch.equal(weight, own[key])


def test_a_transformer_without_a_lora_has_no_lora_weights(transformer: Transformer) -> None:
    with pytest.raises(BadInput, match="has no LoRA"):
        lora_state_dict(transformer)
