"""Training samples: stored latents with the noise, noise level and caption dropout of an epoch.

What is drawn for a sample depends on (seed, purpose, item key, epoch) alone.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from hvkf import ledger
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.model.flow_matching import drop_captions, sample_sigmas
from hvkf.model.latent_columns import read_condition
from hvkf.model.precision import from_stored
from hvkf.model.random import draw_normal, generator_for
from hvkf.model.text import PromptEmbeds
from hvkf.model_source import cache_folder
from hvkf.settings.data import DataConfig
from hvkf.shards import MdsFolder, Sample, Segment
from hvkf.storage import FolderStore, Store, open_folder
from hvkf.training.batch_plan import GlobalBatch, MicroBatch, epoch_batches, micro_batches
from hvkf.training.cache_records import UnusableRecord, check_record
from hvkf.training.items import Item
from hvkf.training.loading import begin_loader_process

logger = logging.getLogger(__name__)
MAX_LEFT_OUT_IN_A_ROW = 100


@dataclass(frozen=True)
class LatentBatch:
    """Samples of one shape, ready for the transformer.

    Attributes:
        keys: Item keys, B of them.
        latents: x, float32 [B, 16, f, h, w].
        condition: Latents of the keyframes' video, [B, 16, f, h, w], as stored.
        noise: n, float32 [B, 16, f, h, w].
        sigmas: Shifted noise levels, float32 [B].
        prompt: The captions' embeddings, with those dropped that are to be.
        borrowed: Whether another rank trains these; see `batch_plan.MicroBatch`.
    """

    keys: tuple[str, ...]
    latents: torch.Tensor
    condition: torch.Tensor
    noise: torch.Tensor
    sigmas: torch.Tensor
    prompt: PromptEmbeds
    borrowed: bool = False

    def to(self, device: torch.device) -> Self:
        """Move the tensors to a device; types stay."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Copy the tensors to page-locked memory: DataLoader calls this by name."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def _moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        prompt = PromptEmbeds(
            move(self.prompt.prompt_embeds),
            move(self.prompt.prompt_attention_mask),
            move(self.prompt.pooled_prompt_embeds),
        )
        return replace(
            self,
            latents=move(self.latents),
            condition=move(self.condition),
            noise=move(self.noise),
            sigmas=move(self.sigmas),
            prompt=prompt,
        )


class LatentReader:
    """Reads stored latents of the sources that a plan names; opens each when first needed."""

    def __init__(self, store: Store, sources: Mapping[str, Any], data: DataConfig) -> None:
        self._store = store
        self._sources = sources
        self._data = data
        self._opened: dict[int, Segment | MdsFolder] = {}

    def read(self, item: Item) -> Sample:
        """Read an item's columns.

        Raises:
            CorruptData: its shard has other bytes than were recorded.
            UnusableRecord: it is of a cache of the reference, and cannot train.
        """
        if item.source not in self._opened:
            self._opened[item.source] = self._open(item.source)
        sample = self._opened[item.source][item.position]
        if self._sources["kind"] == "mds":
            folder = self._sources["folders"][item.source]["url"]
            check_record(sample, item.bucket, self._data, f"{folder} record {item.position}")
        return sample

    def _open(self, number: int) -> Segment | MdsFolder:
        if self._sources["kind"] == "mds":
            entry = self._sources["folders"][number]
            cache = Path(entry["cache"]) if entry["cache"] else cache_folder() / "shards"
            return MdsFolder(open_folder(entry["url"]), cache)
        root, segment = self._sources["root"], self._sources["segments"][number]
        record = ledger.read_segment(self._store, root, segment)
        return Segment(self._store, record, cache_folder() / "shards")

    def in_other_process(self) -> "LatentReader":
        """Make a reader with connections of its own."""
        store = (
            self._store if isinstance(self._store, FolderStore) else open_folder(self._store.url)
        )
        return LatentReader(store, self._sources, self._data)


class Draw(NamedTuple):
    """A micro-batch of an epoch: what the loader is asked for."""

    batch: MicroBatch
    epoch: int


