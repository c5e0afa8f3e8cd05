"""The exponential moving average of the trained weights, kept in float32.

Method: as diffusers' `EMAModel` with its default warm-up and the reference's: the decay of update
`n` is min(decay, n / (9 + n)), so that early weights are soon forgotten; the first update copies.
(The reference keeps it in bfloat16, in which most updates at decay 0.99 round to nothing.)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from hvkf.training.state import fill


class MovingAverage:
    """The average of named weights."""

    def __init__(
        self,
        weights: Mapping[str, torch.Tensor],
        *,
        decay: float,
        interval: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        """Begin at the weights as they are.

        Args:
            weights: The live weights, by name.
            decay: Decay per update, once warmed up.
            interval: Optimizer steps between updates.
            device: Where the average lies; left out, beside the weights.
        """
        self.decay = decay
        self.interval = interval
        self._live = dict(weights)
        self.shadow = {
            name: weight.detach().to(device=device, dtype=torch.float32, copy=True)
            for name, weight in weights.items()
        }

    def decay_at(self, step: int) -> float:
        """Compute the decay of the update after `step` optimizer steps, from 1."""
        updates = step - 1
        return min(self.decay, (1 + updates) / (10 + updates)) if updates > 0 else 0.0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the live weights in, after `step` optimizer steps."""
        if step % self.interval:
            return
        weight = 1.0 - self.decay_at(step)
        shadows = list(self.shadow.values())
        live = [
            self._live[name].detach().to(shadow.device, torch.float32)
            for name, shadow in self.shadow.items()
        ]
        torch._foreach_lerp_(shadows, live, weight)

    def load(self, shadow: Mapping[str, torch.Tensor]) -> None:
        """Go on from a saved average."""
        for name, own in self.shadow.items():
            fill(own, shadow[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the live weights for a while; they come back exactly."""
        kept = {name: weight.detach().clone() for name, weight in self._live.items()}
        try:
            self._fill(self.shadow)
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, weight in self._live.items():
            weight.copy_(values[name])
