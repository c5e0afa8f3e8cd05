"""What a GPU does otherwise than meta tensors: fused attention, and autocast's choice of types."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

ATEN = torch.ops.aten
# What CUDA's autocast computes in 16 bits and in float32, of the functions that the models call.
LOW_PRECISION = ("linear", "conv3d", "scaled_dot_product_attention")
FLOAT32 = ("layer_norm", "group_norm", "softmax")
CAST = (torch.float16, torch.bfloat16, torch.float32)


@contextmanager
def gpu_kernels(autocast: torch.dtype | None = None) -> Iterator[None]:
    """Let meta tensors be computed as on a GPU, within this context.

    Attention is fused: it keeps queries, keys, values, its result and a row's sum each, and never
    the square of the tokens, whichever kernel (flash-attn, PyTorch's own) computes it; but a mask
    of bools is there a second time, in the type of the queries, while PyTorch's computes. Functions
    are replaced, not dispatched: what checkpoints compute again must find them, too.

    Args:
        autocast: Imitate CUDA's autocast to this type of 16 bits; left out, types stay.
    """
    replaced: dict[str, Any] = {"scaled_dot_product_attention": _fused_attention}
    if autocast is not None:
        for names, dtype in ((LOW_PRECISION, autocast), (FLOAT32, torch.float32)):
            for name in names:
                replaced[name] = _casting(replaced.get(name, getattr(F, name)), dtype)
    originals = {name: getattr(F, name) for name in replaced}
    cpu: Any = torch.Tensor.cpu
    for name, function in replaced.items():
        setattr(F, name, function)
    torch.Tensor.cpu = lambda tensor: tensor  # type: ignore[method-assign,assignment,misc]
    try:
        yield
    finally:
        torch.Tensor.cpu = cpu  # type: ignore[method-assign]
        for name, function in originals.items():
            setattr(F, name, function)


def _casting(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.dtype in CAST else value

    def run(*args: Any, **kwargs: Any) -> Any:
        return function(
            *(cast(value) for value in args), **{key: cast(value) for key, value in kwargs.items()}
        )

    return run


def _fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> torch.Tensor:
    bias = attn_mask.to(query.dtype) if attn_mask is not None else None
    num_groups = query.shape[1] // key.shape[1]
    if num_groups > 1:  # grouped queries
        key, value = (part.repeat_interleave(num_groups, dim=1) for part in (key, value))
    mixed: torch.Tensor = ATEN._scaled_dot_product_flash_attention(
        query, key, value, dropout_p, is_causal
    )[0]
    del bias
    return mixed
