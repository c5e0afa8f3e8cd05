"""Loading the parts of a HunyuanVideo checkpoint in diffusers' layout, each by itself."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, LlamaModel

from hvkf.errors import BadInput, TryAgain
from hvkf.model.attention import apply_attention
from hvkf.model.text import check_prefix, drop_unused_layers
from hvkf.model.widening import INPUT_CHANNELS, LATENT_CHANNELS, widen_input
from hvkf.model_source import HUNYUAN_SHIFT, shift_of
from hvkf.stops import raise_if_told

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextEncoders:
    """The parts that turn captions into embeddings; Llama without the layers that are not used."""

    tokenizer: Any
    text_encoder: LlamaModel
    tokenizer_2: CLIPTokenizer
    text_encoder_2: CLIPTextModel


def load_transformer(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype,
    attention: str = "auto",
    device: torch.device | str = "cpu",
    trains: bool = False,
) -> HunyuanVideoTransformer3DModel:
    """Load the transformer, frozen, in eval mode, its input widened to 32 channels.

    Args:
        source: Hub id or folder of a checkpoint in diffusers' layout.
        revision: Revision of a hub id.
        variant: Variant of the weights files, such as "bf16".
        dtype: Type of the weights.
        attention: auto, sdpa, flash or sage; see `hvkf.model.attention`.
        device: Where to put it.
        trains: Whether gradients will flow through it (sage attention has none).

    Raises:
        BadInput: the part is missing, or is no HunyuanVideo text-to-video transformer.
        TryAgain: the hub did not answer.
    """
    _check_folder(source, "transformer")
    options = {"subfolder": "transformer", "revision": revision}
    config = _load(HunyuanVideoTransformer3DModel.load_config, source, **options)
    _check_transformer_config(config, source)
    transformer: HunyuanVideoTransformer3DModel = _load(
        HunyuanVideoTransformer3DModel.from_pretrained,
        source,
        variant=variant,
        torch_dtype=dtype,
        use_safetensors=True,
        **options,
    )
    widen_input(transformer)
    _freeze(transformer, device)
    apply_attention(transformer, attention, trains=trains)
    return transformer


def load_vae(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> AutoencoderKLHunyuanVideo:
    """Load the VAE, frozen, in eval mode, with tiling and slicing as in the reference.

    Raises:
        BadInput: the part is missing, or has other than 16 latent channels.
        TryAgain: the hub did not answer.
    """
    _check_folder(source, "vae")
    vae: AutoencoderKLHunyuanVideo = _load(
        AutoencoderKLHunyuanVideo.from_pretrained,
        source,
        subfolder="vae",
        revision=revision,
        variant=variant,
        torch_dtype=dtype,
        use_safetensors=True,
    )
    channels = vae.config["latent_channels"]
    if channels != LATENT_CHANNELS:
        raise BadInput(
            f"The VAE of {str(source)!r} has {channels} latent channels where HunyuanVideo has "
            f"{LATENT_CHANNELS}: take hunyuanvideo-community/HunyuanVideo."
        )
    vae.enable_slicing()
    vae.enable_tiling()
    _freeze(vae, device)
    return vae


def load_text_encoders(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> TextEncoders:
    """Load both tokenizers and text encoders, frozen, in eval mode.

    Raises:
        BadInput: a part is missing, or the tokenizer does not fit the prompt template.
        TryAgain: the hub did not answer.
    """
    for part in ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"):
        _check_folder(source, part)
    weights = {"variant": variant, "dtype": dtype, "use_safetensors": True, "revision": revision}
    tokenizer = _load(
        AutoTokenizer.from_pretrained,
        source,
        subfolder="tokenizer",
        revision=revision,
        trust_remote_code=False,  # left out, a terminal is asked whether to run a checkpoint's code
    )
    check_prefix(tokenizer)
    llama = _load(LlamaModel.from_pretrained, source, subfolder="text_encoder", **weights)
    tokenizer_2 = _load(
        CLIPTokenizer.from_pretrained, source, subfolder="tokenizer_2", revision=revision
    )
    clip = _load(CLIPTextModel.from_pretrained, source, subfolder="text_encoder_2", **weights)
    drop_unused_layers(llama)
    _freeze(llama, device)
    _freeze(clip, device)
    return TextEncoders(tokenizer, llama, tokenizer_2, clip)


def hub_shift(source: str, *, revision: str | None = None) -> float:
    """Read the shift of the scheduler that a checkpoint of the hub comes with.

    Raises:
        BadInput: it has no scheduler, or one without a positive shift.
        TryAgain: the hub did not answer.
    """
    load_config = FlowMatchEulerDiscreteScheduler.load_config
    config = _load(load_config, source, subfolder="scheduler", revision=revision)
    return shift_of(json.dumps(dict(config)).encode(), source)


def load_scheduler(shift: float = HUNYUAN_SHIFT) -> FlowMatchEulerDiscreteScheduler:
    """Make the Euler scheduler of flow matching with a constant shift towards noise."""
    scheduler: FlowMatchEulerDiscreteScheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return scheduler


def _freeze(part: torch.nn.Module, device: torch.device | str) -> None:
    part.requires_grad_(False).eval().to(device)


def _check_folder(source: str | Path, part: str) -> None:
    folder = Path(source)
    if folder.is_dir():
        if not (folder / part).is_dir():
            raise BadInput(
                f"The checkpoint {str(source)!r} lacks the folder {part!r}: it must have "
                "diffusers' HunyuanVideo layout."
            )
    elif isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise BadInput(
            f"There is no checkpoint folder {str(source)!r}: give a folder, or a hub id such as "
            "hunyuanvideo-community/HunyuanVideo."
        )


def _check_transformer_config(config: dict[str, Any], source: str | Path) -> None:
    channels = (config.get("in_channels"), config.get("out_channels"))
    allowed = {(LATENT_CHANNELS, LATENT_CHANNELS), (INPUT_CHANNELS, LATENT_CHANNELS)}
    if channels not in allowed:
        raise BadInput(
            f"The transformer of {str(source)!r} has {channels[0]} input and {channels[1]} output "
            f"channels where HunyuanVideo's text-to-video model has {LATENT_CHANNELS} and "
            f"{LATENT_CHANNELS}: take hunyuanvideo-community/HunyuanVideo or a finetune of it."
        )
    if config.get("image_condition_type") is not None:
        raise BadInput(
            f"The transformer of {str(source)!r} is an image-to-video model "
            f"({config['image_condition_type']}): take the text-to-video model, "
            "hunyuanvideo-community/HunyuanVideo."
        )


def _load(load: Callable[..., Any], source: str | Path, **options: Any) -> Any:
    part = options["subfolder"]
    try:
        return load(str(source), **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as fault:
        raise_if_told()
        reason = " ".join(str(fault).split())
        if not Path(source).is_dir() and _may_pass(fault):
            raise TryAgain(f"The hub did not give {part!r} of {str(source)!r}: {reason}") from fault
        raise BadInput(
            f"{part!r} of {str(source)!r} cannot be loaded; its files must be safetensors in "
            f"diffusers' layout: {reason}"
        ) from fault


def _may_pass(fault: Exception) -> bool:
    """Whether the hub was away, rather than answering that it has no such thing."""
    origin = fault.__cause__ or fault.__context__
    # "Not on this machine, and the hub cannot be asked" counts as a kind of "not found".
    is_absent = isinstance(
        origin, EntryNotFoundError | RepositoryNotFoundError | RevisionNotFoundError
    ) and not isinstance(origin, LocalEntryNotFoundError)
    return isinstance(fault, OSError) and not is_absent
