"""What ComfyUI makes of an exported LoRA, rebuilt here from its rules, against our own fusing."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.errors import BadInput
from hvkf.model.comfyui_layout import to_comfyui
from hvkf.model.lora import add_lora, fuse_lora, load_lora, lora_state_dict
from hvkf.model.lora_file import LoraFile, lora_config, read_lora, save_lora

from .conftest import TINY_FOLDER, relative_difference

Transformer = HunyuanVideoTransformer3DModel
State = dict[str, torch.Tensor]
RANK, ALPHA = 3, 5.0
HUNYUAN_WIDTH = 3072

DOUBLE = {
    "img_attn_qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "img_attn_proj": ["attn.to_out.0"],
    "img_mlp.fc1": ["ff.net.0.proj"],
    "img_mlp.fc2": ["ff.net.2"],
    "img_mod.linear": ["norm1.linear"],
    "txt_attn_qkv": ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"],
    "txt_attn_proj": ["attn.to_add_out"],
    "txt_mlp.fc1": ["ff_context.net.0.proj"],
    "txt_mlp.fc2": ["ff_context.net.2"],
    "txt_mod.linear": ["norm1_context.linear"],
    "img_attn_q_norm": ["attn.norm_q"],
    "img_attn_k_norm": ["attn.norm_k"],
    "txt_attn_q_norm": ["attn.norm_added_q"],
    "txt_attn_k_norm": ["attn.norm_added_k"],
}
SINGLE = {
    "linear1": ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"],
    "linear2": ["proj_out"],
    "modulation.linear": ["norm.linear"],
    "q_norm": ["attn.norm_q"],
    "k_norm": ["attn.norm_k"],
}
REFINER = {
    "self_attn_qkv": ["attn.to_q", "attn.to_k", "attn.to_v"],
    "self_attn_proj": ["attn.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
    "adaLN_modulation.1": ["norm_out.linear"],
}
TOP = {
    "img_in.proj": "x_embedder.proj",
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
# ComfyUI's model has other names than Tencent's checkpoint; these are its replacements on loading.
COMFYUI_NAMES = [
    ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
    ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
    ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
    ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
    ("_mod.linear.", "_mod.lin."),
    ("_attn_qkv.", "_attn.qkv."),
    ("mlp.fc1.", "mlp.0."),
    ("mlp.fc2.", "mlp.2."),
    ("_attn_q_norm.weight", "_attn.norm.query_norm.weight"),
    ("_attn_k_norm.weight", "_attn.norm.key_norm.weight"),
    (".q_norm.weight", ".norm.query_norm.weight"),
    (".k_norm.weight", ".norm.key_norm.weight"),
    ("_attn_proj.", "_attn.proj."),
    (".modulation.linear.", ".modulation.lin."),
    ("_in.mlp.0.", "_in.in_layer."),
    ("_in.mlp.2.", "_in.out_layer."),
]


def tencent_weights(model: Transformer) -> State:
    """Name the model's weights as Tencent's checkpoint does."""
    own = model.state_dict()
    named: State = {}
    for prefix, ours, table in (
        ("double_blocks", "transformer_blocks", DOUBLE),
        ("single_blocks", "single_transformer_blocks", SINGLE),
        (
            "txt_in.individual_token_refiner.blocks",
            "context_embedder.token_refiner.refiner_blocks",
            REFINER,
        ),
    ):
        inside = [name for name in own if name.startswith(f"{ours}.")]
        numbers = {name.removeprefix(f"{ours}.").split(".")[0] for name in inside}
        for number in sorted(numbers):
            for name, parts in table.items():
                rows = [own[f"{ours}.{number}.{part}.weight"] for part in parts]
                named[f"{prefix}.{number}.{name}.weight"] = torch.cat(rows)
    named |= {f"{name}.weight": own[f"{ours}.weight"] for name, ours in TOP.items()}
    scale, shift = own["norm_out.linear.weight"].chunk(2)
    named["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    return named


def comfyui_name(name: str) -> str:
    for old, new in COMFYUI_NAMES:
        name = name.replace(old, new)
    return name


def comfyui_keys(weights: State) -> dict[str, str]:
    """Say which weight each LoRA key stands for, by ComfyUI's own names and its aliases."""
    keys = {}
    for weight in weights:
        module = weight.removesuffix(".weight")
        keys[f"diffusion_model.{module}"] = weight
        alias = f"{module}."
        for new, old in (
            ("_mod.lin.", "_mod.linear."),
            ("_attn.qkv.", "_attn_qkv."),
            ("_attn.proj.", "_attn_proj."),
            ("mlp.0.", "mlp.fc1."),
            ("mlp.2.", "mlp.fc2."),
            (".modulation.lin.", ".modulation.linear."),
        ):
            alias = alias.replace(new, old)
        keys[f"diffusion_model.{alias.removesuffix('.')}"] = weight
    return keys


