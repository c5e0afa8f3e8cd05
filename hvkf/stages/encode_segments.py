"""Encoding scene segments on one device: the models are loaded once for all of them.

Scenes are read and latents are stored by threads, while the device encodes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple

import torch

from hvkf import ledger
from hvkf.ahead import ahead
from hvkf.captions import batch_by_length, clean_caption
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.lossless_video import unpack_frames
from hvkf.model.conditioning import EmptyTiles, empty_latent_frames, encode_condition, keyframes_of
from hvkf.model.device import best_device
from hvkf.model.latent_columns import pack_condition, pack_empty, pack_prompts, packed_columns
from hvkf.model.loading import load_text_encoders, load_vae
from hvkf.model.precision import TORCH_DTYPES, to_stored
from hvkf.model.random import generator_for
from hvkf.model.text import count_tokens, encode_prompts
from hvkf.model.vae import encode_video, pixels_for, set_tile
from hvkf.model_source import cache_folder, model_folder_or_hub_id
from hvkf.progress import Progress, progress
from hvkf.records import ItemEntry, SegmentRecord
from hvkf.shards import Sample, Segment, SegmentWriter
from hvkf.stages.committing import Committer
from hvkf.stages.encode import latent_segment_id
from hvkf.stages.encode_captions import ALONE, CaptionBatch, Prompts, too_many
from hvkf.storage import Store

KEYFRAMES = (0, -1)


class Scene(NamedTuple):
    """A sample to encode.

    Attributes:
        item: What the ledger says of it.
        sample: Its columns, with its frames unpacked.
        captions: Those of all samples of its segment, where captions are encoded in batches.
    """

    item: ItemEntry
    sample: Sample
    captions: Sequence[str]


class Encoder:
    """The loaded encoders, and the settings under which they make latents of scenes."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config = config.encode
        self.stored = config.encode.stored
        source = model_folder_or_hub_id(config.model, store)
        options: dict[str, Any] = {
            "revision": config.model.revision,
            "variant": config.model.variant,
            "dtype": TORCH_DTYPES[config.encode.precision],
            "device": best_device(),
        }
        self._vae = load_vae(source, **options)
        if config.encode.vae_tile is not None:
            set_tile(self._vae, config.encode.vae_tile)
        self._text = load_text_encoders(source, **options)
        self._empty_tiles = EmptyTiles(self._vae)
        self._prompts = Prompts(self._encode_prompts)
        self._packed_empty: dict[tuple[int, int, int], bytes] = {}

    @property
    def batch_size(self) -> int:
        """How many samples of a shape go through the VAE together."""
        return self._config.batch_size

    def caption_batches(self, captions: Iterable[str]) -> Mapping[str, CaptionBatch]:
        """Say which of a segment's captions are encoded together: those of like lengths."""
        cleaned = sorted({clean_caption(caption) for caption in captions})
        lengths = dict(zip(cleaned, count_tokens(self._text, cleaned), strict=True))
        return batch_by_length(lengths, self._config.caption_batch_size)

    def encode(
        self, scenes: Sequence[Sample], batches: Mapping[str, CaptionBatch] = ALONE
    ) -> list[Sample]:
        """Make the latent samples of scene samples of one shape whose frames are unpacked.

        Args:
            scenes: The samples, which go through the VAE together.
            batches: Which captions are encoded together, from `caption_batches`; any other one is
                encoded alone.

        Raises:
            BadInput: the device's memory does not hold them.
        """
        frames = torch.stack([torch.from_numpy(scene["video"]) for scene in scenes])
        keys = [scene["item_key"] for scene in scenes]
        try:
            latents = self._latents(frames, keys)
            conditions = self._conditions(frames, keys)
        except torch.OutOfMemoryError as fault:
            raise self._too_large(frames) from fault
        captions = [clean_caption(scene["caption"]) for scene in scenes]
        prompts = [self._prompts(one, batches.get(one, (one,))) for one in captions]
        return [
            {
                "item_key": scene["item_key"],
                "clip_id": scene["clip_id"],
                "source": scene["source"],
                "caption": scene["caption"],
                "latents": to_stored(latents[index], self.stored),
                **conditions[index],
                **prompts[index],
            }
            for index, scene in enumerate(scenes)
        ]

    def _generators(self, purpose: str, keys: Sequence[str]) -> list[torch.Generator]:
        """Draw for each sample by itself, so that its noise does not depend on its batch."""
        return [generator_for(self._config.seed, purpose, key) for key in keys]

    def _latents(self, frames: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
        generators = self._generators("latents", keys)
        return encode_video(self._vae, pixels_for(self._vae, frames), generators)

    def _conditions(self, frames: torch.Tensor, keys: Sequence[str]) -> list[Sample]:
        num_frames, height, width = frames.shape[1:4]
        generators = self._generators("latents_cond", keys)
        keyframes = keyframes_of(frames, KEYFRAMES)
        latents = encode_condition(self._vae, keyframes, num_frames, generators, self._empty_tiles)
        empty_frames = empty_latent_frames(self._vae, KEYFRAMES, num_frames)
        empty = self._empty((num_frames, height, width), empty_frames)
        return [
            pack_condition(
                condition,
                empty_frames,
                empty,
                seed=generator.initial_seed(),
                scale=float(self._vae.config["scaling_factor"]),
                stored=self.stored,
            )
            for condition, generator in zip(latents, generators, strict=True)
        ]

    def _too_large(self, frames: torch.Tensor) -> BadInput:
        """Say what did not fit, and what makes it smaller."""
        batch, num_frames, height, width = frames.shape[:4]
        what = f"{batch} samples" if batch > 1 else "One sample"
        tile = self._config.vae_tile or self._vae.tile_sample_min_height
        smaller = [f"encode.batch_size below {batch}"] if batch > 1 else []
        smaller.append(f"encode.vae_tile below {tile}")
        return BadInput(
            f"{what} of {width}x{height}x{num_frames} did not fit the GPU's memory while encoding. "
            f"Set {' or '.join(smaller)}, or take a larger GPU: `hvkf plan` says what fits which."
        )

    def _empty(self, shape: tuple[int, int, int], frames: list[int]) -> bytes:
        """Pack the posterior of an empty video's latent frames, once per shape."""
        if not frames:
            return b""
        if shape not in self._packed_empty:
            self._packed_empty[shape] = pack_empty(self._empty_tiles.of_video(*shape), frames)
        return self._packed_empty[shape]

    def _encode_prompts(self, captions: CaptionBatch) -> list[Sample]:
        """Encode captions together, without more padding than the longest needs."""
        try:
            prompts = encode_prompts(self._text, captions, "cpu", is_padded=False)
        except torch.OutOfMemoryError as fault:
            raise too_many(captions) from fault
        return pack_prompts(prompts, self.stored)


def encode_segments(
    config: Config, store: Store, scenes_root: str, latents_root: str, scene_ids: list[str]
) -> None:
    """Make the latent segments of the given scene segments that have no record yet."""
    absent = ledger.missing_segments(store, latents_root, map(latent_segment_id, scene_ids))
    missing = [
        ledger.read_segment(store, scenes_root, scene)
        for scene in scene_ids
        if latent_segment_id(scene) in absent
    ]
    if not missing:
        return
    with (
        progress("encode", sum(len(record.items) for record in missing)) as shown,
        closing(
            ahead(_read_scenes(store, missing, config.encode.caption_batch_size > 1))
        ) as scenes,
        Committer(store, latents_root) as committer,
    ):
        encoder = Encoder(config, store)
        for record in missing:
            _encode_segment(encoder, record, scenes, committer, shown)


def _read_scenes(
    store: Store, records: Sequence[SegmentRecord], has_captions: bool
) -> Iterator[Scene]:
    for record in records:
        segment = Segment(store, record, cache_folder() / "shards")
        captions: list[str] = []
        if has_captions:  # reads the segment once more, from this machine's disk
            captions = [segment[position]["caption"] for position in range(len(segment))]
        for position, item in enumerate(record.items):
            sample = segment[position]
            yield Scene(item, {**sample, "video": unpack_frames(sample["video"])}, captions)


def _encode_segment(
    encoder: Encoder,
    record: SegmentRecord,
    scenes: Iterator[Scene],
    committer: Committer,
    shown: Progress,
) -> None:
    writer = SegmentWriter(
        latent_segment_id(record.segment_id),
        record.bucket,
        packed_columns(encoder.stored),
    )
    try:
        # Which samples and captions make a batch follows from the segment alone, not from who
        # encodes it, nor from what was encoded before.
        of_segment = islice(scenes, len(record.items))
        caption_batches = ALONE
        while batch := list(islice(of_segment, encoder.batch_size)):
            if not caption_batches:
                caption_batches = encoder.caption_batches(batch[0].captions)
            samples = encoder.encode([scene.sample for scene in batch], caption_batches)
            for scene, sample in zip(batch, samples, strict=True):
                writer.add(scene.item.key, scene.item.source_sha256, sample)
                shown.advance(note=f"{record.bucket} {scene.sample['source']}")
    except BaseException:  # also a stop: no scratch files are left
        writer.close()
        raise
    committer.commit(writer)
