"""Frozen weights that take less of a GPU: packed into fewer bits, waiting in main memory, or both.

A layer brings its weight when it computes and drops it at once, in the backward pass again. So
training needs no more than one layer's weight in full, whatever is checkpointed.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.model.packed import pack, unpack
from hvkf.settings.section import PackedFormat


class FrozenLinear(torch.nn.Linear):
    """A linear layer whose weight is packed or waits; gradients pass through it to its input."""

    def __init__(
        self, layer: torch.nn.Linear, stored: PackedFormat | None = None, *, waits: bool = False
    ) -> None:
        """Take a layer's weight, where it lies.

        Args:
            layer: The layer; its bias is kept as it is.
            stored: How the weight is packed; left out, it keeps its bits.
            waits: Whether it lies in main memory, page-locked beside a GPU, wherever the layer is.

        Raises:
            BadInput: bitsandbytes is needed and missing.
        """
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.stored = stored
        self.dtype = layer.weight.dtype
        parts = {"weight": layer.weight.detach()}
        if stored is not None:
            parts["weight"], parts["scales"] = pack(layer.weight.detach(), stored)
        # No parameters of the module: they stay where they are when it moves.
        self._waiting = {name: _page_locked(part) for name, part in parts.items()} if waits else {}
        if not waits:
            self.weight = torch.nn.Parameter(parts.pop("weight"), requires_grad=False)
            for name, part in parts.items():
                self.register_buffer(name, part)
        self.bias = layer.bias

    def whole(self, device: torch.device) -> torch.Tensor:
        """Give the weight [out, in] in the model's type, on the device that computes."""
        parts = {name: _fetched(part, device) for name, part in self._waiting.items()}
        weight = parts["weight"] if parts else self.weight
        if self.stored is None:
            return weight
        scales = parts["scales"] if parts else self.get_buffer("scales")
        shape = (self.out_features, self.in_features)
        return unpack(weight, scales, self.stored, shape, self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute as a linear layer does."""
        result: torch.Tensor = _FrozenProduct.apply(input, self)
        return result


class _FrozenProduct(torch.autograd.Function):
    """x W' + b that keeps nothing for the backward pass but the layer."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: FrozenLinear) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, input.dtype
        return F.linear(input, layer.whole(input.device), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        weight = ctx.layer.whole(gradient.device).to(gradient.dtype)
        return (gradient @ weight).to(ctx.dtype), None


def _page_locked(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        return tensor
    return tensor.cpu().pin_memory() if torch.cuda.is_available() else tensor.cpu()


def _fetched(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    # The copy is in the order of what the device computes: nothing waits for it here.
    return torch.empty_like(tensor, device=device).copy_(tensor, non_blocking=True)


def hold_frozen(
    transformer: HunyuanVideoTransformer3DModel,
    stored: PackedFormat | None = None,
    *,
    waits: bool = False,
    device: torch.device | None = None,
) -> None:
    """Pack the frozen weights of all linear layers of the blocks, or let them wait, or both.

    Those under a LoRA as well.

    Args:
        transformer: Where memory is short, on the CPU: its weights are there in full.
        stored: fp8, int8 or nf4; left out, weights keep their bits.
        waits: Whether they lie in main memory until they are used.
        device: Where to move the rest when that is done; left out, it stays.

    Raises:
        BadInput: bitsandbytes is needed and missing.
    """
    for blocks in (transformer.transformer_blocks, transformer.single_transformer_blocks):
        layers = [
            (parent, name, layer)
            for parent in blocks.modules()
            for name, layer in parent.named_children()
            if type(layer) is torch.nn.Linear and not layer.weight.requires_grad
        ]
        for parent, name, layer in layers:
            setattr(parent, name, FrozenLinear(layer, stored, waits=waits))
    if device is not None:
        torch.nn.Module.to(transformer, device)