class TrainSamples(Dataset[LatentBatch]):
    """Micro-batches by `Draw`."""

    def __init__(self, config: Config, reader: LatentReader, items: Sequence[Item]) -> None:
        self._data = config.data
        self._hparams = config.hparams
        self._seed = config.experiment.random_seed
        self.reader = reader
        self._items = {item.key: item for item in items}
        self._places: dict[str, int] = {}
        self._buckets: dict[str, list[Item]] = {}
        for item in items:
            members = self._buckets.setdefault(item.bucket, [])
            self._places[item.key] = len(members)
            members.append(item)
        self._left_out: dict[str, str] = {}

    def __getitem__(self, draw: Draw) -> LatentBatch:
        samples = []
        for wanted in draw.batch.keys:
            key, latents = self._read(wanted)
            samples.append(self._noised(latents, key, draw.epoch))
        return replace(collate(samples), borrowed=draw.batch.borrowed)

    def _read(self, key: str) -> tuple[str, LatentBatch]:
        """Read a sample, or, in place of one that cannot train, the next one of its bucket.

        Which one follows from the items alone, so that all ranks, and a resumed run, take the same.
        """
        members = self._buckets[self._items[key].bucket]
        first = self._places[key]
        for place in range(first, first + min(len(members), MAX_LEFT_OUT_IN_A_ROW)):
            item = members[place % len(members)]
            if item.key in self._left_out:
                continue
            try:
                return item.key, stored_latents(self.reader.read(item), item.key, self._data)
            except UnusableRecord as error:
                self._left_out[item.key] = str(error)
                logger.warning("%s It is left out.", error)
        raise BadInput(
            f"{min(len(members), MAX_LEFT_OUT_IN_A_ROW)} records in a row cannot train. "
            f"{self._left_out[key]}"
        )

    def _noised(self, sample: LatentBatch, key: str, epoch: int) -> LatentBatch:
        flow, seed = self._hparams.flow_match, self._seed
        shape = sample.latents.shape[1:]
        chance = torch.rand(1, generator=generator_for(seed, "caption", key, epoch))
        return replace(
            sample,
            noise=draw_normal(shape, [generator_for(seed, "noise", key, epoch)]),
            sigmas=sample_sigmas(
                flow.timestep_sampling,
                1,
                generator_for(seed, "sigma", key, epoch),
                sigmoid_scale=flow.sigmoid_scale,
                logit_mean=flow.logit_mean,
                logit_std=flow.logit_std,
                shift=flow.discrete_flow_shift,
            ),
            prompt=drop_captions(sample.prompt, chance < self._hparams.caption_dropout_p),
        )


def stored_latents(sample: Sample, key: str, data: DataConfig) -> LatentBatch:
    """Turn stored columns into a batch of one, without noise.

    Raises:
        BadInput: the shapes are not those of latents and their condition.
    """
    latents = from_stored(sample[data.latents_key]).float()
    condition = read_condition(sample, data.latents_cond_key)
    if latents.ndim != 4 or latents.shape != condition.shape:
        raise BadInput(
            f"The sample {key} has latents of shape {list(latents.shape)} and condition latents of "
            f"shape {list(condition.shape)}, which must both be [16, frames, height, width]: check "
            "data.latents_key and data.latents_cond_key."
        )
    mask = torch.from_numpy(sample[data.prompt_attention_mask_key].astype(bool))
    # Caches of the reference hold all 256 tokens; those behind the last that counts do nothing.
    length = int(mask.nonzero().max()) + 1 if mask.any() else len(mask)
    prompt = PromptEmbeds(
        from_stored(sample[data.prompt_embeds_key][:length])[None],
        mask[None, :length],
        from_stored(sample[data.pooled_prompt_embeds_key])[None],
    )
    nothing = torch.empty(0)
    return LatentBatch((key,), latents[None], condition[None], nothing, nothing, prompt)


