"""Which kernel computes the transformer's attention: PyTorch's, flash-attn's or SageAttention's.

PyTorch's kernel masks the padded text. The variable-length kernels get two sequences per sample,
the tokens that count and the padding, so that neither sees the other; as in the reference.
"""

import importlib.util
import logging
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoAttnProcessor2_0,
    HunyuanVideoTransformer3DModel,
)

from hvkf.errors import BadInput

logger = logging.getLogger(__name__)

AttentionName = Literal["auto", "sdpa", "flash", "sage"]
PACKAGES = {"flash": "flash_attn", "sage": "sageattention"}
FIXES = {"flash": "pip install 'hvkf[flash]'", "sage": "pip install sageattention"}
HALF_TYPES = (torch.float16, torch.bfloat16)

# (query, key, value [B*N, heads, D], segment borders int32, longest segment) -> [B*N, heads, D]
VarlenKernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def choose_backend(
    name: str,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    *,
    trains: bool = False,
) -> str:
    """Resolve the attention setting to `sdpa`, `flash` or `sage`.

    `auto` takes flash where flash-attn is installed, the device is CUDA and the type has 16 bits,
    and sdpa elsewhere; it never takes sage, which computes in int8 and so approximately.

    Raises:
        BadInput: an unknown name, a package that is not installed, or a kernel that cannot compute
            on the device, in the type, or with gradients.
    """
    if name not in get_args(AttentionName):
        raise BadInput(f"There is no attention {name!r}: use {', '.join(get_args(AttentionName))}.")
    on_gpu = torch.device(device).type == "cuda" and dtype in HALF_TYPES
    if name == "auto":
        return "flash" if on_gpu and _is_installed("flash") else "sdpa"
    if name == "sdpa":
        return name
    if not _is_installed(name):
        raise BadInput(
            f"model.attention is {name!r}, but {PACKAGES[name]} is not installed: {FIXES[name]}, "
            "or set it to sdpa."
        )
    if not on_gpu:
        raise BadInput(
            f"{name} attention needs a CUDA device and 16-bit weights, not {device} and {dtype}: "
            "set model.attention to sdpa."
        )
    if name == "sage" and trains:
        raise BadInput("sage attention has no gradients: train with model.attention flash or sdpa.")
    return name


def apply_attention(
    transformer: HunyuanVideoTransformer3DModel,
    name: str,
    *,
    trains: bool = False,
    device: torch.device | None = None,
) -> str:
    """Set the kernel of the transformer's blocks (its text refiner keeps PyTorch's).

    Args:
        transformer: The transformer.
        name: See `choose_backend`.
        trains: Whether gradients will flow through it.
        device: Where it computes; left out, where it lies.

    Returns:
        The kernel chosen, which is also logged.

    Raises:
        BadInput: see `choose_backend`.
    """
    computes_on = transformer.device if device is None else device
    chosen = choose_backend(name, computes_on, transformer.dtype, trains=trains)
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        is_varlen = chosen in PACKAGES
        block.attn.processor = (
            VarlenProcessor(_kernel(chosen)) if is_varlen else HunyuanVideoAttnProcessor2_0()
        )
    logger.info("Attention: %s (asked for: %s).", chosen, name)
    return chosen


def segment_borders(mask: torch.Tensor) -> torch.Tensor:
    """Cut a batch, laid out as one sequence, into what counts and what is padding.

    Args:
        mask: bool [B, N]; in every row the tokens that count come first.

    Returns:
        int32 [2B+1]: 0, then for each row the end of its counting tokens and its own end.
    """
    num_rows, length = mask.shape
    starts = torch.arange(num_rows, device=mask.device) * length
    borders = torch.stack([starts + mask.sum(dim=1), starts + length], dim=1).flatten()
    return torch.cat([borders.new_zeros(1), borders]).to(torch.int32)


class VarlenProcessor:
    """diffusers' attention processor for HunyuanVideo's blocks on a variable-length kernel."""

    def __init__(self, kernel: VarlenKernel) -> None:
        self.kernel = kernel

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            attn: The block's attention module.
            hidden_states: Video tokens [B, V, C].
            encoder_hidden_states: Text tokens [B, T, C].
            attention_mask: bool [B, 1, 1, V+T]: all video tokens, then the text that counts.
            image_rotary_emb: Cosines and sines for the video tokens.

        Returns:
            The two token sequences after attention; padded text holds what is never read.
        """
        num_video = hidden_states.shape[1]
        query, key, value = _project(attn, hidden_states, encoder_hidden_states)
        if image_rotary_emb is not None:
            query = _rotate(query, image_rotary_emb, num_video)
            key = _rotate(key, image_rotary_emb, num_video)
        num_rows, length = query.shape[:2]
        mixed = self.kernel(
            query.flatten(0, 1),
            key.flatten(0, 1),
            value.flatten(0, 1),
            segment_borders(attention_mask[:, 0, 0, :]),
            length,
        )
        tokens = mixed.reshape(num_rows, length, -1).to(query.dtype)
        video, text = tokens[:, :num_video], tokens[:, num_video:]
        if getattr(attn, "to_out", None) is not None:
            video = attn.to_out[1](attn.to_out[0](video))
        if getattr(attn, "to_add_out", None) is not None:
            text = attn.to_add_out(text)
        return video, text


def _project(
    attn: Any, video: torch.Tensor, text: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make query, key and value [B, V+T, heads, D]; dual blocks have own projections for text."""
    if attn.add_q_proj is None:
        both = torch.cat([video, text], dim=1)
        return _heads(attn, both, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
    of_video = _heads(attn, video, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
    of_text = _heads(
        attn,
        text,
        attn.add_q_proj,
        attn.add_k_proj,
        attn.add_v_proj,
        attn.norm_added_q,
        attn.norm_added_k,
    )
    query, key, value = (torch.cat(pair, dim=1) for pair in zip(of_video, of_text, strict=True))
    return query, key, value


def _heads(
    attn: Any, tokens: torch.Tensor, to_q: Any, to_k: Any, to_v: Any, norm_q: Any, norm_k: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = (
        layer(tokens).unflatten(2, (attn.heads, -1)) for layer in (to_q, to_k, to_v)
    )
    if norm_q is not None:
        query = norm_q(query)
    if norm_k is not None:
        key = norm_k(key)
    return query, key, value


def _rotate(
    tokens: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], num_video: int
) -> torch.Tensor:
    """Rotate the video tokens [B, V+T, heads, D]; text has no position."""
    rotate: Any = apply_rotary_emb
    video = rotate(tokens[:, :num_video], rotary, sequence_dim=1)
    return torch.cat([video, tokens[:, num_video:]], dim=1)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES[name]) is not None


def _kernel(name: str) -> VarlenKernel:
    if name == "flash":
        from flash_attn import flash_attn_varlen_func as varlen
    else:
        from sageattention import sageattn_varlen as varlen

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        borders: torch.Tensor,
        longest: int,
    ) -> torch.Tensor:
        mixed: torch.Tensor = varlen(query, key, value, borders, borders, longest, longest)
        return mixed

    return kernel
