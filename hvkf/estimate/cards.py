"""GPUs: memory and peak arithmetic, from their makers' data sheets (dense bfloat16)."""

from typing import NamedTuple

from hvkf.errors import BadInput

USABLE = 0.92
"""The rest goes to CUDA's context, cuDNN's and cuBLAS's workspaces and the allocator's holes."""


class Card(NamedTuple):
    """A GPU.

    Attributes:
        name: As on the command line.
        memory_bytes: Of its data sheet, in powers of ten.
        flops_per_s: Dense bfloat16 with float32 sums.
    """

    name: str
    memory_bytes: int
    flops_per_s: float

    @property
    def usable_bytes(self) -> int:
        """What a stage may fill."""
        return round(self.memory_bytes * USABLE)


CARDS = {
    card.name: card
    for card in (
        Card("h100-80gb", 80 * 10**9, 989.4e12),  # SXM5
        Card("h200-141gb", 141 * 10**9, 989.4e12),  # SXM5
        Card("a100-80gb", 80 * 10**9, 312e12),
        Card("a100-40gb", 40 * 10**9, 312e12),
        Card("l40s-48gb", 48 * 10**9, 362.05e12),
        Card("rtx4090-24gb", 24 * 10**9, 165.2e12),
    )
}


def card_named(name: str) -> Card:
    """Find a card.

    Raises:
        BadInput: it is not in the table.
    """
    if name not in CARDS:
        raise BadInput(f"There is no --gpu {name!r}: use one of {', '.join(CARDS)}.")
    return CARDS[name]
