from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.errors import BadInput
from hvkf.model.widening import is_widened, widen_input

from .conftest import TINY_FOLDER, relative_difference


def narrow_transformer(**settings: int) -> HunyuanVideoTransformer3DModel:
    config = HunyuanVideoTransformer3DModel.load_config(TINY_FOLDER, subfolder="transformer")
    model: HunyuanVideoTransformer3DModel = HunyuanVideoTransformer3DModel.from_config(
        {**config, **settings}
    )
    return model


def test_the_widened_output_equals_the_references(
    transformer: HunyuanVideoTransformer3DModel,
    transformer_inputs: dict[str, Any],
    golden: Callable[[str], dict[str, torch.Tensor]],
) -> None:
    with torch.inference_mode():
        output = transformer(**transformer_inputs)[0]
    assert relative_difference(output, golden("transformer")["out.widened_no_lora"]) < 2e-5


def test_the_condition_changes_nothing_before_training(transformer_inputs: dict[str, Any]) -> None:
    model = narrow_transformer().eval()
    noisy_and_condition = transformer_inputs["hidden_states"]
    with torch.inference_mode():
        before = model(**{**transformer_inputs, "hidden_states": noisy_and_condition[:, :16]})[0]
        widen_input(model)
        after = model(**transformer_inputs)[0]
    assert relative_difference(after, before) < 1e-6


def test_widening_records_the_channels_and_keeps_the_bias() -> None:
    model = narrow_transformer()
    bias = model.x_embedder.proj.bias
    assert not is_widened(model)
    widen_input(model)
    assert is_widened(model)
    assert (model.config["in_channels"], model.config["out_channels"]) == (32, 16)
    assert model.x_embedder.proj.bias is bias
    assert not model.x_embedder.proj.weight[:, 16:].any()


def test_widening_twice_is_widening_once() -> None:
    model = narrow_transformer()
    widen_input(model)
    weight = model.x_embedder.proj.weight.clone()
    widen_input(model)
    assert torch.equal(model.x_embedder.proj.weight, weight)


def test_another_number_of_input_channels_is_refused() -> None:
    with pytest.raises(BadInput, match="has 33 channels"):
        widen_input(narrow_transformer(in_channels=33))
