"""Muon, which orthogonalises the momentum of each weight matrix, beside AdamW for the rest."""

from typing import Any

import torch

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Keller Jordan's quintic coefficients, https://kellerjordan.github.io/posts/muon/ (2024)."""
NUM_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov's look-ahead, orthogonalised over (out, in x kernel)."""

    def __init__(self, params: Any, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter that has a gradient, and return None; `closure` is not used."""
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["momentum"] = torch.zeros_like(param)
                buffer = state["momentum"]
                buffer.lerp_(param.grad, 1 - group["momentum"])
                ahead = param.grad.lerp(buffer, group["momentum"])
                update = orthogonalise(ahead.flatten(1)).view_as(param)
                param.add_(update, alpha=-group["lr"])


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values near 1 by Newton-Schulz iterations.

    Args:
        matrix: of any two sides.

    Returns:
        A matrix of the same shape and singular vectors.
    """
    rows, columns = matrix.shape
    wide = matrix if rows <= columns else matrix.T
    x: torch.Tensor = wide / (wide.norm() + 1e-12)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if rows <= columns else x.T