def collate(samples: Sequence[LatentBatch]) -> LatentBatch:
    """Join batches of one shape.

    Raises:
        BadInput: the shapes differ.
    """
    shapes = {tuple(sample.latents.shape[1:]) for sample in samples}
    if len(shapes) > 1:
        raise BadInput(
            f"The samples {', '.join(sample.keys[0] for sample in samples)} are of one bucket but "
            f"have latents of shapes {sorted(shapes)}: put each size into a folder of its own, "
            "named WxHxF."
        )
    longest = max(sample.prompt.prompt_embeds.shape[1] for sample in samples)
    prompts = [pad_tokens(sample.prompt, longest) for sample in samples]
    return LatentBatch(
        tuple(key for sample in samples for key in sample.keys),
        torch.cat([sample.latents for sample in samples]),
        torch.cat([sample.condition for sample in samples]),
        torch.cat([sample.noise for sample in samples]),
        torch.cat([sample.sigmas for sample in samples]),
        PromptEmbeds(
            torch.cat([prompt.prompt_embeds for prompt in prompts]),
            torch.cat([prompt.prompt_attention_mask for prompt in prompts]),
            torch.cat([prompt.pooled_prompt_embeds for prompt in prompts]),
        ),
    )


def pad_tokens(prompt: PromptEmbeds, length: int) -> PromptEmbeds:
    """Add tokens that do not count, up to `length`: as many as the batch needs, not 256."""
    num_added = length - prompt.prompt_embeds.shape[1]
    if not num_added:
        return prompt
    return replace(
        prompt,
        prompt_embeds=functional.pad(prompt.prompt_embeds, (0, 0, 0, num_added)),
        prompt_attention_mask=functional.pad(prompt.prompt_attention_mask, (0, num_added)),
    )


@dataclass(frozen=True)
class Schedule:
    """Which samples each step of a run trains on, and this rank's share of them."""

    items: Mapping[str, Sequence[str]]
    seed: int
    global_batch_size: int
    batch_size: int
    epoch_steps: int
    drop_last: bool
    shuffle: bool
    rank: int
    num_ranks: int

    def steps(self, start: int, end: int) -> Iterator[tuple[int, GlobalBatch, list[MicroBatch]]]:
        """Yield, for the steps from `start` to `end`: epoch, global batch, own micro-batches."""
        epoch, batches = -1, list[GlobalBatch]()
        for step in range(start, end):
            if step // self.epoch_steps != epoch:
                epoch = step // self.epoch_steps
                batches = epoch_batches(
                    self.items,
                    seed=self.seed,
                    epoch=epoch,
                    global_batch_size=self.global_batch_size,
                    drop_last=self.drop_last,
                    shuffle=self.shuffle,
                )
            batch = batches[step % self.epoch_steps]
            own = micro_batches(
                batch, rank=self.rank, num_ranks=self.num_ranks, batch_size=self.batch_size
            )
            yield epoch, batch, own

    def draws(self, start: int, end: int) -> Iterator[Draw]:
        """Yield this rank's micro-batches of those steps, one after the other."""
        for epoch, _, own in self.steps(start, end):
            yield from (Draw(micro, epoch) for micro in own)


class _Draws:
    """Draws as the sampler that DataLoader wants: an iterable."""

    def __init__(self, schedule: Schedule, start: int, end: int) -> None:
        self._arguments = (schedule, start, end)

    def __iter__(self) -> Iterator[Draw]:
        schedule, start, end = self._arguments
        return schedule.draws(start, end)


def make_loader(
    config: Config, samples: TrainSamples, schedule: Schedule, start: int, end: int
) -> DataLoader[LatentBatch]:
    """Load this rank's micro-batches of the steps from `start` to `end`, in order."""
    loader = config.data.dataloader_kwargs
    return DataLoader(
        samples,
        batch_size=None,
        sampler=_Draws(schedule, start, end),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory and torch.cuda.is_available(),
        prefetch_factor=loader.prefetch_factor if loader.num_workers else None,
        worker_init_fn=_begin_worker if loader.num_workers else None,
    )


def _begin_worker(worker: int) -> None:
    """Give a loader process its own reader: connections do not survive a fork."""
    begin_loader_process()
    info = torch.utils.data.get_worker_info()
    assert info is not None
    samples = info.dataset
    assert isinstance(samples, TrainSamples)
    samples.reader = samples.reader.in_other_process()
