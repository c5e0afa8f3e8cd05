"""The model's parts on the meta device: from a folder's configuration, or HunyuanVideo's own."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from hvkf.errors import BadInput
from hvkf.estimate.counting import META
from hvkf.model.text import drop_unused_layers
from hvkf.model.widening import widen_input

# Llama-3-8B and CLIP-L, as in HunyuanVideo's checkpoint. diffusers' own defaults are the
# published transformer and VAE.
LLAMA: Mapping[str, Any] = {
    "vocab_size": 128320,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
CLIP: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
FOLDERS = ("transformer", "vae", "text_encoder", "text_encoder_2")


@dataclass(frozen=True)
class Shapes:
    """The settings of the model's parts.

    Attributes:
        name: Where they are from, in words.
        settings: Of transformer, vae, text_encoder and text_encoder_2.
    """

    name: str
    settings: Mapping[str, Mapping[str, Any]]

    def transformer(self, dtype: torch.dtype) -> HunyuanVideoTransformer3DModel:
        """Make the transformer, widened and frozen, without values."""
        with META:
            made: HunyuanVideoTransformer3DModel = HunyuanVideoTransformer3DModel(
                **_plain(self.settings["transformer"])
            )
        _to(made, dtype)
        with META:
            widen_input(made)
        return made

    def vae(self, dtype: torch.dtype) -> AutoencoderKLHunyuanVideo:
        """Make the VAE, tiled and sliced as `load_vae` does, without values."""
        with META:
            made: AutoencoderKLHunyuanVideo = AutoencoderKLHunyuanVideo(
                **_plain(self.settings["vae"])
            )
        made.enable_slicing()
        made.enable_tiling()
        _to(made, dtype)
        return made

    def llama(self, dtype: torch.dtype) -> LlamaModel:
        """Make the first text encoder, as much of it as is used, without values."""
        with META:
            made = LlamaModel(LlamaConfig(**self.settings["text_encoder"]))
        drop_unused_layers(made)
        _to(made, dtype)
        return made

    def clip(self, dtype: torch.dtype) -> CLIPTextModel:
        """Make the second text encoder without values."""
        with META:
            made = CLIPTextModel(CLIPTextConfig(**self.settings["text_encoder_2"]))
        _to(made, dtype)
        return made


def published_shapes() -> Shapes:
    """Give HunyuanVideo's published sizes (13 billion weights)."""
    settings = {"transformer": {}, "vae": {}, "text_encoder": LLAMA, "text_encoder_2": CLIP}
    return Shapes("HunyuanVideo as published", settings)


def shapes_of_folder(folder: Path) -> Shapes:
    """Read the parts' settings from a checkpoint in diffusers' layout; no weights are read.

    Raises:
        BadInput: a part's config.json is missing or is no JSON.
    """
    settings = {}
    for part in FOLDERS:
        file = folder / part / "config.json"
        try:
            settings[part] = json.loads(file.read_text())
        except (OSError, ValueError) as fault:
            raise BadInput(
                f"{file} cannot be read ({fault}): the checkpoint must have diffusers' "
                "HunyuanVideo layout."
            ) from None
    return Shapes(str(folder), settings)


def num_bytes(module: torch.nn.Module, *, trained: bool | None = None) -> int:
    """Count the bytes of a module's weights and buffers; of trained or frozen weights if told."""
    weights = [weight for weight in module.parameters() if trained in (None, weight.requires_grad)]
    buffers = [] if trained else list(module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in [*weights, *buffers])


def num_parameters(module: torch.nn.Module) -> int:
    """Count the weights of a module."""
    return sum(weight.numel() for weight in module.parameters())


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith("_")}


def _to(part: torch.nn.Module, dtype: torch.dtype) -> None:
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # there is no loading that would be better
    try:
        part.to(dtype).requires_grad_(False).eval()
    finally:
        diffusers_logging.set_verbosity(verbosity)
