"""Gradient checkpointing: whose activations are computed again, and where the inputs wait.

A checkpointed block keeps its input only, and computes the rest again in the backward pass.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel
from torch.utils.checkpoint import checkpoint

Waiting = Callable[[], AbstractContextManager[object]]


def recompute_blocks(
    transformer: HunyuanVideoTransformer3DModel, every: int = 1, waiting: Waiting = nullcontext
) -> None:
    """Checkpoint every n-th block; gradients stay as they are, bit by bit.

    Args:
        transformer: The transformer.
        every: 1 checkpoints all blocks, 2 every second one: less is computed again, more is kept.
        waiting: Makes the context in which a block's inputs are saved; see `in_main_memory`.
    """
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = set(blocks[::every])

    def run(block: torch.nn.Module, *inputs: Any) -> Any:
        if block not in chosen:
            return block(*inputs)
        with waiting():
            return checkpoint(block, *inputs, use_reentrant=False)

    transformer.enable_gradient_checkpointing(gradient_checkpointing_func=run)


def in_main_memory() -> AbstractContextManager[object]:
    """Save what is kept for the backward pass in main memory, page-locked beside a GPU."""
    return torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available())
