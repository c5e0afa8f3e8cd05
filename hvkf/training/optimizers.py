"""Optimizers by the names of the reference's configuration."""

import importlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from hvkf.errors import BadInput
from hvkf.settings.optimizers import OPTIMIZERS, known_name, parse_arguments

logger = logging.getLogger(__name__)


CLASSES = {
    "adam": "Adam",
    "adamw": "AdamW",
    "optimi-adamw": "AdamW",
    "optimi-stableadamw": "StableAdamW",
    "bnb-adamw8bit": "AdamW8bit",
    "bnb-lion8bit": "Lion8bit",
    "came": "CAME",
}


def make_optimizer(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: float,
    arguments: Sequence[str],
) -> torch.optim.Optimizer:
    """Make an optimizer.

    Args:
        name: One of OPTIMIZERS, or an alias of one.
        parameters: What it updates.
        learning_rate: Peak learning rate.
        arguments: Its further arguments; see `parse_arguments`.

    Raises:
        BadInput: an unknown name or argument, or a package that is not installed.
    """
    known = known_name(name)
    module, fix = OPTIMIZERS[known]
    try:
        kind = getattr(importlib.import_module(module), CLASSES[known])
    except ImportError as fault:
        raise BadInput(
            f"hparams.optimizer_type {name!r} needs a package that is missing ({fault}): "
            f"{fix}, or take another optimizer, such as optimi-stableadamw."
        ) from None
    chosen = list(parameters)
    options = parse_arguments(arguments)
    if known == "came":
        _check_came(options)
    if module == "optimi" and "triton" not in options and not _triton_works(chosen):
        options["triton"] = False
    try:
        optimizer: torch.optim.Optimizer = kind(chosen, lr=learning_rate, **options)
    except (TypeError, ValueError) as fault:
        raise BadInput(f"hparams.optimizer_args do not fit {name!r}: {fault}.") from None
    return optimizer


def _check_came(options: dict[str, Any]) -> None:
    """Refuse another optimizer's numbers, which came_pytorch takes and fails on in its first step.

    Raises:
        BadInput: saying what to write.
    """
    for name, length, example in (
        ("betas", 3, "(0.9, 0.999, 0.9999)"),
        ("eps", 2, "(1e-30, 1e-16)"),
    ):
        value = options.get(name)
        if value is not None and not (isinstance(value, tuple) and len(value) == length):
            raise BadInput(
                f"hparams.optimizer_args: {name}={value!r} does not fit 'came', which has {length} "
                f"of them: write {name}={example}, or leave it out."
            )


def _triton_works(parameters: Sequence[torch.nn.Parameter]) -> bool:
    """Whether optimi's kernels run here: they need a GPU, triton and, in slim images, a compiler.

    optimi takes them whenever triton can be imported, and fails in the first step otherwise.
    """
    first = parameters[0]
    if first.device.type != "cuda" or isinstance(first, DTensor):
        return False
    from optimi import StableAdamW

    probe = torch.nn.Parameter(torch.ones(8, device=first.device))
    probe.grad = torch.ones_like(probe)
    try:
        StableAdamW([probe], lr=1e-3).step()
    except Exception as fault:  # triton's faults have no common class
        logger.warning(
            "optimi's triton kernels do not run here (%s); using PyTorch's, with which StableAdamW "
            "waits for the GPU once for each weight: install gcc, or take adamw.",
            fault,
        )
        return False
    return True
