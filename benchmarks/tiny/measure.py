"""Measure the tiny checkpoint on held-out shapes and draw the pictures of its card."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.color import rgb2hsv

from benchmarks.tiny.train_vae import HELD_OUT_FROM, SEED
from hvkf.media.writing import write_png
from hvkf.model.loading import (
    load_scheduler,
    load_text_encoders,
    load_transformer,
    load_vae,
)
from hvkf.model.sampler import sample_latents
from hvkf.model.text import encode_prompts
from hvkf.model.vae import decode_latents, encode_video, latent_frames, to_pixels_range
from hvkf.shapes import render_clip
from hvkf.stages.evaluate_statistics import video_interval

FIRST_INDEX = HELD_OUT_FROM + 1000
"""Apart also from the clips that training is watched on."""
NUM_SHOWN = 6
SHOWN_FRAMES = (0, 4, 8, 12, 16)
SATURATED = 0.35
NUM_SAMPLING_STEPS = 20

Frames = NDArray[np.uint8]


def main() -> None:
    """Write numbers.json, reconstructions.png and samples.png into the checkpoint's folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of hvkf-tiny")
    parser.add_argument("--clips", type=int, default=64, help="held-out clips at each length")
    parser.add_argument("--samples", action="store_true", help="also sample the base model")
    options = parser.parse_args()
    vae = load_vae(options.checkpoint, dtype=torch.float32)
    numbers: dict[str, Any] = {"num_clips": options.clips}
    for num_frames in (17, 33):
        numbers[f"{num_frames}_frames"] = measure(vae, options, num_frames)
        print(json.dumps(numbers), flush=True)
    if options.samples:
        draw_samples(vae, options.checkpoint)
    (options.checkpoint / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")


def measure(vae: Any, options: argparse.Namespace, num_frames: int) -> dict[str, Any]:
    """Compare reconstructions with the truth; the trivial answers show how hard the clips are."""
    weights = np.linspace(0, 1, num_frames)[:, None, None, None]
    errors: dict[str, list[float]] = {"reconstruction": [], "freeze": [], "cross_fade": []}
    hue_errors: list[float] = []
    rows: list[Frames] = []
    for index in range(FIRST_INDEX, FIRST_INDEX + options.clips):
        truth, _ = render_clip(SEED, index, num_frames)
        latents = encode_video(vae, to_pixels_range(torch.from_numpy(truth)))
        decoded = decode_latents(vae, latents).numpy()
        errors["reconstruction"].append(squared_error(truth, decoded))
        errors["freeze"].append(squared_error(truth, truth[:1]))
        fade = (1 - weights) * truth[:1] + weights * truth[-1:]
        errors["cross_fade"].append(squared_error(truth, fade))
        hue_errors.append(hue_error_degrees(truth, decoded))
        if len(rows) < 2 * NUM_SHOWN:
            rows += [row_of(truth), row_of(decoded)]
    if num_frames == 17:
        write_png(options.checkpoint / "reconstructions.png", np.concatenate(rows))
    numbers: dict[str, Any] = {name: summary(values) for name, values in errors.items()}
    numbers["hue_error_degrees"] = round(float(np.nanmean(hue_errors)), 2)
    return numbers


def squared_error(truth: Frames, other: NDArray[Any]) -> float:
    """Mean squared error in levels."""
    return float(np.mean((truth.astype(np.float64) - other) ** 2))


def summary(errors: list[float]) -> dict[str, float]:
    """Mean of the clips' PSNRs with its 95% interval, and the PSNR of the mean error, in dB.

    The interval is the gate's (each clip is a video), of which half the width is told.
    """
    psnrs = [psnr(error) for error in errors]
    found = video_interval(psnrs, [str(number) for number in range(len(psnrs))])
    return {
        "mean_psnr_db": round(found.mean, 2),
        "half_width_95_db": round((found.high - found.low) / 2, 2),
        "psnr_of_mean_error_db": round(psnr(float(np.mean(errors))), 2),
    }


def psnr(error: float) -> float:
    """Decibels of a mean squared error in levels."""
    return 10 * math.log10(255**2 / max(error, 1e-6))


def hue_error_degrees(truth: Frames, other: Frames) -> float:
    """Mean distance of the hues where the truth is saturated; NaN where it nowhere is."""
    true_hsv, other_hsv = rgb2hsv(truth), rgb2hsv(other)
    apart = np.abs(true_hsv[..., 0] - other_hsv[..., 0])[true_hsv[..., 1] > SATURATED]
    return float(360 * np.minimum(apart, 1 - apart).mean()) if apart.size else math.nan


def row_of(frames: Frames) -> Frames:
    """A few frames side by side."""
    return np.concatenate([frames[number] for number in SHOWN_FRAMES], axis=1)


def draw_samples(vae: Any, checkpoint: Path) -> None:
    """Sample held-out captions without any control: the widened input's new weights are zero."""
    transformer = load_transformer(checkpoint, dtype=torch.float32)
    encoders = load_text_encoders(checkpoint, dtype=torch.float32)
    captions = [render_clip(SEED, FIRST_INDEX + row, 1)[1] for row in range(2 * NUM_SHOWN)]
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn((len(captions), 16, latent_frames(17), 8, 8), generator=generator)
    latents = sample_latents(
        transformer,
        load_scheduler(),
        encode_prompts(encoders, captions),
        torch.zeros_like(noise),
        noise=noise,
        steps=NUM_SAMPLING_STEPS,
    )
    rows = [row_of(decode_latents(vae, row[None]).numpy()) for row in latents]
    write_png(checkpoint / "samples.png", np.concatenate(rows))
    for caption in captions:
        print(caption)


if __name__ == "__main__":
    main()
