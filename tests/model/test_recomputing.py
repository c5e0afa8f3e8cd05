"""Checkpointing in every form leaves the gradients as they are, bit by bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hvkf.buckets import Bucket
from hvkf.model.loading import load_transformer
from hvkf.model.lora import add_lora
from hvkf.model.recomputing import in_main_memory, recompute_blocks
from hvkf.training.objective import batch_losses
from tests.estimate.batches import latent_batch
from tests.workspaces import TINY

FORMS: dict[str, Callable[[Any], None]] = {
    "all blocks": recompute_blocks,
    "every second block": lambda transformer: recompute_blocks(transformer, 2),
    "in main memory": lambda transformer: recompute_blocks(transformer, 1, in_main_memory),
    "every second, in main memory": lambda made: recompute_blocks(made, 2, in_main_memory),
}


def trained(transformer: Any) -> tuple[list[torch.Tensor], int]:
    """Compute the LoRA's gradients, and count the bytes kept for the backward pass."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    batch = latent_batch(Bucket.parse("64x64x17"), 2, transformer)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = batch_losses(
            transformer, batch, dtype=torch.float32, guidance=1.0, weighting="none"
        )
    losses.mean().backward()
    return [weight.grad for weight in transformer.parameters() if weight.grad is not None], kept


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_the_same_bit_by_bit_and_less_is_kept(form: str) -> None:
    transformer = load_transformer(TINY, dtype=torch.float32, trains=True)
    torch.manual_seed(0)
    add_lora(transformer, rank=4, alpha=4, init=False)
    transformer.train()
    checkpointed = copy.deepcopy(transformer)
    FORMS[form](checkpointed)

    whole, kept_whole = trained(transformer)
    found, kept = trained(checkpointed)

    assert whole
    assert len(found) == len(whole)
    assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
    assert kept < kept_whole / 2 or "second" in form
    assert kept < kept_whole


def test_only_every_nth_block_runs_twice() -> None:
    transformer = load_transformer(TINY, dtype=torch.float32, trains=True)
    add_lora(transformer, rank=4, alpha=4)
    transformer.train()
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    runs = [0] * len(blocks)

    def counting(index: int) -> Callable[..., None]:
        def count(*_: Any) -> None:
            runs[index] += 1

        return count

    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(counting(index))
    recompute_blocks(transformer, 2)

    trained(transformer)

    assert runs == [2 if index % 2 == 0 else 1 for index in range(len(blocks))]
