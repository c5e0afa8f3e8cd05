"""Weights in fewer bits: stored in 8 or 4, and computed with in the model's own type.

Methods: 8 bits with a scale for each row (float8 e4m3 or integers); NF4 (arXiv:2305.14314) by
bitsandbytes.
"""

import importlib.util
from typing import Any

import torch

from hvkf.errors import BadInput
from hvkf.settings.section import PackedFormat

# Type of the codes, and the largest code.
ROW_SCALED = {"fp8": (torch.float8_e4m3fn, 448.0), "int8": (torch.int8, 127.0)}
NF4_BLOCK = 64
SMALLEST_SCALE = 1e-12


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
