"""A LoRA under Tencent's names for the layers, as ComfyUI reads it: fused qkv, an alpha per layer.

The names are those of Tencent's checkpoint, which both ComfyUI's loader and the HunyuanVideo
wrapper's take for all blocks; the layers that ComfyUI itself calls otherwise are there under both
names, and each loader passes over the other's. The wrapper runs keyframe LoRAs.
"""

import re
from collections.abc import Mapping, Sequence

import torch

from hvkf.errors import BadInput
from hvkf.model.lora_file import LoraFile, shown

PREFIX = "diffusion_model."
MLP_RATIO = 4

BLOCKS = {
    "transformer_blocks": "double_blocks",
    "single_transformer_blocks": "single_blocks",
    "context_embedder.token_refiner.refiner_blocks": "txt_in.individual_token_refiner.blocks",
}
# Within a block: the layers that Tencent keeps as one, in the order of its rows.
FUSED: dict[str, dict[str, tuple[str, ...]]] = {
    "double_blocks": {
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
    "txt_in.individual_token_refiner.blocks": {
        "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v")
    },
}
RENAMED = {
    "double_blocks": {
        "attn.to_out.0": "img_attn_proj",
        "attn.to_add_out": "txt_attn_proj",
        "ff.net.0.proj": "img_mlp.fc1",
        "ff.net.2": "img_mlp.fc2",
        "ff_context.net.0.proj": "txt_mlp.fc1",
        "ff_context.net.2": "txt_mlp.fc2",
        "norm1.linear": "img_mod.linear",
        "norm1_context.linear": "txt_mod.linear",
    },
    "single_blocks": {"proj_out": "linear2", "norm.linear": "modulation.linear"},
    "txt_in.individual_token_refiner.blocks": {
        "attn.to_out.0": "self_attn_proj",
        "ff.net.0.proj": "mlp.fc1",
        "ff.net.2": "mlp.fc2",
        "norm_out.linear": "adaLN_modulation.1",
    },
}
INPUT_LAYER = "img_in.proj"
LAST_MODULATION = "final_layer.adaLN_modulation.1"
OUTSIDE_BLOCKS = {
    "x_embedder.proj": INPUT_LAYER,
    "time_text_embed.timestep_embedder.linear_1": "time_in.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "time_in.mlp.2",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.mlp.0",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.mlp.2",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "context_embedder.proj_in": "txt_in.input_embedder",
    "context_embedder.time_text_embed.timestep_embedder.linear_1": "txt_in.t_embedder.mlp.0",
    "context_embedder.time_text_embed.timestep_embedder.linear_2": "txt_in.t_embedder.mlp.2",
    "context_embedder.time_text_embed.text_embedder.linear_1": "txt_in.c_embedder.linear_1",
    "context_embedder.time_text_embed.text_embedder.linear_2": "txt_in.c_embedder.linear_2",
    "norm_out.linear": LAST_MODULATION,
    "proj_out": "final_layer.linear",
}
ALSO_CALLED = {
    "time_in.mlp.0": "time_in.in_layer",
    "time_in.mlp.2": "time_in.out_layer",
    "guidance_in.mlp.0": "guidance_in.in_layer",
    "guidance_in.mlp.2": "guidance_in.out_layer",
    "txt_in.t_embedder.mlp.0": "txt_in.t_embedder.in_layer",
    "txt_in.t_embedder.mlp.2": "txt_in.t_embedder.out_layer",
    "txt_in.c_embedder.linear_1": "txt_in.c_embedder.in_layer",
    "txt_in.c_embedder.linear_2": "txt_in.c_embedder.out_layer",
}
# Tencent's name, and ComfyUI's own after it; the newer of these has no "scale".
NORMS = {
    "double_blocks": {
        "attn.norm_q": ("img_attn_q_norm", "img_attn.norm.query_norm"),
        "attn.norm_k": ("img_attn_k_norm", "img_attn.norm.key_norm"),
        "attn.norm_added_q": ("txt_attn_q_norm", "txt_attn.norm.query_norm"),
        "attn.norm_added_k": ("txt_attn_k_norm", "txt_attn.norm.key_norm"),
    },
    "single_blocks": {
        "attn.norm_q": ("q_norm", "norm.query_norm"),
        "attn.norm_k": ("k_norm", "norm.key_norm"),
    },
}

Pair = tuple[torch.Tensor, torch.Tensor]


