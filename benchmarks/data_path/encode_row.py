"""Encoding clips of 97 frames against the VAE forwards of the tiles that differ, and the captions.

Both sides run in one process with the same loaded models. The stage's side begins with cold caches
and includes reading the scenes, packing and committing.
"""

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.data_path.measuring import (
    KEPT,
    Row,
    Scale,
    fresh_copy,
    ratios,
    run_stages,
    seconds,
    settings,
    write_shapes,
)
from benchmarks.timing import Took, took
from hvkf.captions import clean_caption
from hvkf.config import Config
from hvkf.model.conditioning import EmptyTiles, condition_video, keyframes_of
from hvkf.model.text import encode_prompts
from hvkf.model.vae import temporal_tiles, to_pixels_range
from hvkf.shapes import render_clip
from hvkf.stages import encode, encode_segments
from hvkf.stages.encode_captions import Prompts

NUM_FRAMES, SIDE = 97, 64
GOAL, FLOPS_GOAL, BYTES_GOAL = 1.10, 1.6, 0.36


def measure(scale: Scale) -> list[Row]:
    """Time the stage and its limit in turns, count the FLOPs, and weigh what is stored."""
    num_clips = 2 if scale.is_quick else 6
    with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
        folder = Path(name)
        write_shapes(folder, num_clips, NUM_FRAMES)
        config = settings(folder, cache={"bucket_reso": [f"{SIDE}x{SIDE}x{NUM_FRAMES}"]})
        store = run_stages(config, "ingest", "cache")
        encoder = encode_segments.Encoder(config, store)
        pairs = [pair(folder, config, encoder, num_clips) for _ in range(scale.repeats)]
    clock, cpu = ratios(pairs)
    what = f"{num_clips} clips of {NUM_FRAMES} frames"
    row = Row("encode", what, f"<= {GOAL}", GOAL, clock, cpu, details=seconds(pairs))
    return [row, count_flops(encoder)]


class Reused:
    """Stands in for the stage's Encoder: loaded models, with what they remember made anew."""

    def __init__(self, encoder: encode_segments.Encoder) -> None:
        self.encoder = encoder

    def __call__(self, *_: object) -> encode_segments.Encoder:
        self.encoder._empty_tiles = EmptyTiles(self.encoder._vae)
        self.encoder._prompts = Prompts(self.encoder._encode_prompts)
        self.encoder._packed_empty = {}
        return self.encoder


def pair(
    folder: Path, config: Config, encoder: encode_segments.Encoder, num_clips: int
) -> tuple[Took, Took]:
    """Run the stage in a fresh workspace, then its limit on the same clips."""
    with (
        fresh_copy(folder, *KEPT["encode"]) as store,
        patch.object(encode_segments, "Encoder", Reused(encoder)),
    ):
        plan = encode.plan(config, store)
        stage = took(lambda: encode.run(plan, store, plan.parts))
    clips = [render_clip(0, number, NUM_FRAMES) for number in range(num_clips)]
    return stage, took(lambda: limit(encoder, clips))


@torch.inference_mode()
def limit(encoder: encode_segments.Encoder, clips: list[tuple[Any, str]]) -> None:
    """Compute the tiles that differ, and each caption once; nothing is read, blended or stored."""
    vae, known = encoder._vae, set[int]()
    tiles = temporal_tiles(vae, NUM_FRAMES)
    ends = (0, NUM_FRAMES - 1)
    for pixels, caption in clips:
        frames = torch.from_numpy(pixels)
        video = to_pixels_range(frames)
        condition = to_pixels_range(condition_video(keyframes_of(frames), NUM_FRAMES))
        for tile in (tile.frames for tile in tiles):
            vae.quant_conv(vae.encoder(video[:, :, tile.start : tile.stop]))
            has_keyframe = any(end in tile for end in ends)
            if has_keyframe or len(tile) not in known:
                vae.quant_conv(vae.encoder(condition[:, :, tile.start : tile.stop]))
            if not has_keyframe:
                known.add(len(tile))
        encode_prompts(encoder._text, [clean_caption(caption)], "cpu", is_padded=False)


@torch.inference_mode()
def count_flops(encoder: encode_segments.Encoder) -> Row:
    """Count the VAE's FLOPs of a clip, with warm tiles, against encoding both videos whole."""
    pixels, caption = render_clip(0, 0, NUM_FRAMES)
    scene = {"item_key": "k", "clip_id": "c", "source": "s", "caption": caption, "video": pixels}
    encoder.encode([scene])  # tiles, caption: known from the clips before it
    with FlopCounterMode(display=False) as ours:
        encoder.encode([scene])
    frames = torch.from_numpy(pixels)
    with FlopCounterMode(display=False) as whole:
        for video in (frames, condition_video(keyframes_of(frames), NUM_FRAMES)):
            encoder._vae.encode(to_pixels_range(video))
    ratio = round(whole.get_total_flops() / ours.get_total_flops(), 3)
    details = {"flops": ours.get_total_flops(), "whole_flops": whole.get_total_flops()}
    return Row(
        "encode",
        "fewer VAE FLOPs than both videos whole",
        f">= {FLOPS_GOAL}",
        FLOPS_GOAL,
        ratio,
        is_least=True,
        details=details,
    )
