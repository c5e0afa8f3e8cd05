"""The loss on held-out samples, at noise and noise levels that never change.

Each sample is computed by itself, so that the loss does not depend on how many ranks share them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from hvkf.config import Config
from hvkf.model.random import draw_normal, generator_for
from hvkf.seeds import seed_for
from hvkf.training.dataset import LatentReader, stored_latents
from hvkf.training.gang import Gang
from hvkf.training.items import Item
from hvkf.training.objective import batch_losses


class ValidationLoss(NamedTuple):
    """The loss over all items and noise levels, and at each noise level (sigma) alone."""

    mean: float
    by_sigma: dict[float, float]


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
) -> ValidationLoss:
    """Average the unweighted loss over the items, at each noise level and over all.

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
    turns, count = -(-len(items) // gang.num_ranks), len(config.validation.sigmas)
    own: list[float] = []
    for turn in range(turns):
        item = items[min(turn * gang.num_ranks + gang.rank, len(items) - 1)]
        own += _item_losses(transformer, reader, item, config, device, dtype)
    of_ranks = gang.exchange(own)
    in_order = []
    for number in range(len(items)):
        begin = number // gang.num_ranks * count
        in_order.append(of_ranks[number % gang.num_ranks][begin : begin + count])
    by_sigma = {
        sigma: math.fsum(losses) / len(items)
        for sigma, losses in zip(config.validation.sigmas, zip(*in_order, strict=True), strict=True)
    }
    mean = math.fsum(math.fsum(losses) / count for losses in in_order) / len(items)
    return ValidationLoss(mean, by_sigma)


def _item_losses(
    transformer: Any,
    reader: LatentReader,
    item: Item,
    config: Config,
    device: torch.device,
    dtype: torch.dtype,
) -> list[float]:
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
    return losses
