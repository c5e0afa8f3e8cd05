"""A configuration's plan: what fits, what it takes, what it costs, for one kind of GPU."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hvkf.buckets import Bucket
from hvkf.config import Config
from hvkf.estimate.amounts import Amounts
from hvkf.estimate.cards import Card
from hvkf.estimate.options import OPTIONS, Tried, try_options
from hvkf.estimate.parts import Shapes, num_bytes, num_parameters
from hvkf.estimate.stages import Encode, Render, StageEstimate, Train
from hvkf.estimate.stored import StoredSample, stored_sample
from hvkf.training.settings import num_steps
from hvkf.training.sharding import Sharding

HOUR_S = 3600


@dataclass(frozen=True)
class Machine:
    """A kind of GPU, how many train together, and the share of their peak that is reached."""

    card: Card
    num_ranks: int
    sharding: Sharding
    utilisation: float

    def fits(self, estimate: StageEstimate) -> bool:
        """Whether a stage's peak fits the card."""
        return estimate.peak_bytes <= self.card.usable_bytes

    def hours(self, flops: float) -> float:
        """Count the hours of one GPU."""
        return flops / (self.card.flops_per_s * self.utilisation) / HOUR_S


@dataclass(frozen=True)
class Plan:
    """All that was counted."""

    model: str
    parts: Mapping[str, tuple[int, int]]
    machine: Machine
    amounts: Amounts
    stages: tuple[StageEstimate, ...]
    stored: Mapping[Bucket, StoredSample]
    checkpoint_bytes: int
    num_checkpoints: int
    totals: Mapping[str, float]
    tried: tuple[Tried, ...]
    encode_batches: Mapping[Bucket, int]

    def as_json(self) -> dict[str, Any]:
        """Give it as plain numbers: bytes, floating-point operations, hours."""
        machine = self.machine
        return {
            "model": self.model,
            "parts": {
                name: {"parameters": count, "bytes": size}
                for name, (count, size) in self.parts.items()
            },
            "gpu": machine.card.name,
            "gpu_bytes": machine.card.memory_bytes,
            "usable_bytes": machine.card.usable_bytes,
            "num_ranks": machine.num_ranks,
            "sharding": machine.sharding.value,
            "utilisation": machine.utilisation,
            "stages": [
                {
                    "stage": one.stage,
                    "bucket": str(one.bucket),
                    "peak_bytes": one.peak_bytes,
                    "peak_pass": one.peak_pass,
                    "resident_bytes": dict(one.resident),
                    "fits": machine.fits(one),
                    "flops": one.flops,
                    "gpu_seconds": machine.hours(one.flops) * HOUR_S,
                }
                for one in self.stages
            ],
            "encode_batches": {str(bucket): size for bucket, size in self.encode_batches.items()},
            "clips": {str(bucket): count for bucket, count in self.amounts.clips.items()},
            "clips_from": self.amounts.source,
            "videos": self.amounts.videos,
            "stored_bytes_per_clip": {
                str(bucket): {
                    "scene": one.scene,
                    "latents": one.latents,
                    "condition": one.condition,
                    "text": one.text,
                }
                for bucket, one in self.stored.items()
            },
            "checkpoint_bytes": self.checkpoint_bytes,
            "num_checkpoints": self.num_checkpoints,
            "totals": dict(self.totals),
            "options": [
                {
                    "stage": one.estimate.stage,
                    "bucket": str(one.estimate.bucket),
                    "option": one.option.name,
                    "write": one.words,
                    "cost": one.option.cost,
                    "peak_bytes": one.estimate.peak_bytes,
                    "fits": machine.fits(one.estimate),
                    "flops": one.estimate.flops,
                }
                for one in self.tried
            ],
        }


