"""Train the tiny checkpoint's text-to-video transformer on the trained VAE's latents, on a CPU."""

import argparse
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from benchmarks.tiny.muon import Muon
from benchmarks.tiny.train_vae import SEED, VAE_SETTINGS
from hvkf.model.flow_matching import flow_matching_loss, sample_sigmas, timesteps_of
from hvkf.model.loading import load_text_encoders, load_vae
from hvkf.model.sampler import GUIDANCE_UNIT
from hvkf.model.text import encode_prompts
from hvkf.model.tiny import build_tiny_checkpoint
from hvkf.model.vae import encode_video, to_pixels_range
from hvkf.shapes import render_clip

TRANSFORMER_SETTINGS = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "num_layers": 2,
    "num_single_layers": 4,
    "num_refiner_layers": 1,
    "rope_axes_dim": (8, 12, 12),
}
STORED = torch.float16
SHIFT = 3.0
"""Less than the sampler's 7: the last steps, which draw edges, are also learned."""
LARGEST_GUIDANCE = 8.0
EMA_DECAY = 0.998
ENCODED_TOGETHER = 10
SPARED_SHARE = 0.5
NUM_WARM_UP = 50
ADAM_LR_SHARE = 0.15


def main() -> None:
    """Build the checkpoint folder around the VAE, encode the clips, train, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--vae", type=Path, help="train_vae.py's checkpoint; left out: the VAE that --out has"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the hvkf-tiny checkpoint"
    )
    parser.add_argument("--work", type=Path, required=True, help="latents and resumable state")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=0.01, help="of Muon, linear to zero")
    parser.add_argument("--clips", type=int, default=600, help="training clips of 17 frames")
    parser.add_argument("--long-clips", type=int, default=150, help="training clips of 33 frames")
    parser.add_argument("--vae-only", action="store_true", help="only put the VAE into --out")
    options = parser.parse_args()
    torch.manual_seed(SEED)
    options.work.mkdir(parents=True, exist_ok=True)
    latents_file = options.work / "latents.pt"
    if not latents_file.exists():
        if options.vae is not None:
            build_tiny_checkpoint(
                options.out, SEED, transformer=TRANSFORMER_SETTINGS, vae=VAE_SETTINGS
            )
            put_vae(options.vae, options.out)
        torch.save(encode_clips(options.out, options.clips, options.long_clips), latents_file)
    elif options.vae_only:
        vae = load_vae(options.out, dtype=torch.float32)
        put_vae(options.vae, options.out, vae.config["scaling_factor"])
    if not options.vae_only:
        train(options, torch.load(latents_file, weights_only=True))


def put_vae(checkpoint: Path, out: Path, scaling_factor: float | None = None) -> None:
    """Store the averaged VAE; without a factor, scale latents of 32 clips to unit variance."""
    vae: Any = AutoencoderKLHunyuanVideo(**VAE_SETTINGS)
    vae.load_state_dict(torch.load(checkpoint, weights_only=True)["average"])
    vae.eval()
    if scaling_factor is None:
        vae.register_to_config(scaling_factor=1.0)
        videos = [to_pixels_range(torch.from_numpy(render_clip(SEED, i, 17)[0])) for i in range(32)]
        latents = torch.cat([encode_video(vae, video) for video in videos])
        scaling_factor = round(1 / latents.std().item(), 4)
    vae.register_to_config(scaling_factor=scaling_factor)
    vae.to(STORED).save_pretrained(out / "vae")


def encode_clips(folder: Path, num_short: int, num_long: int) -> list[dict[str, torch.Tensor]]:
    """Latents and text embeddings of the training clips, one entry per number of frames."""
    vae = load_vae(folder, dtype=torch.float32)
    encoders = load_text_encoders(folder, dtype=torch.float32)
    groups = []
    for first, count, num_frames in ((0, num_short, 17), (num_short, num_long, 33)):
        latents, captions = [], []
        for index in range(first, first + count, ENCODED_TOGETHER):
            clips = [
                render_clip(SEED, number, num_frames)
                for number in range(index, min(index + ENCODED_TOGETHER, first + count))
            ]
            videos = [to_pixels_range(torch.from_numpy(frames)) for frames, _ in clips]
            latents.append(encode_video(vae, torch.cat(videos)))
            captions += [caption for _, caption in clips]
            if len(captions) % 100 == 0:
                print(f"encoded {len(captions)} of {count} clips", flush=True)
        prompt = encode_prompts(encoders, captions)
        longest = int(prompt.prompt_attention_mask.sum(dim=1).max())
        groups.append(
            {
                "latents": torch.cat(latents),
                "embeds": prompt.prompt_embeds[:, :longest].clone(),
                "mask": prompt.prompt_attention_mask[:, :longest].clone(),
                "pooled": prompt.pooled_prompt_embeds,
            }
        )
    return groups


def train(options: argparse.Namespace, groups: list[dict[str, torch.Tensor]]) -> None:
    """Train from random weights or the saved state; save every 50 steps."""
    folder = options.out / "transformer"
    model: Any = HunyuanVideoTransformer3DModel.from_config(
        HunyuanVideoTransformer3DModel.load_config(folder)
    ).train()
    average: Any = copy.deepcopy(model).requires_grad_(False)
    ends = ("x_embedder", "proj_out", "norm_out")
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and not n.startswith(ends)]
    chosen = {id(parameter) for parameter in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon, adam = Muon(matrices, lr=0.0), torch.optim.AdamW(rest, lr=0.0, weight_decay=0.0)
    parts = {"model": model, "average": average, "muon": muon, "adam": adam}
    state_file, first_step = options.work / "base.pt", 0
    if state_file.exists():
        saved = torch.load(state_file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first_step = saved["step"]
    generator = torch.Generator().manual_seed(SEED + first_step)
    shares = torch.tensor([group["latents"].numel() for group in groups], dtype=torch.float32)
    started_s, losses = time.monotonic(), []
    for step in range(first_step + 1, options.steps + 1):
        group = groups[int(torch.multinomial(shares, 1, generator=generator))]
        loss = step_loss(model, group, options.batch, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = options.lr * min(1.0, step / NUM_WARM_UP, 2 * (1 - (step - 1) / options.steps))
        for optimizer, share in ((muon, 1.0), (adam, ADAM_LR_SHARE)):
            for parameters in optimizer.param_groups:
                parameters["lr"] = lr * share
            optimizer.step()
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, 1 - min(EMA_DECAY, step / (step + 10)))
        losses.append(loss.item())
        if step % 50 == 0 or step == options.steps:
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**state, "step": step}, state_file.with_suffix(".part"))
            state_file.with_suffix(".part").replace(state_file)
            copy.deepcopy(average).to(STORED).save_pretrained(folder)
            elapsed_s = time.monotonic() - started_s
            print(f"step {step} loss {np.mean(losses):.4f} {elapsed_s:.0f} s", flush=True)
            losses = []


def step_loss(
    model: Any, group: dict[str, torch.Tensor], batch: int, generator: torch.Generator
) -> torch.Tensor:
    """The flow-matching loss of a random batch, any guidance meaning the same."""
    rows = torch.randint(len(group["latents"]), (batch,), generator=generator)
    latents = group["latents"][rows]
    noise = torch.randn(latents.shape, generator=generator)
    sigmas = sample_sigmas("uniform", batch, generator, shift=SHIFT)
    frame_sigmas_BF = _spare_ends(sigmas, latents.shape[2], generator)[:, None, :, None, None]
    guidance = 1 + (LARGEST_GUIDANCE - 1) * torch.rand(batch, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(
            hidden_states=(1 - frame_sigmas_BF) * latents + frame_sigmas_BF * noise,
            timestep=timesteps_of(sigmas).float(),
            encoder_hidden_states=group["embeds"][rows],
            encoder_attention_mask=group["mask"][rows],
            pooled_projections=group["pooled"][rows],
            guidance=guidance * GUIDANCE_UNIT,
            return_dict=False,
        )[0]
    return flow_matching_loss(prediction, latents, noise, sigmas)


def _spare_ends(sigmas: torch.Tensor, num_frames: int, generator: torch.Generator) -> torch.Tensor:
    """Give some samples a first or last latent frame that is less noisy than the others.

    The model is told the others' noise level, so it learns to judge each frame's by itself, as in
    Diffusion Forcing (arXiv:2407.01392): to a control LoRA, a keyframe is such a frame.

    Args:
        sigmas: [B].
        num_frames: F.
        generator: CPU generator.

    Returns:
        Sigmas [B, F].
    """
    frame_sigmas_BF = sigmas[:, None].repeat(1, num_frames)
    for end in (0, -1):
        is_spared = torch.rand(len(sigmas), generator=generator) < SPARED_SHARE
        share = torch.where(is_spared, torch.rand(len(sigmas), generator=generator), 1.0)
        frame_sigmas_BF[:, end] *= share
    return frame_sigmas_BF


if __name__ == "__main__":
    main()
