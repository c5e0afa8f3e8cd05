"""Optimizers by the names of the reference's configuration."""

import ast
import importlib
import logging
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

from hvkf.errors import BadInput

logger = logging.getLogger(__name__)


class _Source(NamedTuple):
    """Where an optimizer comes from, and what installs it."""

    module: str
    name: str
    fix: str


SOURCES = {
    "adam": _Source("torch.optim", "Adam", ""),
    "adamw": _Source("torch.optim", "AdamW", ""),
    "optimi-adamw": _Source("optimi", "AdamW", "pip install torch-optimi"),
    "optimi-stableadamw": _Source("optimi", "StableAdamW", "pip install torch-optimi"),
    "bnb-adamw8bit": _Source("bitsandbytes.optim", "AdamW8bit", "pip install 'hvkf[bnb]'"),
    "bnb-lion8bit": _Source("bitsandbytes.optim", "Lion8bit", "pip install 'hvkf[bnb]'"),
    "came": _Source("came_pytorch", "CAME", "pip install 'hvkf[came]'"),
}
# What the reference's own defaults and users' habits write for these.
ALIASES = {
    "torch.optim.adam": "adam",
    "torch.optim.adamw": "adamw",
    "optimi.adamw": "optimi-adamw",
    "optimi.stableadamw": "optimi-stableadamw",
    "came_pytorch.came": "came",
}


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` texts whose values are Python literals, such as betas=(0.9, 0.95).

    Raises:
        BadInput: a text is not of that form.
    """
    parsed = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        try:
            if not equals or not key.strip().isidentifier():
                raise ValueError
            parsed[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            raise BadInput(
                f"hparams.optimizer_args holds {text!r}: write key=value with a number, a tuple, "
                "True, False or None, such as betas=(0.9, 0.95)."
            ) from None
    return parsed


def known_name(name: str) -> str:
    """Give the key of SOURCES that a name means.

    Raises:
        BadInput: there is none.
    """
    known = ALIASES.get(name.lower(), name.lower())
    if known not in SOURCES:
        raise BadInput(
            f"There is no hparams.optimizer_type {name!r}: use one of {', '.join(SOURCES)}."
        )
    return known


def make_optimizer(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    learning_rate: float,
    arguments: Sequence[str],
) -> torch.optim.Optimizer:
    """Make an optimizer.

    Args:
        name: One of SOURCES or ALIASES.
        parameters: What it updates.
        learning_rate: Peak learning rate.
        arguments: Its further arguments; see `parse_arguments`.

    Raises:
        BadInput: an unknown name or argument, or a package that is not installed.
    """
    known = known_name(name)
    source = SOURCES[known]
    try:
        kind = getattr(importlib.import_module(source.module), source.name)
    except ImportError as fault:
        raise BadInput(
            f"hparams.optimizer_type {name!r} needs a package that is missing ({fault}): "
            f"{source.fix}, or take another optimizer, such as optimi-stableadamw."
        ) from None
    chosen = list(parameters)
    options = parse_arguments(arguments)
    if known == "came":
        _check_came(options)
    if source.module == "optimi" and "triton" not in options and not _triton_works(chosen):
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
