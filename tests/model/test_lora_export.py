import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline
from safetensors.torch import load_file

from hvkf.errors import BadInput
from hvkf.model.loading import load_transformer
from hvkf.model.lora import load_lora
from hvkf.model.lora_export import NORMS_NAME, Base, export_fused, export_lora
from hvkf.model.lora_file import read_lora, save_lora

from .conftest import GOLDEN_FOLDER, TINY_FOLDER, relative_difference
from .test_lora_file import REFERENCE_FILE

Transformer = HunyuanVideoTransformer3DModel
GoldenReader = Callable[[str], dict[str, torch.Tensor]]
TOLERANCE = 2e-5
BASE = Base(str(TINY_FOLDER), None, None, torch.float32)


def output_of(model: Transformer, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(**inputs)[0]
        return output


@pytest.fixture
def with_norms(transformer: Transformer, tmp_path: Path) -> Path:
    """The golden LoRA with trained norms beside it, alpha 8 recorded."""
    norms = {
        name: torch.rand_like(weight) + 0.5
        for name, weight in transformer.state_dict().items()
        if any(part in name for part in ("norm_q", "norm_k", "norm_added"))
    }
    weights = {**read_lora(REFERENCE_FILE).weights, **norms}
    return save_lora(weights, tmp_path / "with-norms.safetensors", alpha=8)


def test_the_references_layout_has_its_keys_and_shapes(tmp_path: Path) -> None:
    exported = export_lora(REFERENCE_FILE, tmp_path / "out", "reference", 8)
    assert exported.path == tmp_path / "out" / "i2v.sft"
    expected = json.loads((GOLDEN_FOLDER / "lora_keys.json").read_text())["keys"]
    tensors = load_file(exported.path)
    assert {name: list(weight.shape) for name, weight in tensors.items()} == expected


def test_the_reference_renders_an_exported_lora_of_another_alpha_right(
    tmp_path: Path,
    transformer: Transformer,
    transformer_inputs: dict[str, Any],
    golden: GoldenReader,
) -> None:
    """It takes alpha = rank, in diffusers' way; fault 8 is what it makes of the file as it is."""
    exported = export_lora(REFERENCE_FILE, tmp_path / "i2v.sft", "reference", 8)
    assert "alpha / rank = 8 / 4" in exported.notes[0]
    # Without metadata, as the reference has none.
    HunyuanVideoPipeline.load_lora_into_transformer(load_file(exported.path), transformer)
    output = output_of(transformer, transformer_inputs)
    assert (
        relative_difference(output, golden("transformer")["out.fused_alpha_corrected"]) < TOLERANCE
    )


def test_an_alpha_that_is_the_rank_changes_no_weight(tmp_path: Path) -> None:
    exported = export_lora(REFERENCE_FILE, tmp_path / "i2v.sft", "reference", 4)
    assert exported.notes == []
    before, after = load_file(REFERENCE_FILE), load_file(exported.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_references_layout_keeps_trained_norms(tmp_path: Path, with_norms: Path) -> None:
    exported = export_lora(with_norms, tmp_path / "i2v.sft", "reference", None)
    own, written = read_lora(with_norms), read_lora(exported.path)
    assert written.norms.keys() == own.norms.keys()
    assert all(torch.equal(written.norms[name], own.norms[name]) for name in own.norms)


def test_diffusers_loads_the_exported_file_with_its_alpha(
    tmp_path: Path,
    transformer: Transformer,
    transformer_inputs: dict[str, Any],
    golden: GoldenReader,
) -> None:
    exported = export_lora(REFERENCE_FILE, tmp_path, "diffusers", 8)
    state, metadata = HunyuanVideoPipeline.lora_state_dict(
        str(tmp_path), weight_name=exported.path.name, return_lora_metadata=True
    )
    HunyuanVideoPipeline.load_lora_into_transformer(state, transformer, metadata=metadata)
    output = output_of(transformer, transformer_inputs)
    assert (
        relative_difference(output, golden("transformer")["out.lora_alpha8_trainside"]) < TOLERANCE
    )


def test_diffusers_gets_trained_norms_in_a_file_of_their_own(
    tmp_path: Path, transformer: Transformer, transformer_inputs: dict[str, Any], with_norms: Path
) -> None:
    exported = export_lora(with_norms, tmp_path / "out", "diffusers", None)
    assert all("lora" in name for name in load_file(exported.path))
    assert NORMS_NAME in exported.notes[1]
    norms = load_file(tmp_path / "out" / NORMS_NAME)
    expected = load_transformer(TINY_FOLDER, dtype=torch.float32)
    load_lora(expected, with_norms)
    load_lora(transformer, exported.path)
    for name, parameter in transformer.named_parameters():
        if name in norms:
            parameter.data = norms[name]
    wanted = output_of(expected, transformer_inputs)
    assert relative_difference(output_of(transformer, transformer_inputs), wanted) < 1e-6


def test_a_fused_transformer_gives_what_the_lora_gives(
    tmp_path: Path, transformer: Transformer, transformer_inputs: dict[str, Any], with_norms: Path
) -> None:
    exported = export_fused(with_norms, tmp_path / "fused", None, BASE)
    load_lora(transformer, with_norms)
    wanted = output_of(transformer, transformer_inputs)
    ours = load_transformer(tmp_path / "fused", dtype=torch.float32)
    theirs = Transformer.from_pretrained(exported.path)
    assert theirs.config["in_channels"] == 32
    assert theirs.config["out_channels"] == 16
    assert relative_difference(output_of(ours, transformer_inputs), wanted) < TOLERANCE
    assert relative_difference(output_of(theirs.eval(), transformer_inputs), wanted) < TOLERANCE
    assert not list((tmp_path / "fused").glob(".*"))


def test_a_file_without_alpha_needs_one_and_a_recorded_one_is_kept(
    tmp_path: Path, with_norms: Path
) -> None:
    for layout in ("diffusers", "reference", "comfyui"):
        with pytest.raises(BadInput, match=r"records no alpha.*--lora-alpha"):
            export_lora(REFERENCE_FILE, tmp_path / "out", layout, None)
    with pytest.raises(BadInput, match="records no alpha"):
        export_fused(REFERENCE_FILE, tmp_path / "out", None, BASE)
    with pytest.raises(BadInput, match="records alpha 8, not 4"):
        export_lora(with_norms, tmp_path / "out", "comfyui", 4)
    assert not (tmp_path / "out").exists()


def test_comfyuis_file_has_an_alpha_for_every_layer(tmp_path: Path) -> None:
    exported = export_lora(REFERENCE_FILE, tmp_path, "comfyui", 8)
    with safetensors.safe_open(str(exported.path), framework="pt") as opened:
        names = set(opened.keys())
        scale = opened.get_tensor("diffusion_model.double_blocks.0.img_attn_qkv.alpha")
        shape = opened.get_tensor("diffusion_model.img_in.proj.reshape_weight").tolist()
    layers = {name.removesuffix(".lora_A.weight") for name in names if name.endswith("A.weight")}
    assert all(f"{layer}.alpha" in names for layer in layers)
    assert scale.item() == 3 * 8
    assert shape[1] == 32


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    there = tmp_path / "i2v.sft"
    there.write_bytes(b"mine")
    with pytest.raises(BadInput, match="is there already"):
        export_lora(REFERENCE_FILE, there, "reference", 8)
    (tmp_path / "transformer").mkdir()
    with pytest.raises(BadInput, match="is there already"):
        export_fused(REFERENCE_FILE, tmp_path, 8, BASE)
    assert there.read_bytes() == b"mine"


def test_equal_loras_are_written_as_equal_bytes(tmp_path: Path) -> None:
    for layout in ("diffusers", "reference", "comfyui"):
        first = export_lora(REFERENCE_FILE, tmp_path / "a", layout, 8).path
        second = export_lora(REFERENCE_FILE, tmp_path / "b", layout, 8).path
        assert first.read_bytes() == second.read_bytes()
