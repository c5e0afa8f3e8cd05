"""The loss on held-out samples, at noise and noise levels that never change.

Each sample is computed by itself, so that the loss does not depend on how many ranks share them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from hvkf.config import Config
from hvkf.model.random import draw_normal, generator_for
from hvkf.seeds import seed_for
from hvkf.training.dataset import LatentReader, stored_latents
from hvkf.training.gang import Gang
from hvkf.training.items import Item
from hvkf.training.objective import batch_losses


def chosen_items(config: Config, holdout: Sequence[Item]) -> list[Item]:
    """Choose which held-out samples to use: the same ones for as long as they are there."""
    seed = config.experiment.random_seed
    ordered = sorted(holdout, key=lambda item: seed_for(seed, "validation", item.key))
    return ordered[: config.validation.num_items]


@torch.no_grad()
def validation_loss(
    transformer: Any,
    reader: LatentReader,
    items: Sequence[Item],
    *,
    config: Config,
    gang: Gang,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Average the unweighted loss over the items and the noise levels.

    Args:
        transformer: The transformer in eval mode, not wrapped for several ranks.
        reader: Reads their latents.
        items: At least one.
        config: Says the noise levels and the seed.
        gang: Ranks that share the items; all must call this.
        device: Where the transformer is.
        dtype: Type of its inputs.
    """
    # As many for every rank: sharded weights are gathered by all of them together.
    turns = -(-len(items) // gang.num_ranks)
    own = []
    for turn in range(turns):
        item = items[min(turn * gang.num_ranks + gang.rank, len(items) - 1)]
        own.append(_item_loss(transformer, reader, item, config, device, dtype))
    of_ranks = gang.exchange(own)
    in_order = [
        of_ranks[number % gang.num_ranks][number // gang.num_ranks] for number in range(len(items))
    ]
    return math.fsum(in_order) / len(in_order)


def _item_loss(
    transformer: Any,
    reader: LatentReader,
    item: Item,
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    sample = stored_latents(reader.read(item), item.key, config.data)
    seed = config.experiment.random_seed
    losses = []
    for number, sigma in enumerate(config.validation.sigmas):
        generator = generator_for(seed, "validation", item.key, number)
        batch = replace(
            sample,
            noise=draw_normal(sample.latents.shape[1:], [generator]),
            sigmas=torch.tensor([sigma]),
        ).to(device)
        loss = batch_losses(
            transformer,
            batch,
            dtype=dtype,
            guidance=config.hparams.guidance_scale,
            weighting="none",
        )
        losses.append(loss.item())
    return math.fsum(losses) / len(losses)
