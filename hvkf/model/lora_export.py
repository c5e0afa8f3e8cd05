"""Writing a LoRA for other programs: the reference, diffusers, ComfyUI, or fused into its model."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import safetensors.torch
import torch

from hvkf.errors import BadInput
from hvkf.model.comfyui_layout import to_comfyui
from hvkf.model.loading import load_transformer
from hvkf.model.lora import fuse_lora, load_lora
from hvkf.model.lora_file import FILE_NAME, PREFIX, SUFFIXES, LoraFile, read_lora, save_lora
from hvkf.storage import TEMPORARY_PREFIX, explain_full_disk

Format = Literal["diffusers", "reference", "comfyui", "fused"]
FILE_NAMES = {
    "diffusers": FILE_NAME,
    "reference": "i2v.sft",
    "comfyui": "keyframe-lora-comfyui.safetensors",
}
NORMS_NAME = "transformer_norm_weights.safetensors"
TRANSFORMER_FOLDER = "transformer"


class Exported(NamedTuple):
    """What was written, and what its user should know."""

    path: Path
    notes: list[str]


class Base(NamedTuple):
    """The checkpoint to fuse a LoRA into, and the type to store the result in."""

    source: str
    revision: str | None
    variant: str | None
    dtype: torch.dtype


def chosen_alpha(contents: LoraFile, given: float | None, origin: str | Path) -> float:
    """Return the alpha that a file records, or else the given one.

    Raises:
        BadInput: the two differ, or there is neither: alpha = rank would be a guess that is baked
            into what is written.
    """
    if contents.alpha is None and given is None:
        raise BadInput(
            f"{origin} records no alpha: give the one it was trained with as --lora-alpha (the "
            f"reference's default is the rank, here {contents.rank})."
        )
    if contents.alpha is not None and given not in (None, contents.alpha):
        raise BadInput(
            f"{origin} records alpha {contents.alpha:g}, not {given:g}: leave --lora-alpha out."
        )
    return float(contents.alpha if contents.alpha is not None else given or 0.0)


def export_lora(lora: Path, out: Path, layout: str, alpha: float | None) -> Exported:
    """Write a LoRA as a file of another layout.

    Args:
        lora: A .safetensors or .sft file.
        out: The file to write, or a folder for it; nothing is overwritten.
        layout: diffusers, reference or comfyui.
        alpha: Alpha of a file that records none.

    Raises:
        BadInput: the LoRA cannot be read, `out` exists, or a layer has no counterpart.
    """
    contents = read_lora(lora)
    chosen = chosen_alpha(contents, alpha, lora)
    file = out if out.suffix in SUFFIXES else out / FILE_NAMES[layout]
    _check_new(file)
    if layout == "diffusers":
        return _for_diffusers(contents, chosen, file)
    if layout == "reference":
        return _for_the_reference(contents, chosen, file)
    _write(file, to_comfyui(contents, chosen))
    notes = ["it wants a model that is given the keyframes' latents beside the noisy ones"]
    return Exported(file, notes)


def _for_diffusers(contents: LoraFile, alpha: float, file: Path) -> Exported:
    weights = {name: weight for name, weight in contents.weights.items() if ".lora_" in name}
    norms_file = file.parent / NORMS_NAME
    notes = ["widen the transformer's input to 32 channels before pipe.load_lora_weights"]
    if contents.norms:
        _check_new(norms_file)
        _write(norms_file, contents.norms)
        notes.append(
            f"{norms_file.name} holds its trained norm weights, which diffusers does not take from "
            "a LoRA: transformer.load_state_dict(load_file(...), strict=False)"
        )
    with explain_full_disk(file.parent):
        save_lora(weights, file, alpha=alpha)
    return Exported(file, notes)


def _for_the_reference(contents: LoraFile, alpha: float, file: Path) -> Exported:
    """Write the reference's keys; it takes alpha for the rank, so that B is scaled instead."""
    scale = alpha / contents.rank
    tensors = {f"{PREFIX}{name}": weight.clone() for name, weight in contents.weights.items()}
    notes = []
    if scale != 1.0:
        for name, up in contents.up.items():
            tensors[f"{PREFIX}{name}.lora_B.weight"] = up * scale
        notes.append(
            f"lora_B is multiplied by alpha / rank = {alpha:g} / {contents.rank}, since the "
            "reference takes alpha = rank"
        )
    _write(file, tensors)
    return Exported(file, notes)


def export_fused(lora: Path, out: Path, alpha: float | None, base: Base) -> Exported:
    """Merge a LoRA into a transformer and write that, widened, in diffusers' layout.

    Args:
        lora: A .safetensors or .sft file; its norm weights replace the transformer's.
        out: A folder; the transformer goes into `transformer/` in it.
        alpha: Alpha of a file that records none.
        base: The checkpoint that the LoRA was trained on.

    Raises:
        BadInput: the LoRA does not fit the checkpoint, or there is a transformer in `out`.
    """
    folder = out / TRANSFORMER_FOLDER
    _check_new(folder)
    chosen = chosen_alpha(read_lora(lora), alpha, lora)
    transformer = load_transformer(
        base.source,
        revision=base.revision,
        variant=base.variant,
        dtype=base.dtype,
        attention="sdpa",
    )
    load_lora(transformer, lora, alpha=chosen)
    fuse_lora(transformer)
    temporary = out / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    with explain_full_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        transformer.save_pretrained(temporary, safe_serialization=True)
        temporary.rename(folder)
    notes = [
        "its input has 32 channels; the checkpoint's other folders (vae, text_encoder, "
        "text_encoder_2, tokenizer, tokenizer_2, scheduler) stay as they are"
    ]
    return Exported(folder, notes)


def _check_new(path: Path) -> None:
    if path.exists():
        raise BadInput(f"{path} is there already: name another place, or remove it first.")


def _write(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors whole or not at all."""
    with explain_full_disk(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
        try:
            safetensors.torch.save_file(
                {name: tensor.contiguous() for name, tensor in sorted(tensors.items())},
                temporary,
                metadata={"format": "pt"},
            )
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