def make_plan(
    config: Config,
    shapes: Shapes,
    machine: Machine,
    amounts: Amounts,
    *,
    all_options: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Count all stages of a configuration, and what would make those fit that do not.

    Args:
        config: The configuration.
        shapes: The sizes of its model.
        machine: On what.
        amounts: How much.
        all_options: Count what makes stages smaller even where they fit.
        say: Told what is counted next.
    """
    encode, render = Encode(config, shapes), Render(config, shapes)
    say("the LoRA")
    train = Train(config, shapes, machine.num_ranks, machine.sharding)
    stages = []
    batches = {}
    for bucket in amounts.clips:
        say(f"encoding {bucket}")
        stages.append(encode.estimate(bucket))
        batches[bucket] = encode.largest_batch(bucket, machine.card.usable_bytes)
        say(f"a training step of {bucket}")
        stages.append(train.estimate(bucket))
    wanted = Bucket(config.render.width, config.render.height, config.render.num_frames)
    say(f"rendering {wanted}")
    stages.append(render.estimate(wanted))
    transformer = shapes.settings["transformer"]
    text_sizes = (
        transformer.get("text_embed_dim", 4096),
        transformer.get("pooled_projection_dim", 768),
    )
    vae = shapes.vae(torch.bfloat16)
    stored = {
        bucket: stored_sample(vae, bucket, config.encode.stored, *text_sizes)
        for bucket in amounts.clips
    }
    # The LoRA to render with, the weights to go on from, and the state.
    checkpoint_bytes = 2 * train.trained_bytes + sum(train.all_state.values())
    steps, samples = num_passes(config, amounts, machine.num_ranks)
    num_checkpoints = kept_checkpoints(config, steps)
    return Plan(
        model=shapes.name,
        parts=_parts(render, train, encode),
        machine=machine,
        amounts=amounts,
        stages=tuple(stages),
        stored=stored,
        checkpoint_bytes=checkpoint_bytes,
        num_checkpoints=num_checkpoints,
        totals=_totals(stages, stored, machine, amounts, samples)
        | {"train_steps": steps, "checkpoints_bytes": num_checkpoints * checkpoint_bytes},
        tried=tuple(_options(config, shapes, machine, stages, all_options, say)),
        encode_batches=batches,
    )


def _options(
    config: Config,
    shapes: Shapes,
    machine: Machine,
    stages: list[StageEstimate],
    all_options: bool,
    say: Callable[[str], None],
) -> Iterator[Tried]:
    """Try the options on the bucket of each stage that needs most."""
    for stage in OPTIONS:
        of_stage = [one for one in stages if one.stage == stage]
        largest = max(of_stage, key=lambda one: one.peak_bytes)
        if all_options or not machine.fits(largest):
            yield from try_options(
                config,
                shapes,
                stage,
                largest.bucket,
                machine.num_ranks,
                machine.sharding,
                say,
            )


def num_passes(config: Config, amounts: Amounts, num_ranks: int) -> tuple[int, float]:
    """Count the optimizer's steps, and the passes over all samples that they are."""
    batch = config.data.batch_size * num_ranks * config.hparams.gradient_accumulation_steps
    of_epoch, steps = num_steps(config, list(amounts.clips.values()), batch)
    return steps, steps / of_epoch


def kept_checkpoints(config: Config, steps: int) -> int:
    """Count the checkpoints that lie in the workspace at the end of a training."""
    every = config.checkpointing.save_every_n_steps
    if every is None or steps <= every:
        return 1
    back = config.checkpointing.save_last_n_steps
    all_of_them = -(-steps // every)
    return all_of_them if back is None else min(all_of_them, back // every + 1)


def _parts(render: Render, train: Train, encode: Encode) -> dict[str, tuple[int, int]]:
    modules = {"transformer": render.transformer, **render.encoders.named}
    parts = {name: (num_parameters(part), num_bytes(part)) for name, part in modules.items()}
    return {**parts, "LoRA": (train.num_trained, train.trained_bytes)}


def _totals(
    stages: list[StageEstimate],
    stored: Mapping[Bucket, StoredSample],
    machine: Machine,
    amounts: Amounts,
    epochs: float,
) -> dict[str, float]:
    flops = {(one.stage, one.bucket): one.flops for one in stages}
    clips = amounts.clips
    rendering = next(one.flops for one in stages if one.stage == "render")
    scenes = sum(stored[bucket].scene * count for bucket, count in clips.items())
    latents = sum(stored[bucket].encoded * count for bucket, count in clips.items())
    of_epoch = sum(flops["train", bucket] * count for bucket, count in clips.items())
    return {
        "encode_gpu_hours": machine.hours(
            sum(flops["encode", bucket] * count for bucket, count in clips.items())
        ),
        "train_gpu_hours": machine.hours(of_epoch * epochs),
        "render_gpu_hours": machine.hours(rendering * amounts.videos),
        "scenes_bytes": scenes,
        "latents_bytes": latents,
        # Each epoch reads all latents; a machine that keeps its shards reads them once.
        "train_read_bytes": latents * epochs,
    }
