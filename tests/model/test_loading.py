import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from hvkf.errors import BadInput, TryAgain
from hvkf.model.loading import load_scheduler, load_text_encoders, load_transformer, load_vae

from .conftest import TINY_FOLDER

WEIGHTS = "diffusion_pytorch_model.safetensors"


def copy_part(folder: Path, part: str, **settings: Any) -> Path:
    """Copy one part of the tiny checkpoint, with other settings in its config."""
    shutil.copytree(TINY_FOLDER / part, folder / part)
    config = folder / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    return folder


def test_models_are_loaded_frozen_and_in_eval_mode() -> None:
    encoders = load_text_encoders(TINY_FOLDER, dtype=torch.bfloat16)
    for model in (
        load_transformer(TINY_FOLDER, dtype=torch.bfloat16),
        load_vae(TINY_FOLDER, dtype=torch.bfloat16),
        encoders.text_encoder,
        encoders.text_encoder_2,
    ):
        assert not model.training
        assert {parameter.requires_grad for parameter in model.parameters()} == {False}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_each_part_loads_without_the_others(tmp_path: Path) -> None:
    copy_part(tmp_path, "vae")
    vae = load_vae(tmp_path, dtype=torch.float32)
    assert vae.use_slicing
    assert vae.use_tiling
    with pytest.raises(BadInput, match="lacks the folder 'transformer'"):
        load_transformer(tmp_path, dtype=torch.float32)
    with pytest.raises(BadInput, match="lacks the folder 'tokenizer'"):
        load_text_encoders(tmp_path, dtype=torch.float32)


def test_a_transformer_that_was_saved_widened_loads_as_it_is(
    transformer: HunyuanVideoTransformer3DModel, tmp_path: Path
) -> None:
    with torch.no_grad():
        transformer.x_embedder.proj.weight[:, 16:] = 0.5
    transformer.save_pretrained(tmp_path / "transformer")
    again = load_transformer(tmp_path, dtype=torch.float32)
    assert torch.equal(again.x_embedder.proj.weight, transformer.x_embedder.proj.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"in_channels": 33}, "33 input and 16 output channels"),
        ({"image_condition_type": "token_replace"}, "image-to-video"),
    ],
)
def test_another_kind_of_transformer_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = copy_part(tmp_path, "transformer", **settings)
    with pytest.raises(BadInput, match=message):
        load_transformer(folder, dtype=torch.float32)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = copy_part(tmp_path, "transformer", num_attention_heads=4)
    with pytest.raises(BadInput, match=r"'transformer' of .* cannot be loaded"):
        load_transformer(folder, dtype=torch.float32)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    copy_part(tmp_path, "vae")
    weights = tmp_path / "vae" / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(BadInput, match="must be safetensors"):
        load_vae(tmp_path, dtype=torch.float32)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    copy_part(tmp_path, "vae")
    weights = tmp_path / "vae" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadInput, match=r"'vae' of .* cannot be loaded"):
        load_vae(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize("source", ["/nowhere/checkpoint", "./nowhere", "nowhere", "a/b/c"])
def test_a_folder_that_does_not_exist_is_not_sought_on_the_hub(source: str) -> None:
    with pytest.raises(BadInput, match="no checkpoint folder"):
        load_vae(source, dtype=torch.float32)


def test_a_hub_that_does_not_answer_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect") from LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(HunyuanVideoTransformer3DModel, "load_config", no_answer)
    with pytest.raises(TryAgain, match="hub"):
        load_transformer("owner/model", dtype=torch.float32)


def test_the_schedulers_shift_is_the_references() -> None:
    assert load_scheduler().config["shift"] == 7.0
    assert load_scheduler(3.0).config["shift"] == 3.0