def wrapper_keys(weights: State) -> dict[str, str]:
    """The same for the wrapper, whose model has Tencent's names."""
    return {f"diffusion_model.{name.removesuffix('.weight')}": name for name in weights}


def patched(weights: State, lora: State, keys: dict[str, str]) -> tuple[State, set[str]]:
    """Apply a LoRA by ComfyUI's rule; return the weights and the keys that were of use."""
    changed, used = dict(weights), set()
    for key, target in keys.items():
        if f"{key}.lora_A.weight" in lora:
            down, up = lora[f"{key}.lora_A.weight"], lora[f"{key}.lora_B.weight"]
            alpha = lora[f"{key}.alpha"].item()
            weight = weights[target]
            if f"{key}.reshape_weight" in lora:
                shape = lora[f"{key}.reshape_weight"].tolist()
                padded = torch.zeros(shape)
                padded[tuple(slice(0, size) for size in weight.shape)] = weight
                weight = padded
                used.add(f"{key}.reshape_weight")
            delta = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            changed[target] = weight + alpha / down.shape[0] * delta
            used |= {f"{key}.{part}" for part in ("lora_A.weight", "lora_B.weight", "alpha")}
        elif f"{key}.set_weight" in lora:
            changed[target] = lora[f"{key}.set_weight"]
            used.add(f"{key}.set_weight")
    return changed, used


def every_linear_layer(model: Transformer) -> list[str]:
    """The modulations, too, which "all-linear" leaves out."""
    linear = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    return [*linear, "x_embedder.proj"]


@pytest.fixture
def lora(transformer: Transformer, tmp_path: Path) -> Path:
    """A LoRA on every layer there is, with trained norms."""
    adapted = copy.deepcopy(transformer)
    adapted.add_adapter(lora_config(RANK, ALPHA, every_linear_layer(adapted)), "default")
    state = {name: torch.randn_like(weight) for name, weight in lora_state_dict(adapted).items()}
    norms = {
        name: torch.rand_like(weight) + 0.5
        for name, weight in transformer.state_dict().items()
        if any(part in name for part in ("norm_q", "norm_k", "norm_added"))
    }
    assert len(norms) == 4 + 2 * 2
    return save_lora({**state, **norms}, tmp_path / "lora.safetensors", alpha=ALPHA)


@pytest.mark.parametrize("program", ["comfyui", "wrapper"])
def test_what_comfyui_patches_is_what_fusing_gives(
    program: str, transformer: Transformer, lora: Path
) -> None:
    # ComfyUI loads the narrow model; the LoRA widens it.
    base = tencent_weights(Transformer.from_pretrained(TINY_FOLDER, subfolder="transformer"))
    assert base["img_in.proj.weight"].shape[1] == 16
    load_lora(transformer, lora)
    fuse_lora(transformer)
    expected = tencent_weights(transformer)
    exported = to_comfyui(read_lora(lora), ALPHA)
    if program == "comfyui":
        base = {comfyui_name(name): weight for name, weight in base.items()}
        expected = {comfyui_name(name): weight for name, weight in expected.items()}
        found, used = patched(base, exported, comfyui_keys(base))
    else:
        found, used = patched(base, exported, wrapper_keys(base))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert relative_difference(found[name], weight) < 1e-6, name
    # Every layer is there for each program; what is named for the other is passed over.
    unused = {name.rpartition(".lora_")[0] for name in set(exported) - used if ".lora_" in name}
    assert len(unused) == 8


