"""Rendering: keyframes and a caption to frames, with models that are loaded once.

Method: the reference's inference, with every random draw from the row's own seed.
"""

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import torch

from hvkf.errors import BadInput
from hvkf.model.conditioning import EmptyTiles, encode_condition
from hvkf.model.device import best_device
from hvkf.model.loading import load_scheduler, load_text_encoders, load_transformer, load_vae
from hvkf.model.lora import LoadedLora, fuse_lora, load_lora
from hvkf.model.precision import TORCH_DTYPES
from hvkf.model.random import draw_normal, generator_for
from hvkf.model.sampler import sample_latents
from hvkf.model.text import PromptEmbeds, encode_prompts
from hvkf.model.vae import decode_latents, encode_video, to_pixels_range
from hvkf.model_source import model_folder_or_hub_id
from hvkf.settings.experiment import ModelConfig
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


class Renderer:
    """A checkpoint's models, ready to render any number of keyframe pairs."""

    def __init__(self, model: ModelConfig, store: Store, precision: str) -> None:
        """Load all models onto this process's device.

        Args:
            model: Which checkpoint, and which attention kernel.
            store: The workspace, in which the checkpoint may lie.
            precision: fp32, bf16 or fp16; of all weights.

        Raises:
            BadInput: the checkpoint is not there, or is no HunyuanVideo text-to-video model.
            TryAgain: the hub did not answer.
        """
        self.device = best_device()
        source = model_folder_or_hub_id(model, store)
        dtype = TORCH_DTYPES[precision]
        options = {"revision": model.revision, "variant": model.variant}
        self._text = load_text_encoders(source, dtype=dtype, device=self.device, **options)
        self._vae = load_vae(source, dtype=dtype, device=self.device, **options)
        self._transformer = load_transformer(
            source,
            revision=model.revision,
            variant=model.variant,
            dtype=dtype,
            attention=model.attention,
            device=self.device,
        )
        self._scheduler = load_scheduler()
        self._empty_tiles = EmptyTiles(self._vae)
        self._prompt = lru_cache(NUM_KEPT_PROMPTS)(self._encode_prompt)

    def fuse_lora(self, file: Path, alpha: float | None = None) -> LoadedLora:
        """Merge a LoRA into the weights; what is rendered from now on has it.

        Args:
            file: A .safetensors or .sft file.
            alpha: Alpha of a file that records none.

        Raises:
            BadInput: the file cannot be read, or does not fit the checkpoint.
        """
        loaded = load_lora(self._transformer, file, alpha=alpha)
        fuse_lora(self._transformer)
        logger.info("LoRA %s: rank %d, alpha %g.", file, loaded.rank, loaded.alpha)
        return loaded

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
        condition = encode_condition(
            self._vae,
            keyframes,
            num_frames,
            generator_for(seed, "condition", item_key),
            self._empty_tiles,
        )
        noise = draw_normal(condition.shape[1:], [generator_for(seed, "noise", item_key)])
        latents = sample_latents(
            self._transformer,
            self._scheduler,
            self._prompt(prompt),
            condition,
            noise=noise,
            steps=steps,
            guidance=guidance,
            on_step=None if on_step is None else lambda step, _: on_step(step),
        )
        if not bool(torch.isfinite(latents).all()):
            raise RenderFault(
                "not-finite",
                "the model's output holds NaN or infinity: the LoRA may have diverged in training, "
                "or fp16 overflowed (use bf16 or fp32)",
            )
        return decode_latents(self._vae, latents)

    def reconstruct(self, frames_FHWC: torch.Tensor) -> torch.Tensor:
        """Encode uint8 frames [F, H, W, 3] and decode them: the best that latents can hold."""
        return decode_latents(self._vae, encode_video(self._vae, to_pixels_range(frames_FHWC)))

    def _encode_prompt(self, prompt: str) -> PromptEmbeds:
        """Encode a prompt by itself: in another batch its last bits would change."""
        return encode_prompts(self._text, [prompt])
