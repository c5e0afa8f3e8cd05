"""Optimizers' names and arguments, as the reference's configuration writes them."""

import ast
from collections.abc import Sequence
from typing import Any

from hvkf.errors import BadInput
from hvkf.shown import shown

# By name: the Python module it comes from, and what installs that.
OPTIMIZERS = {
    "adam": ("torch.optim", ""),
    "adamw": ("torch.optim", ""),
    "optimi-adamw": ("optimi", "pip install torch-optimi"),
    "optimi-stableadamw": ("optimi", "pip install torch-optimi"),
    "bnb-adamw8bit": ("bitsandbytes.optim", "pip install 'hvkf[bnb]'"),
    "bnb-lion8bit": ("bitsandbytes.optim", "pip install 'hvkf[bnb]'"),
    "came": ("came_pytorch", "pip install 'hvkf[came]'"),
}
# What the reference's own defaults and users' habits write for these.
ALIASES = {
    "torch.optim.adam": "adam",
    "torch.optim.adamw": "adamw",
    "optimi.adamw": "optimi-adamw",
    "optimi.stableadamw": "optimi-stableadamw",
    "came_pytorch.came": "came",
}


def known_name(name: str) -> str:
    """Give the key of OPTIMIZERS that a name means.

    Raises:
        BadInput: there is none.
    """
    known = ALIASES.get(name.lower(), name.lower())
    if known not in OPTIMIZERS:
        raise BadInput(
            f"There is no hparams.optimizer_type {shown(name)}: use one of {', '.join(OPTIMIZERS)}."
        )
    return known


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
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise BadInput(
                f"hparams.optimizer_args holds {shown(text)}: write key=value with a number, a "
                "tuple, True, False or None, such as betas=(0.9, 0.95)."
            ) from None
    return parsed