def test_a_part_of_a_fused_layer_leaves_the_others_as_they_are(transformer: Transformer) -> None:
    adapted = copy.deepcopy(transformer)
    add_lora(adapted, rank=RANK, alpha=ALPHA, target=["single_transformer_blocks.1.attn.to_k"])
    state = {name: torch.randn_like(weight) for name, weight in lora_state_dict(adapted).items()}
    name = "single_transformer_blocks.1.attn.to_k"
    down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
    exported = to_comfyui(LoraFile({name: down}, {name: up}, {}, RANK, ALPHA), ALPHA)
    base = tencent_weights(transformer)
    found, used = patched(base, exported, wrapper_keys(base))
    assert used == set(exported)
    width = down.shape[1]
    change = found["single_blocks.1.linear1.weight"] - base["single_blocks.1.linear1.weight"]
    assert change.shape == (7 * width, width)
    assert torch.allclose(change[width : 2 * width], ALPHA / RANK * up @ down, atol=1e-5)
    assert not change[:width].any()
    assert not change[2 * width :].any()


def big_lora() -> LoraFile:
    """A LoRA of rank 2 on layers of HunyuanVideo's true width, which diffusers' reader assumes."""
    wide = 4 * HUNYUAN_WIDTH
    sizes = {
        "transformer_blocks.7.attn.to_out.0": (HUNYUAN_WIDTH, HUNYUAN_WIDTH),
        "transformer_blocks.7.ff.net.0.proj": (HUNYUAN_WIDTH, wide),
        "transformer_blocks.7.ff_context.net.2": (wide, HUNYUAN_WIDTH),
        "single_transformer_blocks.39.proj_mlp": (HUNYUAN_WIDTH, wide),
        "single_transformer_blocks.39.proj_out": (HUNYUAN_WIDTH + wide, HUNYUAN_WIDTH),
        "time_text_embed.timestep_embedder.linear_1": (256, HUNYUAN_WIDTH),
        "proj_out": (HUNYUAN_WIDTH, 64),
    }
    square = (HUNYUAN_WIDTH, HUNYUAN_WIDTH)
    sizes |= {f"transformer_blocks.7.{part}": square for part in DOUBLE["img_attn_qkv"]}
    sizes |= {f"transformer_blocks.7.{part}": square for part in DOUBLE["txt_attn_qkv"]}
    sizes |= {f"single_transformer_blocks.39.{part}": square for part in SINGLE["linear1"][:3]}
    down = {name: torch.randn(2, size[0]) for name, size in sizes.items()}
    up = {name: torch.randn(size[1], 2) for name, size in sizes.items()}
    return LoraFile(down, up, {}, 2, None)


def test_diffusers_reads_the_exported_names_back() -> None:
    contents = big_lora()
    exported = {
        name: weight
        for name, weight in to_comfyui(contents, 2.0).items()
        if ".lora_" in name and "in_layer" not in name
    }
    ranks = {
        name.removesuffix(".lora_A.weight"): len(weight)
        for name, weight in exported.items()
        if name.endswith("lora_A.weight")
    }
    assert ranks["diffusion_model.double_blocks.7.img_attn_qkv"] == 6
    assert ranks["diffusion_model.single_blocks.39.linear1"] == 8
    convert: Any = _convert_hunyuan_video_lora_to_diffusers
    restored = convert(exported)
    assert {
        name.removeprefix("transformer.").removesuffix(".lora_A.weight")
        for name in restored
        if name.endswith("lora_A.weight")
    } == set(contents.down)
    for name, down in contents.down.items():
        # A few rows stand for all: the full matrices would take a gigabyte.
        restored_up = restored[f"transformer.{name}.lora_B.weight"]
        assert restored_up.shape[0] == contents.up[name].shape[0]
        found = restored_up[::8] @ restored[f"transformer.{name}.lora_A.weight"]
        assert relative_difference(found, contents.up[name][::8] @ down) < 1e-5, name


def test_a_layer_without_a_counterpart_is_named() -> None:
    strange = LoraFile({"vae.conv": torch.ones(1, 2)}, {"vae.conv": torch.ones(2, 1)}, {}, 1, 1.0)
    with pytest.raises(BadInput, match=r"vae\.conv"):
        to_comfyui(strange, 1.0)
