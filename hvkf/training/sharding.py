"""Sharding the transformer over ranks by PyTorch's `fully_shard`, as the launcher asks for it.

Method: FSDP2 (arXiv:2304.11277) for `accelerate launch --use_fsdp`; for a DeepSpeed configuration
of ZeRO stage 1 or 2, the same with only the trained weights, their gradients and their optimizer
state sharded. accelerate's own plugins are not used: on a CPU its FSDP silently becomes DDP, and
DeepSpeed's checkpoints are pickles of one number of ranks.
"""

import json
import os
import warnings
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from hvkf.errors import BadInput
from hvkf.settings.training import HparamsConfig

FSDP_VARIABLE = "ACCELERATE_USE_FSDP"
DEEPSPEED_VARIABLE = "ACCELERATE_USE_DEEPSPEED"
DEEPSPEED_FILE_VARIABLE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
DEEPSPEED_STAGE_VARIABLE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"
WHOLE_STAGE = 3


class Sharding(Enum):
    """What is shared out between ranks."""

    NOTHING = "nothing"
    TRAINED = "trained weights"
    ALL = "all weights"


def take_sharding() -> Sharding:
    """Read what the launcher asks for, and take it out of accelerate's sight.

    Raises:
        BadInput: DeepSpeed's configuration cannot be read.
    """
    wants_fsdp = _is_true(os.environ.pop(FSDP_VARIABLE, ""))
    if _is_true(os.environ.pop(DEEPSPEED_VARIABLE, "")):
        return Sharding.ALL if _zero_stage() >= WHOLE_STAGE else Sharding.TRAINED
    return Sharding.ALL if wants_fsdp else Sharding.NOTHING


def _is_true(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


def _zero_stage() -> int:
    file = os.environ.get(DEEPSPEED_FILE_VARIABLE, "none")
    try:
        if file == "none":
            return int(os.environ.get(DEEPSPEED_STAGE_VARIABLE, "2"))
        return int(json.loads(Path(file).read_text())["zero_optimization"]["stage"])
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise BadInput(
            f"The DeepSpeed configuration {file} says no ZeRO stage ({fault}): set "
            "zero_optimization.stage in it."
        ) from None


def check_sharding(hparams: HparamsConfig, sharding: Sharding) -> None:
    """Refuse to share out what is packed or waits.

    Raises:
        BadInput: naming the settings.
    """
    if sharding is Sharding.ALL and hparams.holds_frozen_weights:
        raise BadInput(
            "FSDP of all weights shares out the frozen ones as they are: leave "
            "hparams.packed_weights and hparams.weights_in_main_memory out, or use DDP."
        )


def shard(transformer: Any, sharding: Sharding, device: torch.device) -> None:
    """Shard the transformer in place: block by block, then what is left; all ranks call this.

    Args:
        transformer: With its LoRA; on its device, the same on every rank.
        sharding: What to shard.
        device: Its device.

    Raises:
        BadInput: trained and frozen weights are of two types and are to be sharded together.
    """
    frozen = {weight for weight in transformer.parameters() if not weight.requires_grad}
    ignored = frozen if sharding is Sharding.TRAINED else set()
    types = {weight.dtype for weight in transformer.parameters() if weight not in ignored}
    if len(types) > 1:
        raise BadInput(
            "FSDP shards weights of one type: leave hparams.gradient_precision at accelerator and "
            "hparams.mixed_precision at bf16 or no, or use DDP."
        )
    # Nothing here works in place on what a block returns.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    options: dict[str, Any] = {
        "mesh": mesh,
        "ignored_params": ignored,
        "reshard_after_forward": sharding is Sharding.ALL,
    }
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        fully_shard(block, **options)
    fully_shard(transformer, **options)


def reshard(transformer: Any) -> None:
    """Drop gathered weights, which would outlive a change of the sharded ones."""
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
