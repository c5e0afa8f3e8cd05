"""Rendering: keyframes and a caption to frames, with models that are loaded once.

Method: the reference's inference, with every random draw from the row's own seed.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.errors import BadInput
from hvkf.model.attention import apply_attention
from hvkf.model.conditioning import EmptyTiles, encode_condition
from hvkf.model.device import best_device
from hvkf.model.loading import (
    hub_shift,
    load_scheduler,
    load_text_encoders,
    load_transformer,
    load_vae,
)
from hvkf.model.lora import LoadedLora, fuse_lora, load_lora
from hvkf.model.precision import TORCH_DTYPES
from hvkf.model.random import draw_normal, generator_for
from hvkf.model.sampler import sample_latents
from hvkf.model.speed import apply_speed, forget_cached
from hvkf.model.text import PromptEmbeds, encode_prompts
from hvkf.model.vae import decode_latents, encode_video, set_tile, to_pixels_range
from hvkf.model_source import known_shift, model_folder_or_hub_id
from hvkf.settings.experiment import ModelConfig
from hvkf.settings.rendering import RenderSpeed
from hvkf.storage import Store

logger = logging.getLogger(__name__)

NUM_KEPT_PROMPTS = 256


class RenderFault(BadInput):
    """One pair cannot be rendered; `code` is what its failure is recorded under.

    Codes: `not-finite` (the model's output holds NaN or infinity).
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["RenderFault"], tuple[str, str]]:
        return type(self), (self.code, str(self))


class Pair(NamedTuple):
    """One video's keyframes by position (uint8 [H, W, 3]), its prompt and its seed.

    `item_key` further names the draws, where one seed serves many items.
    """

    keyframes: Mapping[int, torch.Tensor]
    prompt: str
    seed: int
    negative_prompt: str = ""
    item_key: str | None = None


class Rendered(NamedTuple):
    """uint8 frames [F, H, W, 3] and scaled latents [1, 16, f, h, w], both on the CPU.

    `step_s` is what one pass of the transformer took for this video.
    """

    frames: torch.Tensor
    latents: torch.Tensor
    step_s: float


