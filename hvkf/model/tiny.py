"""A HunyuanVideo checkpoint with all its parts, random and tiny, made without any download."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import HunyuanVideoPipeline
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from hvkf.errors import BadInput
from hvkf.model.loading import load_scheduler
from hvkf.model.tiny_text import make_clip_tokenizer, make_llama_tokenizer
from hvkf.seeds import seed_for

TRANSFORMER: Mapping[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "rope_axes_dim": (4, 6, 6),
}
VAE: Mapping[str, Any] = {
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
LLAMA: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    # Wider than usual: a few random layers must still tell captions apart.
    "initializer_range": 0.3,
}
CLIP: Mapping[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "projection_dim": 24,
    "initializer_factor": 8.0,
}


def build_tiny_checkpoint(
    folder: str | Path,
    seed: int = 0,
    *,
    transformer: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    llama: Mapping[str, Any] | None = None,
    clip: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random checkpoint in diffusers' layout: 1.8 MB, loadable as the real one is.

    Args:
        folder: Where it goes; files of an earlier one are overwritten.
        seed: Of the weights. Equal seeds and settings give equal bytes; each part has own draws.
        transformer: Settings of HunyuanVideoTransformer3DModel that replace the tiny ones. The
            text dimensions follow from `llama` and `clip`.
        vae: Settings of AutoencoderKLHunyuanVideo that replace the tiny ones.
        llama: Settings of the LlamaConfig that replace the tiny ones.
        clip: Settings of the CLIPTextConfig that replace the tiny ones.

    Returns:
        The folder.

    Raises:
        BadInput: the transformer's text dimensions differ from the text encoders'.
    """
    llama_settings = {**LLAMA, **(llama or {})}
    clip_settings = {**CLIP, **(clip or {})}
    text_dimensions = {
        "text_embed_dim": llama_settings["hidden_size"],
        "pooled_projection_dim": clip_settings["hidden_size"],
    }
    transformer_settings = {**TRANSFORMER, **text_dimensions, **(transformer or {})}
    for name, size in text_dimensions.items():
        if transformer_settings[name] != size:
            raise BadInput(
                f"The transformer's {name} {transformer_settings[name]} differs from its text "
                f"encoder's {size}: leave it out."
            )
    tokenizer, tokenizer_2 = make_llama_tokenizer(), make_clip_tokenizer()
    make_pipeline: Any = HunyuanVideoPipeline
    pipeline = make_pipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=_seeded(
            lambda: LlamaModel(LlamaConfig(**_token_ids(tokenizer), **llama_settings)),
            seed_for(seed, "text_encoder"),
        ),
        text_encoder_2=_seeded(
            lambda: CLIPTextModel(CLIPTextConfig(**_token_ids(tokenizer_2), **clip_settings)),
            seed_for(seed, "text_encoder_2"),
        ),
        transformer=_seeded(
            lambda: HunyuanVideoTransformer3DModel(**transformer_settings),
            seed_for(seed, "transformer"),
        ),
        vae=_seeded(
            lambda: AutoencoderKLHunyuanVideo(**{**VAE, **(vae or {})}), seed_for(seed, "vae")
        ),
        scheduler=load_scheduler(),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return Path(folder)


def _seeded(make: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def _token_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
