"""Frozen weights in fewer bits: stored in 8 or 4, and computed with in the model's own type.

A layer unpacks its weight when it computes and drops it at once, in the backward pass again. So
training needs no more than one layer's weight in full, whatever is checkpointed.

Methods: 8 bits with a scale for each row (float8 e4m3 or integers); NF4 (arXiv:2305.14314) by
bitsandbytes.
"""

import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.errors import BadInput
from hvkf.settings.section import PackedFormat

# Type of the codes, and the largest code.
ROW_SCALED = {"fp8": (torch.float8_e4m3fn, 448.0), "int8": (torch.int8, 127.0)}
NF4_BLOCK = 64
SMALLEST_SCALE = 1e-12


class PackedLinear(torch.nn.Linear):
    """A linear layer whose weight is packed; gradients pass through it to its input."""

    def __init__(self, layer: torch.nn.Linear, stored: PackedFormat) -> None:
        """Pack a layer's weight, where it lies.

        Raises:
            BadInput: bitsandbytes is needed and missing.
        """
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.stored = stored
        self.dtype = layer.weight.dtype
        codes, scales = pack(layer.weight.detach(), stored)
        self.weight = torch.nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scales", scales)
        self.bias = layer.bias

    def unpacked(self) -> torch.Tensor:
        """Give the weight [out, in] in the model's type."""
        shape = (self.out_features, self.in_features)
        return unpack(self.weight, self.get_buffer("scales"), self.stored, shape, self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute as a linear layer does."""
        result: torch.Tensor = _PackedProduct.apply(input, self)
        return result


class _PackedProduct(torch.autograd.Function):
    """x W' + b that keeps nothing for the backward pass but the packed weight."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, input.dtype
        return F.linear(input, layer.unpacked(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return (gradient @ ctx.layer.unpacked().to(gradient.dtype)).to(ctx.dtype), None


def pack(weight: torch.Tensor, stored: PackedFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack a weight [out, in] into codes and scales.

    Raises:
        BadInput: bitsandbytes is needed and missing.
    """
    if stored == "nf4":
        return _pack_nf4(weight)
    dtype, limit = ROW_SCALED[stored]
    rows = weight.float()
    scales = rows.abs().amax(dim=1, keepdim=True).clamp_min(SMALLEST_SCALE) / limit
    codes = rows / scales
    return (codes if dtype.is_floating_point else codes.round()).to(dtype), scales


def unpack(
    codes: torch.Tensor,
    scales: torch.Tensor,
    stored: PackedFormat,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Undo `pack`, but for its rounding: a weight of that shape and type."""
    if stored == "nf4":
        return _unpack_nf4(codes, scales, shape, dtype)
    # In place: the product is computed in float32 and rounded once.
    return codes.to(dtype).mul_(scales)


def pack_frozen(
    transformer: HunyuanVideoTransformer3DModel,
    stored: PackedFormat,
    device: torch.device | None = None,
) -> None:
    """Pack the frozen weights of all linear layers of the blocks, those under a LoRA as well.

    Args:
        transformer: Where memory is short, on the CPU: its weights are there in full.
        stored: fp8, int8 or nf4.
        device: Where to move it when it is small; left out, it stays.

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
            setattr(parent, name, PackedLinear(layer, stored))
    if device is not None:
        torch.nn.Module.to(transformer, device)


def _pack_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if weight.is_meta:
        codes = weight.new_empty((weight.numel() // 2, 1), dtype=torch.uint8)
        return codes, weight.new_empty(weight.numel() // NF4_BLOCK, dtype=torch.float32)
    codes, state = _bitsandbytes().quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False
    )
    return codes, state.absmax


def _unpack_nf4(
    codes: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:
    if codes.is_meta:
        return codes.new_empty(shape, dtype=dtype)
    functional = _bitsandbytes()
    state = functional.QuantState(
        absmax=scales,
        shape=torch.Size(shape),
        code=functional.get_4bit_type("nf4", device=codes.device),
        blocksize=NF4_BLOCK,
        quant_type="nf4",
        dtype=dtype,
    )
    weight: torch.Tensor = functional.dequantize_4bit(codes, state)
    return weight


def _bitsandbytes() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput(
            "Weights in nf4 need bitsandbytes, which is not installed: pip install 'hvkf[bnb]', or "
            "take int8 or fp8, which need nothing."
        )
    import bitsandbytes.functional as functional

    return functional