def to_comfyui(contents: LoraFile, alpha: float) -> dict[str, torch.Tensor]:
    """Name and fuse a LoRA's weights as ComfyUI wants them; what they change stays the same.

    Layers that Tencent fuses become one of their ranks' sum, exactly: their A matrices lie one
    below the other and their B matrices along a diagonal.

    Args:
        contents: The LoRA.
        alpha: Its alpha.

    Returns:
        "diffusion_model.<layer>.lora_A.weight", ".lora_B.weight" and ".alpha"; ".set_weight" for
        trained norms; ".reshape_weight" for the widened input.

    Raises:
        BadInput: a layer has no counterpart.
    """
    tensors: dict[str, torch.Tensor] = {}
    left = set(contents.down)
    for name, members in _fused_layers(contents.down).items():
        present = [member for member in members if member in contents.down]
        pair = _fuse(members, contents)
        _put(tensors, name, pair, alpha * len(present))
        left -= set(present)
    unknown = []
    for name in sorted(left):
        target = _renamed(name)
        if target is None:
            unknown.append(name)
            continue
        down, up = contents.down[name], contents.up[name]
        if target == LAST_MODULATION:
            # diffusers keeps scale before shift, Tencent shift before scale.
            up = torch.cat(up.chunk(2)[::-1])
        _put(tensors, target, (down, up), alpha)
        if target in ALSO_CALLED:
            _put(tensors, ALSO_CALLED[target], (down.clone(), up.clone()), alpha)
    if unknown:
        raise BadInput(f"The LoRA adapts layers that ComfyUI's model lacks: {shown(unknown)}.")
    return tensors | _norms(contents.norms)


def _split_block(name: str) -> tuple[str, str, str] | None:
    """Split a layer's name into Tencent's name of its kind of block, the number, and the rest."""
    for ours, theirs in BLOCKS.items():
        matched = re.fullmatch(rf"{re.escape(ours)}\.(\d+)\.(.+)", name)
        if matched:
            return theirs, matched.group(1), matched.group(2)
    return None


def _fused_layers(names: Mapping[str, torch.Tensor]) -> dict[str, list[str]]:
    """Name the fused layers that are adapted, with the layers that each is made of."""
    found: dict[str, list[str]] = {}
    for name in names:
        split = _split_block(name)
        if split is None:
            continue
        kind, number, rest = split
        for fused, members in FUSED[kind].items():
            if rest in members:
                block = name.removesuffix(rest)
                found[f"{kind}.{number}.{fused}"] = [block + member for member in members]
    return found


def _fuse(members: Sequence[str], contents: LoraFile) -> Pair:
    present = [member for member in members if member in contents.down]
    down = torch.cat([contents.down[member] for member in present])
    width = down.shape[1]
    rows = []
    for member in members:
        if member in present:
            up = contents.up[member]
            before = up.new_zeros(len(up), contents.rank * present.index(member))
            after = up.new_zeros(len(up), len(down) - before.shape[1] - up.shape[1])
            rows.append(torch.cat([before, up, after], dim=1))
        else:
            num_rows = width * MLP_RATIO if member.endswith("proj_mlp") else width
            rows.append(down.new_zeros(num_rows, len(down)))
    return down, torch.cat(rows)


def _renamed(name: str) -> str | None:
    split = _split_block(name)
    if split is None:
        return OUTSIDE_BLOCKS.get(name)
    kind, number, rest = split
    target = RENAMED[kind].get(rest)
    return None if target is None else f"{kind}.{number}.{target}"


def _put(tensors: dict[str, torch.Tensor], name: str, pair: Pair, alpha: float) -> None:
    down, up = pair
    tensors[f"{PREFIX}{name}.lora_A.weight"] = down.contiguous()
    tensors[f"{PREFIX}{name}.lora_B.weight"] = up.contiguous()
    tensors[f"{PREFIX}{name}.alpha"] = torch.tensor(float(alpha))
    if name == INPUT_LAYER:
        # ComfyUI pads the base model's narrow weight with zeros to this shape.
        shape = [up.shape[0], *down.shape[1:]]
        tensors[f"{PREFIX}{name}.reshape_weight"] = torch.tensor(shape)


def _norms(norms: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name trained norm weights, which replace the base model's."""
    tensors = {}
    for name, weight in norms.items():
        split = _split_block(name.removesuffix(".weight"))
        if split is None or split[2] not in NORMS.get(split[0], {}):
            raise BadInput(f"The LoRA holds a norm that ComfyUI's model lacks: {name}.")
        kind, number, rest = split
        tencent, comfyui = NORMS[kind][rest]
        for target in (tencent, comfyui, f"{comfyui}.scale"):
            tensors[f"{PREFIX}{kind}.{number}.{target}.set_weight"] = weight.clone()
    return tensors
