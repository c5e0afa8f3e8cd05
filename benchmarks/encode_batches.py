"""What encoding samples together gains and changes: `python -m benchmarks.encode_batches`.

hvkf-tiny's VAE on moving shapes, one CPU thread where OMP_NUM_THREADS=1: the time for each sample
against that of one sample alone, and how far latents move. A GPU may gain more: small videos do
not fill it.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from rich.console import Console
from rich.table import Table

from benchmarks.timing import keep, median_ratio, took
from hvkf.demo import CHECKPOINT
from hvkf.model.conditioning import EmptyTiles, encode_condition, keyframes_of
from hvkf.model.loading import load_vae
from hvkf.model.vae import encode_video, pixels_for
from hvkf.shapes import render_clip

NUM_SAMPLES = 8
BATCHES = (1, 2, 4, 8)
LENGTHS = (17, 33)
SEED = 0


def main() -> None:
    """Measure both types, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="the median of so many is taken")
    parser.add_argument("--results", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    figures = [
        figure
        for dtype in (torch.float32, torch.bfloat16)
        for length in LENGTHS
        for figure in measure(load_vae(CHECKPOINT, dtype=dtype), length, options.repeats)
    ]
    show(figures)
    keep(figures, options.results)


def measure(vae: AutoencoderKLHunyuanVideo, length: int, repeats: int) -> list[dict[str, Any]]:
    """Encode the same samples in batches of each size, turn by turn."""
    clips = [render_clip(SEED, index, length)[0] for index in range(NUM_SAMPLES)]
    frames = torch.stack([torch.from_numpy(clip) for clip in clips])
    empty_tiles = EmptyTiles(vae)
    alone = encode(vae, frames, 1, empty_tiles)  # and the empty tiles are known from here on
    seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
    found: dict[int, torch.Tensor] = {}

    def encode_in(size: int) -> None:
        found[size] = encode(vae, frames, size, empty_tiles)

    for _ in range(repeats):
        for size in BATCHES:
            seconds[size].append(took(lambda size=size: encode_in(size)).cpu_s)  # type: ignore[misc]
    return [
        {
            "dtype": str(vae.dtype).removeprefix("torch."),
            "sample": f"{frames.shape[3]}x{frames.shape[2]}x{length}",
            "batch": size,
            "time": median_ratio(seconds[size], seconds[1]),
            "difference": float((found[size] - alone).norm() / alone.norm()),
        }
        for size in BATCHES
    ]


def encode(
    vae: AutoencoderKLHunyuanVideo, frames: torch.Tensor, size: int, empty_tiles: EmptyTiles
) -> torch.Tensor:
    """Encode videos and their conditions, so many together; latents [2, B, 16, f, h, w]."""
    batches = frames.split(size)
    videos = [encode_video(vae, pixels_for(vae, batch)) for batch in batches]
    conditions = [
        encode_condition(vae, keyframes_of(batch), frames.shape[1], empty_tiles=empty_tiles)
        for batch in batches
    ]
    return torch.stack([torch.cat(videos), torch.cat(conditions)])


def show(figures: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("type", "sample", "batch", "time per sample", "latents move by")
    for figure in figures:
        texts = (figure["dtype"], figure["sample"], str(figure["batch"]))
        table.add_row(*texts, f"{figure['time']:.2f} x", f"{figure['difference']:.1e}")
    Console().print(table)


if __name__ == "__main__":
    main()
