"""Peak memory and arithmetic of encoding, training and rendering, for a bucket.

The parts that a stage keeps on its GPU lie there while each of its passes is counted.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from transformers import CLIPTextModel, LlamaModel

from hvkf.buckets import Bucket
from hvkf.config import Config
from hvkf.estimate.counting import META, Count
from hvkf.estimate.parts import Shapes, num_bytes
from hvkf.estimate.passes import (
    count_condition,
    count_step,
    count_text,
    count_vae_decode,
    count_vae_encode,
    count_velocity,
    latent_shape,
    off_the_gpu,
)
from hvkf.estimate.training_state import optimizer_bytes
from hvkf.model.frozen import hold_frozen
from hvkf.model.lora import add_lora
from hvkf.model.precision import TORCH_DTYPES
from hvkf.model.recomputing import recompute_blocks
from hvkf.model.renderer import NUM_KEPT_PROMPTS
from hvkf.model.speed import FP8
from hvkf.model.text import MAX_SEQUENCE_LENGTH
from hvkf.model.vae import set_tile
from hvkf.training.sharding import Sharding
from hvkf.training.trainer import BASE_DTYPES, has_float32_weights

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class StageEstimate:
    """What a stage needs for a bucket.

    Attributes:
        stage: encode, train or render.
        bucket: The size and length.
        resident: What lies on the GPU all the time, by part, in bytes.
        passes: What each pass takes, all that is resident included.
        flops: Of one clip encoded, one sample trained on, one video rendered.
    """

    stage: str
    bucket: Bucket
    resident: Mapping[str, int]
    passes: Mapping[str, int]
    flops: int

    @property
    def peak_bytes(self) -> int:
        """The most that is alive at once."""
        return max(self.passes.values())

    @property
    def peak_pass(self) -> str:
        """Which pass needs it."""
        return max(self.passes, key=lambda name: self.passes[name])


class Encoders:
    """What encoding and rendering share: VAE and text encoders of one precision."""

    def __init__(self, shapes: Shapes, precision: str) -> None:
        dtype = TORCH_DTYPES[precision]
        self.vae: AutoencoderKLHunyuanVideo = shapes.vae(dtype)
        self.llama: LlamaModel = shapes.llama(dtype)
        self.clip: CLIPTextModel = shapes.clip(dtype)

    @property
    def named(self) -> dict[str, torch.nn.Module]:
        """All of them, by name."""
        return {"VAE": self.vae, "Llama": self.llama, "CLIP": self.clip}

    @property
    def modules(self) -> list[torch.nn.Module]:
        """All of them."""
        return list(self.named.values())

    @property
    def resident(self) -> dict[str, int]:
        """Their bytes, by name."""
        return {name: num_bytes(part) for name, part in self.named.items()}


class Encode:
    """The encode stage of a configuration."""

    def __init__(self, config: Config, shapes: Shapes) -> None:
        self._batch_size = config.encode.batch_size
        self._num_captions = config.encode.caption_batch_size
        self._encoders = Encoders(shapes, config.encode.precision)
        if config.encode.vae_tile is not None:
            set_tile(self._encoders.vae, config.encode.vae_tile)

    @cached_property
    def _text(self) -> Count:
        encoders = self._encoders
        return count_text(encoders.llama, encoders.clip, encoders.modules, self._num_captions)

    def estimate(self, bucket: Bucket) -> StageEstimate:
        """Count one clip: its video, its condition, its caption.

        Memory is that of `encode.batch_size` clips and of `encode.caption_batch_size` captions.
        """
        encoders, together = self._encoders, self._batch_size
        passes = {**self._of_vae(bucket, together), "caption": self._text}
        repeats = {
            "video": 1 / together,
            "condition": 1 / together,
            "caption": 1 / self._num_captions,
        }
        return _estimate("encode", bucket, encoders.resident, passes, repeats)

    def _of_vae(self, bucket: Bucket, together: int) -> dict[str, Count]:
        encoders = self._encoders
        return {
            "video": count_vae_encode(encoders.vae, bucket, encoders.modules, together),
            "condition": count_condition(encoders.vae, bucket, encoders.modules, together),
        }

    def largest_batch(self, bucket: Bucket, usable_bytes: int) -> int:
        """Find the largest `encode.batch_size` that fits; 0 where a clip or the captions do not."""
        if self._text.peak_bytes > usable_bytes:
            return 0

        def peak(together: int) -> int:
            return max(count.peak_bytes for count in self._of_vae(bucket, together).values())

        # From some clips on each takes the same; below, what is made once may be the peak.
        four, eight = peak(4), peak(8)
        found = max(0, 8 + (usable_bytes - eight) // ((eight - four) // 4))
        while found and peak(found) > usable_bytes:
            found -= 1
        return found


class Render:
    """The render stage of a configuration."""

    def __init__(self, config: Config, shapes: Shapes) -> None:
        self._config = config.render
        self.encoders = Encoders(shapes, config.render.precision)
        self.transformer: HunyuanVideoTransformer3DModel = shapes.transformer(
            TORCH_DTYPES[config.render.precision]
        )
        speed = config.render.speed
        if speed.vae_tile is not None:
            set_tile(self.encoders.vae, speed.vae_tile)
        if speed.fp8_layerwise:
            self.transformer.enable_layerwise_casting(
                storage_dtype=FP8, compute_dtype=self.transformer.dtype
            )
        if speed.packed_weights is not None:
            hold_frozen(self.transformer, speed.packed_weights)

    @cached_property
    def _text(self) -> Count:
        llama, clip = self.encoders.llama, self.encoders.clip
        return count_text(llama, clip, self._beside(llama, clip))

    def _beside(self, *used: torch.nn.Module) -> list[torch.nn.Module]:
        """List what lies on the GPU while a pass uses these parts."""
        if self._config.speed.offload_encoders:
            return [self.transformer, *used]
        return [self.transformer, *self.encoders.modules]

    @property
    def _waiting_bytes(self) -> int:
        """What of the transformer waits in main memory: a block computes, the next is fetched."""
        if not self._config.speed.group_offload:
            return 0
        blocks = block_bytes(self.transformer)
        return max(0, sum(blocks) - 2 * max(blocks))

    @property
    def _kept_prompts_bytes(self) -> int:
        """What the prompts of earlier rows take, where there are as many as are kept."""
        config = self.transformer.config
        each = MAX_SEQUENCE_LENGTH * config["text_embed_dim"] + config["pooled_projection_dim"]
        return int(NUM_KEPT_PROMPTS * each * self.transformer.dtype.itemsize)

    def estimate(self, bucket: Bucket) -> StageEstimate:
        """Count one video; memory is that of `render.speed.batch_size` of them."""
        render, encoders = self._config, self.encoders
        batch_size = render.speed.batch_size
        passes = {
            "condition": count_condition(encoders.vae, bucket, self._beside(encoders.vae)),
            "caption": self._text,
            "sampling": count_velocity(
                self.transformer, latent_shape(encoders.vae, bucket), batch_size, self._beside()
            ),
            "decoding": count_vae_decode(encoders.vae, bucket, self._beside(encoders.vae)),
        }
        waiting, prompts = self._waiting_bytes, self._kept_prompts_bytes
        passes = {
            name: Count(count.peak_bytes - waiting + prompts, count.flops)
            for name, count in passes.items()
        }
        resident = {"transformer": num_bytes(self.transformer) - waiting, "prompts": prompts}
        if not render.speed.offload_encoders:
            resident |= encoders.resident
        num_passes = render.steps * (2 if render.true_cfg_scale > 1 else 1)
        repeats = {"condition": 1, "caption": 1, "decoding": 1, "sampling": num_passes / batch_size}
        return _estimate("render", bucket, resident, passes, repeats)


class Train:
    """The train stage of a configuration, on one of several ranks."""

    def __init__(
        self,
        config: Config,
        shapes: Shapes,
        num_ranks: int = 1,
        sharding: Sharding = Sharding.NOTHING,
    ) -> None:
        self._config = config
        self._num_ranks = num_ranks
        self._sharding = sharding if num_ranks > 1 else Sharding.NOTHING
        self._vae = shapes.vae(torch.bfloat16)
        self._dtype = BASE_DTYPES[config.hparams.mixed_precision]
        self.transformer: Any = shapes.transformer(self._dtype)
        network = config.network
        with META:
            trained = add_lora(
                self.transformer,
                rank=network.lora_rank,
                alpha=network.lora_alpha,
                target=network.target_modules or network.lora_layers,
                train_norm_layers=network.train_norm_layers,
            )
        if has_float32_weights(config):
            for weight in trained:
                weight.data = weight.data.float()
        self.transformer.train()
        hparams = config.hparams
        if hparams.holds_frozen_weights:
            hold_frozen(
                self.transformer, hparams.packed_weights, waits=hparams.weights_in_main_memory
            )
        if hparams.gradient_checkpointing:
            waiting = off_the_gpu if hparams.checkpoint_in_main_memory else nullcontext
            recompute_blocks(self.transformer, hparams.checkpoint_every_n_blocks, waiting)
        self._base_bytes = num_bytes(self.transformer, trained=False)
        self.num_trained = sum(weight.numel() for weight in trained)
        self.trained_bytes = num_bytes(self.transformer, trained=True)

    @property
    def all_state(self) -> dict[str, int]:
        """What is kept beside the model, by part, before any of it is shared out; in bytes."""
        hparams = self._config.hparams
        weight_bytes = self.trained_bytes // self.num_trained
        optimizer = optimizer_bytes(hparams.optimizer_type, self.num_trained, weight_bytes)
        kept = {"optimizer": optimizer}
        if hparams.ema.use_ema:
            kept["average"] = FLOAT32_BYTES * self.num_trained
        return kept

    @property
    def _state(self) -> dict[str, int]:
        """What of it lies on the GPU."""
        kept = self.all_state
        if self._config.hparams.ema.ema_device == "cpu":
            kept.pop("average", None)
        return kept

    def estimate(self, bucket: Bucket) -> StageEstimate:
        """Count a step's micro-batch of `data.batch_size` samples; arithmetic is one sample's."""
        config = self._config
        step = count_step(
            self.transformer,
            latent_shape(self._vae, bucket),
            config.data.batch_size,
            dtype=self._dtype,
            stored=TORCH_DTYPES[config.encode.stored],
            has_gradients=config.hparams.gradient_accumulation_steps > 1,
        )
        whole = {"frozen weights": self._base_bytes, "LoRA": self.trained_bytes}
        resident = self._shared_out({**whole, **self._state})
        # The pass was counted with all weights on the GPU, and nothing else.
        beside = sum(resident.values()) - sum(whole.values())
        passes = {"step": Count(step.peak_bytes + beside, step.flops)}
        repeats = {"step": 1 / config.data.batch_size}
        return _estimate("train", bucket, resident, passes, repeats)

    def _shared_out(self, whole: dict[str, int]) -> dict[str, int]:
        """Take the parts of other ranks away, and add what sharing out costs."""
        ranks = self._num_ranks
        if ranks == 1:
            return whole
        if self._sharding is Sharding.NOTHING:
            # DistributedDataParallel sends gradients from buckets of their own.
            is_view = self._config.ddp_kwargs.gradient_as_bucket_view
            return {**whole, "gradient buckets": 0 if is_view else self.trained_bytes}
        divided = {name: -(-size // ranks) for name, size in whole.items()}
        if self._sharding is Sharding.TRAINED:
            # Gathered weights are kept until the end of the step.
            gathered = self.trained_bytes
            return {**divided, "frozen weights": whole["frozen weights"], "gathered": gathered}
        # One block computes while the next is fetched.
        return {**divided, "gathered": 2 * max(block_bytes(self.transformer))}


def block_bytes(transformer: Any) -> list[int]:
    """List the bytes of each block's weights."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    return [num_bytes(block) for block in blocks]


def _estimate(
    stage: str,
    bucket: Bucket,
    resident: Mapping[str, int],
    passes: Mapping[str, Count],
    repeats: Mapping[str, float],
) -> StageEstimate:
    flops = sum(round(count.flops * repeats[name]) for name, count in passes.items())
    peaks = {name: count.peak_bytes for name, count in passes.items()}
    return StageEstimate(stage, bucket, resident, peaks, flops)
