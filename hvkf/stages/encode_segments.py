"""Encoding scene segments on one device: the models are loaded once for all of them."""

from functools import lru_cache

import numpy as np
import torch

from hvkf import ledger
from hvkf.captions import clean_caption
from hvkf.config import Config
from hvkf.model.conditioning import EmptyTiles, encode_condition, keyframes_of
from hvkf.model.device import best_device
from hvkf.model.loading import load_text_encoders, load_vae
from hvkf.model.precision import TORCH_DTYPES, to_stored
from hvkf.model.random import generator_for
from hvkf.model.text import PromptEmbeds, encode_prompts
from hvkf.model.vae import encode_video, to_pixels_range
from hvkf.model_source import cache_folder, model_folder_or_hub_id
from hvkf.progress import progress
from hvkf.shards import Sample, Segment, SegmentWriter
from hvkf.stages.encode import latent_segment_id
from hvkf.storage import Store

NUM_KEPT_PROMPTS = 256
NDARRAY_OF = {"bf16": "ndarray:uint16", "fp16": "ndarray:float16", "fp32": "ndarray:float32"}


def latent_columns(stored: str) -> dict[str, str]:
    """Name the columns of latent shards; bfloat16 is stored as its bits in uint16."""
    array = NDARRAY_OF[stored]
    return {
        "item_key": "str",
        "clip_id": "str",
        "source": "str",
        "caption": "str",
        "latents": array,
        "latents_cond": array,
        "prompt_embeds": array,
        "prompt_attention_mask": "ndarray:uint8",
        "pooled_prompt_embeds": array,
    }


class Encoder:
    """The loaded encoders, and the settings under which they make latents of scenes."""

    def __init__(self, config: Config, store: Store) -> None:
        self._seed = config.encode.seed
        self.stored = config.encode.stored
        source = model_folder_or_hub_id(config.model, store)
        options = {
            "revision": config.model.revision,
            "variant": config.model.variant,
        }
        dtype, device = TORCH_DTYPES[config.encode.precision], best_device()
        self._vae = load_vae(source, dtype=dtype, device=device, **options)
        self._text = load_text_encoders(source, dtype=dtype, device=device, **options)
        self._empty_tiles = EmptyTiles(self._vae)
        # A clip's caption comes again for each of its buckets and windows.
        self._prompt = lru_cache(NUM_KEPT_PROMPTS)(self._encode_prompt)

    def encode(self, scene: Sample) -> Sample:
        """Make the latent sample of a scene sample."""
        key = scene["item_key"]
        # A copy: the shard's bytes are read-only, and torch warns of what may write to them.
        frames = torch.from_numpy(np.array(scene["video"]))
        latents = encode_video(
            self._vae, to_pixels_range(frames), generator_for(self._seed, "latents", key)
        )
        condition = encode_condition(
            self._vae,
            keyframes_of(frames),
            len(frames),
            generator_for(self._seed, "latents_cond", key),
            self._empty_tiles,
        )
        prompt = self._prompt(clean_caption(scene["caption"]))
        return {
            "item_key": key,
            "clip_id": scene["clip_id"],
            "source": scene["source"],
            "caption": scene["caption"],
            "latents": to_stored(latents[0], self.stored),
            "latents_cond": to_stored(condition[0], self.stored),
            "prompt_embeds": to_stored(prompt.prompt_embeds[0], self.stored),
            "prompt_attention_mask": prompt.prompt_attention_mask[0].to(torch.uint8).cpu().numpy(),
            "pooled_prompt_embeds": to_stored(prompt.pooled_prompt_embeds[0], self.stored),
        }

    def _encode_prompt(self, caption: str) -> PromptEmbeds:
        """Encode a caption by itself: in another batch its last bits would change."""
        return encode_prompts(self._text, [caption], "cpu")


def encode_segments(
    config: Config, store: Store, scenes_root: str, latents_root: str, scene_ids: list[str]
) -> None:
    """Make the latent segments of the given scene segments that have no record yet."""
    missing = [
        ledger.read_segment(store, scenes_root, scene)
        for scene in scene_ids
        if not store.exists(ledger.segment_path(latents_root, latent_segment_id(scene)))
    ]
    if not missing:
        return
    with progress("encode", sum(len(record.items) for record in missing)) as shown:
        encoder = Encoder(config, store)
        for record in missing:
            segment = Segment(store, record, cache_folder() / "shards")
            writer = SegmentWriter(
                latent_segment_id(record.segment_id),
                record.bucket,
                latent_columns(encoder.stored),
                "none",
            )
            try:
                for position, item in enumerate(record.items):
                    scene = segment[position]
                    writer.add(item.key, item.source_sha256, encoder.encode(scene))
                    shown.advance(note=f"{record.bucket} {scene['source']}")
                writer.commit(store, latents_root, ledger.attempt_name())
            finally:
                writer.close()
