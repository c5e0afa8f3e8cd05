"""Random draws that are the same on every device: made on the CPU, then moved."""

from collections.abc import Sequence

import torch

from hvkf.seeds import seed_for


def generator_for(*parts: str | int | None) -> torch.Generator:
    """Make the CPU generator of the draw that the parts name; see `hvkf.seeds.seed_for`."""
    return torch.Generator("cpu").manual_seed(seed_for(*parts))


def draw_normal(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Draw standard normal float32 noise, row `i` of it from `generators[i]` alone.

    A row's noise therefore depends on its own seed only, whichever rows share its batch.

    Args:
        shape: Shape of one row, such as [C, F, H, W].
        generators: One CPU generator per row.
        device: Where the result lies.

    Returns:
        Noise of shape [len(generators), *shape].
    """
    rows = [torch.randn(tuple(shape), generator=generator) for generator in generators]
    return torch.stack(rows).to(device)