class Renderer:
    """A checkpoint's models, ready to render any number of keyframe pairs."""

    def __init__(
        self,
        model: ModelConfig,
        store: Store,
        precision: str,
        speed: RenderSpeed | None = None,
    ) -> None:
        """Load all models onto this process's device.

        Args:
            model: Which checkpoint, and which attention kernel.
            store: The workspace, in which the checkpoint may lie.
            precision: fp32, bf16 or fp16; of all weights.
            speed: What makes it faster or smaller; left out, nothing does.

        Raises:
            BadInput: the checkpoint is not there, or is no HunyuanVideo text-to-video model.
            TryAgain: the hub did not answer.
        """
        self.device = best_device()
        source = model_folder_or_hub_id(model, store)
        self._source, self._model, self._dtype = source, model, TORCH_DTYPES[precision]
        dtype = self._dtype
        options = {"revision": model.revision, "variant": model.variant}
        self._speed = speed or RenderSpeed()
        home = torch.device("cpu") if self._speed.offload_encoders else self.device
        self._text = load_text_encoders(source, dtype=dtype, device=home, **options)
        self._vae = load_vae(source, dtype=dtype, device=home, **options)
        if self._speed.vae_tile is not None:
            set_tile(self._vae, self._speed.vae_tile)
        self._transformer = self._load_transformer()
        shift = known_shift(model, store)
        if shift is None:
            shift = hub_shift(source, revision=model.revision)
        self._scheduler = load_scheduler(shift)
        self._is_prepared = False
        self._fused: list[tuple[Path, float | None]] = []
        self._empty_tiles = EmptyTiles(self._vae, keeps_keyframes=True)
        self._prompt = lru_cache(NUM_KEPT_PROMPTS)(self._encode_prompt)

    def fuse_lora(self, file: Path, alpha: float | None = None) -> LoadedLora:
        """Merge a LoRA into the weights; what is rendered from now on has it.

        Weights that a speed setting has changed since (after the first video) are loaded anew.

        Args:
            file: A .safetensors or .sft file.
            alpha: Alpha of a file that records none.

        Raises:
            BadInput: the file cannot be read, or does not fit the checkpoint.
        """
        if self._is_prepared and self._speed.changes_weights:
            # What was rounded to 8 bits would stay rounded, and sums are not made in 8 bits.
            self._reload_transformer()
            for earlier, its_alpha in self._fused:
                load_lora(self._transformer, earlier, alpha=its_alpha)
                fuse_lora(self._transformer)
        loaded = load_lora(self._transformer, file, alpha=alpha)
        fuse_lora(self._transformer)
        self._fused.append((file, alpha))
        logger.info("LoRA %s: rank %d, alpha %g.", file, loaded.rank, loaded.alpha)
        return loaded

    def forget_loras(self) -> None:
        """Go back to the checkpoint's weights; the other models, and what they made, stay.

        The transformer is loaded anew: subtracting a LoRA would leave rounding behind.
        """
        if self._fused:
            self._reload_transformer()
            self._fused = []

    def _reload_transformer(self) -> None:
        del self._transformer  # two of them need not fit the device
        self._transformer = self._load_transformer()
        self._is_prepared = False

    @property
    def _is_too_large(self) -> bool:
        """Whether the GPU may not hold all weights in full: they come into main memory first."""
        return self._speed.packed_weights is not None or self._speed.group_offload

    def _load_transformer(self) -> HunyuanVideoTransformer3DModel:
        return load_transformer(
            self._source,
            revision=self._model.revision,
            variant=self._model.variant,
            dtype=self._dtype,
            attention="sdpa" if self._is_too_large else self._model.attention,
            device="cpu" if self._is_too_large else self.device,
        )

    @contextmanager
    def _on_device(self, *parts: torch.nn.Module) -> Iterator[None]:
        """Bring parts that wait in main memory to the device, and back."""
        if not self._speed.offload_encoders:
            yield
            return
        for part in parts:
            part.to(self.device)
        try:
            yield
        finally:
            for part in parts:
                part.to("cpu")

    def render(
        self,
        keyframes: Mapping[int, torch.Tensor],
        prompt: str,
        *,
        num_frames: int,
        steps: int,
        guidance: float,
        seed: int,
        item_key: str | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Render one video; equal arguments give an equal video, whatever was rendered before.

        Args:
            keyframes: Position (0, -1, or any between) to uint8 frame [H, W, 3], all of one size.
            prompt: What happens; taken as it is.
            num_frames: F, 4k+1.
            steps: Sampling steps.
            guidance: Embedded guidance scale.
            seed: Seed of the noise and of the condition's sample.
            item_key: Further names the draws, where one seed serves many items.
            on_step: Called after each step with its index; an exception ends the rendering.

        Returns:
            uint8 frames [F, H, W, 3] on the CPU.

        Raises:
            BadInput: keyframes of several sizes or outside the video, F not 4k+1.
            RenderFault: the model's output is not finite.
        """
        (rendered,) = self.render_batch(
            [Pair(keyframes, prompt, seed, item_key=item_key)],
            num_frames=num_frames,
            steps=steps,
            guidance=guidance,
            on_step=on_step,
        )
        if isinstance(rendered, RenderFault):
            raise rendered
        return rendered.frames

    def render_batch(
        self,
        pairs: Sequence[Pair],
        *,
        num_frames: int,
        steps: int,
        guidance: float,
        true_cfg_scale: float = 1.0,
        on_step: Callable[[int], None] | None = None,
    ) -> list[Rendered | RenderFault]:
        """Render videos of one size together; each is as if it were alone, but for rounding.

        Args:
            pairs: Keyframes, prompts and seeds.
            num_frames: F, 4k+1.
            steps: Sampling steps.
            guidance: Embedded guidance scale.
            true_cfg_scale: Weight of the negative prompts; 1 leaves them out.
            on_step: Called after each step with its index; an exception ends the rendering.

        Returns:
            For each pair its video, or the fault that it alone has.

        Raises:
            BadInput: keyframes of several sizes or outside the video, F not 4k+1.
        """
        self._prepare()
        with self._on_device(self._vae):
            conditions = [
                encode_condition(
                    self._vae,
                    pair.keyframes,
                    num_frames,
                    generator_for(pair.seed, "condition", pair.item_key),
                    self._empty_tiles,
                )
                for pair in pairs
            ]
        noise = draw_normal(
            conditions[0].shape[1:],
            [generator_for(pair.seed, "noise", pair.item_key) for pair in pairs],
        )
        negative = None
        if true_cfg_scale > 1:
            negative = self._prompts([pair.negative_prompt for pair in pairs])
        begun_s = time.perf_counter()
        latents = sample_latents(
            self._transformer,
            self._scheduler,
            self._prompts([pair.prompt for pair in pairs]),
            torch.cat(conditions),
            noise=noise,
            steps=steps,
            guidance=guidance,
            negative=negative,
            true_cfg_scale=true_cfg_scale,
            on_step=None if on_step is None else lambda step, _: on_step(step),
        ).cpu()
        passes = steps * (2 if true_cfg_scale > 1 else 1) * len(pairs)
        step_s = (time.perf_counter() - begun_s) / passes
        with self._on_device(self._vae):
            return [self._decode(latents[index : index + 1], step_s) for index in range(len(pairs))]

    def _decode(self, latents: torch.Tensor, step_s: float) -> Rendered | RenderFault:
        if not bool(torch.isfinite(latents).all()):
            return RenderFault(
                "not-finite",
                "the model's output holds NaN or infinity: the LoRA may have diverged in training, "
                "or fp16 overflowed (use bf16 or fp32)",
            )
        return Rendered(decode_latents(self._vae, latents), latents, step_s)

    def _prepare(self) -> None:
        """Apply the speed settings, once the weights are final, and forget the last video."""
        if not self._is_prepared:
            apply_speed(self._transformer, self._speed, self.device)
            if self._is_too_large:
                apply_attention(self._transformer, self._model.attention, device=self.device)
            self._is_prepared = True
        forget_cached(self._transformer)

    def reconstruct(self, frames_FHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 frames [F, H, W, 3] and decode them: the best that latents can hold."""
        with self._on_device(self._vae):
            return decode_latents(self._vae, encode_video(self._vae, to_pixels_range(frames_FHWC)))

    def _prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Encode prompts, each by itself and once: in another batch its last bits would change."""
        found = [self._prompt(prompt) for prompt in prompts]
        return PromptEmbeds(
            torch.cat([one.prompt_embeds for one in found]),
            torch.cat([one.prompt_attention_mask for one in found]),
            torch.cat([one.pooled_prompt_embeds for one in found]),
        )

    def _encode_prompt(self, prompt: str) -> PromptEmbeds:
        with self._on_device(self._text.text_encoder, self._text.text_encoder_2):
            return encode_prompts(self._text, [prompt])
