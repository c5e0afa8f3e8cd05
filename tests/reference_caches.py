"""Caches as the reference's two tools write them: the same columns, types and folder names.

`golden/reference_cache` holds what its second tool itself wrote: three samples by two processes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from streaming import MDSWriter

from tests.workspaces import GOLDEN

BY_THE_REFERENCE = GOLDEN / "reference_cache"
# On the tiny checkpoint, whose random VAE has a posterior as wide as its means.
SAME_WITHIN_TINY = 0.9
VIDEO_COLUMNS = {
    "idx": "int32",
    "item_key": "str",
    "item": "str",
    "frame_count": "int32",
    "bucket_width": "int32",
    "bucket_height": "int32",
    "original_width": "int32",
    "original_height": "int32",
    "caption_str": "str",
    "video_arr": "ndarray",
}
LATENT_COLUMNS = {
    "prompt_embeds": "ndarray",
    "prompt_attention_mask": "ndarray",
    "pooled_prompt_embeds": "ndarray",
    "latents": "ndarray",
    "latents_cond": "ndarray",
}

Record = dict[str, Any]


def write_mds(folder: Path, columns: dict[str, str], records: Sequence[Record]) -> Path:
    """Write records with the reference's settings: no hashes."""
    with MDSWriter(out=str(folder), columns=columns, size_limit=256 << 20) as writer:
        for record in records:
            writer.write(record)
    return folder


def in_bf16(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Cut values to what bfloat16 holds, as the reference's encoders do, in float32."""
    bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def latent_record(seed: int, bucket: str = "32x32x5", text: int | None = None) -> Record:
    """Draw a record of latents; `text` is the seed of its caption's embeddings."""
    width, height, frames = map(int, bucket.split("x"))
    shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    draw = np.random.default_rng(seed)
    words = np.random.default_rng([seed if text is None else text, 1])
    mask = np.zeros(8, np.float32)
    mask[:5] = 1
    return {
        "prompt_embeds": in_bf16(words.standard_normal((8, 32))),
        "prompt_attention_mask": mask,
        "pooled_prompt_embeds": in_bf16(words.standard_normal(24)),
        "latents": in_bf16(draw.standard_normal(shape)),
        "latents_cond": in_bf16(draw.standard_normal(shape)),
    }


def sampled_again(record: Record, spread: float = 0.01) -> Record:
    """Draw the record's latents anew from a narrow posterior, as another process does."""
    draw = np.random.default_rng(0)
    again = dict(record)
    for name in ("latents", "latents_cond"):
        noise = spread * draw.standard_normal(record[name].shape)
        again[name] = in_bf16(record[name] + noise)
    return again


def write_latents_cache(folder: Path, records: Sequence[Record]) -> Path:
    """Write a folder of the second tool, such as 32x32x5_00."""
    return write_mds(folder, LATENT_COLUMNS, records)


def video_record(number: int, bucket: str = "32x32x5") -> Record:
    """Draw a record of the first tool: of a video of 640x360, whose sides it swaps."""
    width, height, frames = map(int, bucket.split("x"))
    draw = np.random.default_rng(number)
    return {
        "idx": number,
        "item_key": f"{number:05d}_00000-{frames:05d}.mp4",
        "item": f"{number:05d}.mp4",
        "frame_count": frames,
        "bucket_width": width,
        "bucket_height": height,
        "original_width": 360,
        "original_height": 640,
        "caption_str": f"The video shows a square, take {number}.",
        "video_arr": draw.integers(0, 256, (frames, height, width, 3), dtype=np.uint8),
    }


def write_videos_cache(folder: Path, records: Sequence[Record]) -> Path:
    """Write a folder of the first tool, such as 32x32x5."""
    return write_mds(folder, VIDEO_COLUMNS, records)


def shard_of(folder: Path) -> Path:
    """Find the only shard of a folder."""
    (shard,) = json.loads((folder / "index.json").read_text())["shards"]
    return folder / str((shard["zip_data"] or shard["raw_data"])["basename"])
