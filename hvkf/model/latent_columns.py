"""How the latents of a sample lie in shards: what can be worked out again is left out.

Two layouts are read. A *whole* one has the condition's latents and 256 text tokens, as caches of
the reference do. A *packed* one has only the real tokens, and of the condition's latents only the
frames that a keyframe has touched: the others are a posterior sample of an empty video, so that its
mean, its deviation and the seed make them again. They come out bit by bit on one kind of processor
with one PyTorch; elsewhere PyTorch's normal numbers may differ in their last bits.
"""

import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hvkf.model.conditioning import EmptyMoments
from hvkf.model.precision import from_stored, to_stored
from hvkf.model.text import PromptEmbeds

Array = npt.NDArray[Any]
Sample = Mapping[str, Any]

NDARRAY_OF = {"bf16": "ndarray:uint16", "fp16": "ndarray:float16", "fp32": "ndarray:float32"}
CONDITION = "latents_cond"
KEPT, FRAMES, EMPTY = "condition_kept", "condition_frames", "condition_empty"
SEED, SCALE = "condition_seed", "condition_scale"
NUM_KEPT_EMPTY = 32


def whole_columns(stored: str) -> dict[str, str]:
    """Name the columns of the whole layout; bfloat16 is stored as its bits in uint16."""
    return {**_common_columns(stored), CONDITION: NDARRAY_OF[stored]}


def packed_columns(stored: str) -> dict[str, str]:
    """Name the columns of the packed layout."""
    return {
        **_common_columns(stored),
        KEPT: NDARRAY_OF[stored],
        FRAMES: "ndarray:uint16",
        EMPTY: "bytes",
        SEED: "int64",
        SCALE: "float64",
    }


def _common_columns(stored: str) -> dict[str, str]:
    array = NDARRAY_OF[stored]
    return {
        "item_key": "str",
        "clip_id": "str",
        "source": "str",
        "caption": "str",
        "latents": array,
        "prompt_embeds": array,
        "prompt_attention_mask": "ndarray:uint8",
        "pooled_prompt_embeds": array,
    }


def pack_prompts(prompts: PromptEmbeds, stored: str) -> list[dict[str, Array]]:
    """Store the embeddings of captions [B, L, D], each up to its last token that counts."""
    masks = prompts.prompt_attention_mask.to("cpu", torch.uint8)
    lengths = [int(mask.nonzero().max()) + 1 for mask in masks]
    return [
        {
            "prompt_embeds": to_stored(prompts.prompt_embeds[row, :length], stored),
            "prompt_attention_mask": masks[row, :length].numpy(),
            "pooled_prompt_embeds": to_stored(prompts.pooled_prompt_embeds[row], stored),
        }
        for row, length in enumerate(lengths)
    ]


def pack_condition(
    condition: torch.Tensor,
    empty_frames: list[int],
    empty: bytes,
    *,
    seed: int,
    scale: float,
    stored: str,
) -> dict[str, Any]:
    """Store a condition's latents without those that `unpack_condition` makes again.

    Args:
        condition: float32 latents [16, f, h, w].
        empty_frames: The latent frames of an empty video among them; ascending.
        empty: Their posterior, from `pack_empty`.
        seed: Of the generator that the posterior was sampled with.
        scale: The VAE's scaling factor.
        stored: Precision of what is kept.
    """
    absent = set(empty_frames)
    kept = [frame for frame in range(condition.shape[1]) if frame not in absent]
    return {
        KEPT: to_stored(condition[:, kept], stored),
        FRAMES: np.array(kept, dtype=np.uint16),
        EMPTY: empty,
        SEED: seed,
        SCALE: scale,
    }


def pack_empty(moments: EmptyMoments, frames: list[int]) -> bytes:
    """Compress the posterior of some latent frames of an empty video: a few hundred bytes, mostly.

    They repeat from tile to tile, and from pixel to pixel.
    """
    distinct: dict[bytes, int] = {}
    order = []
    for frame in frames:
        both = torch.stack([moments.mean[:, frame], moments.std[:, frame]])
        order.append(distinct.setdefault(both.numpy().tobytes(), len(distinct)))
    header = np.array([len(order), *order], dtype="<u2").tobytes()
    return zlib.compress(header + b"".join(distinct), level=9)


@lru_cache(NUM_KEPT_EMPTY)
def _unpack_empty(packed: bytes, channels: int, height: int, width: int) -> EmptyMoments:
    data = zlib.decompress(packed)
    (num_frames,) = np.frombuffer(data, "<u2", 1)
    order = np.frombuffer(data, "<u2", num_frames, offset=2)
    values = np.frombuffer(data, "<f4", offset=2 + 2 * int(num_frames))
    distinct = torch.from_numpy(values.reshape(-1, 2, channels, height, width).copy())
    chosen = distinct[order.astype(np.int64)]
    return EmptyMoments(chosen[:, 0].transpose(0, 1), chosen[:, 1].transpose(0, 1))


def read_condition(sample: Sample, column: str = CONDITION) -> torch.Tensor:
    """Read a condition's latents [16, f, h, w], in the precision that they are stored in."""
    if column in sample:
        return from_stored(sample[column])
    kept = from_stored(sample[KEPT])
    frames = torch.from_numpy(sample[FRAMES].astype(np.int64))
    channels, _, height, width = kept.shape
    num_frames = sample["latents"].shape[1]
    absent = sorted(set(range(num_frames)) - set(frames.tolist()))
    condition = torch.empty((channels, num_frames, height, width), dtype=kept.dtype)
    condition[:, frames] = kept
    if absent:
        empty = _unpack_empty(sample[EMPTY], channels, height, width)
        generator = torch.Generator("cpu").manual_seed(int(sample[SEED]))
        noise = torch.randn((1, channels, num_frames, height, width), generator=generator)[0]
        # The same operations, in the same order, as when the posterior was sampled.
        latents = (empty.mean + empty.std * noise[:, absent]) * sample[SCALE]
        condition[:, absent] = latents.to(kept.dtype)
    return condition
