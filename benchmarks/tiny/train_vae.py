"""Train the tiny checkpoint's VAE on synthetic shapes, on a CPU, in phases that resume."""

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    AutoencoderKLHunyuanVideo,
    HunyuanVideoCausalConv3d,
)

from benchmarks.tiny.muon import Muon
from benchmarks.tiny.vae_start import POSTERIOR_STD, prepare
from hvkf.model.loading import load_vae
from hvkf.shapes import render_clip

SEED = 0
HELD_OUT_FROM = 1_000_000
"""Clips of this index and above are never trained on."""
VAE_SETTINGS = {
    "block_out_channels": (8, 16, 32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 1,
}
ADAM_LR_SHARE = 0.2
LATENT_PENALTY = 1e-4
EMA_DECAY = 0.99
NUM_WARM_UP = 50


def main() -> None:
    """Run one phase: `--frames 1` first, then 5, then 17, each going on from the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="resumed when it exists")
    parser.add_argument("--weights", type=Path, help="VAE folder that a new checkpoint starts from")
    parser.add_argument("--frames", type=int, default=5, help="per clip: 1, or 4n + 1 up to 17")
    parser.add_argument("--batch", type=int, default=4, help="clips per step")
    parser.add_argument("--steps", type=int, required=True, help="of this phase")
    parser.add_argument("--lr", type=float, default=0.01, help="of Muon; AdamW has a fifth")
    parser.add_argument("--final-lr", type=float, default=None, help="reached linearly at the end")
    parser.add_argument("--pool", type=int, default=600, help="rendered training clips")
    parser.add_argument("--bfloat16", action="store_true", help="compute in it: faster for clips")
    parser.add_argument("--from-images", action="store_true", help="first phase after --frames 1")
    parser.add_argument("--decoder-only", action="store_true", help="latents stay as they are")
    parser.add_argument("--condition-share", type=float, default=0.0, help="keyframes-only clips")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    pool = torch.from_numpy(np.stack([render_clip(SEED, i, 17)[0] for i in range(options.pool)]))
    held_out = torch.from_numpy(
        np.stack([render_clip(SEED, HELD_OUT_FROM + i, 17)[0] for i in range(16)])
    )
    run = Run(options.checkpoint, to_pixels(pool[:16, :1]), options.weights)
    if options.from_images:
        run.look_at_the_present()
    if options.decoder_only:
        run.keep_latents()
    train(run, pool, held_out, options)


class Run:
    """The weights, their running average, the optimizers' state and the step they are at."""

    def __init__(self, path: Path, first_batch: torch.Tensor, weights: Path | None) -> None:
        self.path = path
        self.vae: Any = AutoencoderKLHunyuanVideo(**VAE_SETTINGS)
        if weights is None:
            prepare(self.vae, first_batch)
        else:
            self.vae.load_state_dict(load_vae(weights, dtype=torch.float32).state_dict())
        make_images_cheap(self.vae)
        self.average: Any = copy.deepcopy(self.vae).requires_grad_(False)
        ends = ("conv_in.conv.weight", "conv_out.conv.weight", "quant_conv.weight")
        matrices = [
            parameter
            for name, parameter in self.vae.named_parameters()
            if parameter.ndim > 1 and not name.endswith(ends)
        ]
        chosen = {id(parameter) for parameter in matrices}
        rest = [p for p in self.vae.parameters() if id(p) not in chosen]
        self.muon = Muon(matrices, lr=0.0)
        self.adam = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
        self.step = 0
        if path.exists():
            self._load(torch.load(path, weights_only=True))

    def _parts(self) -> dict[str, Any]:
        return {"vae": self.vae, "average": self.average, "muon": self.muon, "adam": self.adam}

    def _load(self, saved: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.step = saved["step"]

    def look_at_the_present(self) -> None:
        """Move all of each kernel to its newest time, which changes nothing for single frames.

        Images teach all times of a causal kernel alike. On clips that averages over the past, in
        every layer anew, until the latents know little but the first frame.
        """
        with torch.no_grad():
            for vae in (self.vae, self.average):
                for module in vae.modules():
                    if isinstance(module, HunyuanVideoCausalConv3d):
                        weight = module.conv.weight
                        weight[:, :, -1] = weight.sum(2)
                        weight[:, :, :-1] = 0
        self.muon.state.clear()
        self.adam.state.clear()

    def keep_latents(self) -> None:
        """Go on from the average, and leave the encoder as it is there."""
        self.vae.load_state_dict(self.average.state_dict())
        for part in (self.vae.encoder, self.vae.quant_conv):
            part.requires_grad_(False)

    def save(self) -> None:
        """Replace the checkpoint in one go."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        scratch = self.path.with_suffix(".part")
        torch.save({**state, "step": self.step}, scratch)
        scratch.replace(self.path)

    def update(self, lr: float) -> None:
        """Take one optimizer step and move the average towards the new weights."""
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        for optimizer, share in ((self.muon, 1.0), (self.adam, ADAM_LR_SHARE)):
            for group in optimizer.param_groups:
                group["lr"] = lr * share
            optimizer.step()
        self.vae.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            for old, new in zip(self.average.parameters(), self.vae.parameters(), strict=True):
                old.lerp_(new, 1 - decay)


def train(
    run: Run, pool: torch.Tensor, held_out: torch.Tensor, options: argparse.Namespace
) -> None:
    """Run the phase's steps; print and save every 50."""
    generator = torch.Generator().manual_seed(SEED + run.step)
    started_s, num_done, losses = time.monotonic(), 0, []
    while num_done < options.steps:
        video = draw_batch(pool, options.frames, options.batch, generator)
        if torch.rand((), generator=generator) < options.condition_share:
            video[:, :, 1:-1] = -1.0
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            loss = reconstruction_loss(run.vae, video, generator)
        loss.backward()
        final = options.lr if options.final_lr is None else options.final_lr
        lr = options.lr + (final - options.lr) * num_done / options.steps
        run.update(lr * min(1.0, (num_done + 1) / NUM_WARM_UP))
        num_done += 1
        losses.append(loss.item())
        if num_done % 50 == 0 or num_done == options.steps:
            run.save()
            elapsed_s = time.monotonic() - started_s
            print(
                f"step {run.step} loss {np.mean(losses):.5f} "
                f"held-out {held_out_psnr(run.average, held_out[:, : options.frames]):.2f} dB "
                f"{elapsed_s:.0f} s",
                flush=True,
            )
            losses = []


class ImageConv(HunyuanVideoCausalConv3d):
    """The same convolution, exact and three times cheaper for clips of one frame."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """BCFHW to BCFHW. Padding repeats the one frame, so the kernel's times add up."""
        if hidden_states.shape[2] > 1:
            return super().forward(hidden_states)
        image = F.pad(hidden_states[:, :, 0], self.time_causal_padding[:4], mode=self.pad_mode)
        conv = self.conv
        image = F.conv2d(image, conv.weight.sum(2), conv.bias, stride=conv.stride[1:])
        return image[:, :, None]


def make_images_cheap(vae: AutoencoderKLHunyuanVideo) -> None:
    """Swap the convolutions' class in place; weights and their names stay."""
    for module in vae.modules():
        if type(module) is HunyuanVideoCausalConv3d:
            module.__class__ = ImageConv


def draw_batch(
    pool: torch.Tensor, num_frames: int, batch: int, generator: torch.Generator
) -> torch.Tensor:
    """Windows of pool clips (uint8 NFHWC), some mirrored, as pixels BCFHW in [-1, 1]."""
    clips = torch.randint(len(pool), (batch,), generator=generator)
    starts = torch.randint(pool.shape[1] - num_frames + 1, (batch,), generator=generator)
    windows = [
        pool[clip, start : start + num_frames]
        for clip, start in zip(clips.tolist(), starts.tolist(), strict=True)
    ]
    video = to_pixels(torch.stack(windows))
    for axis in (-1, -2):
        if torch.rand((), generator=generator) < 0.5:
            video = video.flip(axis)
    return video


def to_pixels(frames: torch.Tensor) -> torch.Tensor:
    """uint8 BFHWC to float BCFHW in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def reconstruction_loss(vae: Any, video: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Squared error after the posterior's noise, its blurred self (colour), latents' size."""
    latents = encode(vae, video)
    noise = torch.randn(latents.shape, generator=generator)
    decoded = decode(vae, latents + POSTERIOR_STD * noise)
    error = decoded.float() - video
    colour = F.avg_pool3d(error, (1, 8, 8))
    return error.square().mean() + colour.square().mean() + LATENT_PENALTY * latents.square().mean()


def encode(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """The posterior's mean, without tiling."""
    moments: torch.Tensor = vae.quant_conv(vae.encoder(video))
    return moments.chunk(2, dim=1)[0]


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels, without tiling."""
    video: torch.Tensor = vae.decoder(vae.post_quant_conv(latents))
    return video


@torch.no_grad()
def held_out_psnr(vae: Any, frames: torch.Tensor) -> float:
    """PSNR in dB of the mean squared error over all clips (uint8 NFHWC)."""
    video = to_pixels(frames)
    error = decode(vae, encode(vae, video)).clamp(-1, 1) - video
    return 10 * math.log10(4 / error.square().mean().item())


if __name__ == "__main__":
    main()
