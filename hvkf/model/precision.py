"""Number formats by the names that the configuration uses, and how arrays of them are stored."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def to_stored(tensor: torch.Tensor, precision: str) -> npt.NDArray[Any]:
    """Turn a tensor into the array that shards hold: numpy has no bfloat16, its bits do instead."""
    cast = tensor.detach().to("cpu", TORCH_DTYPES[precision]).contiguous()
    return cast.view(torch.uint16).numpy() if precision == "bf16" else cast.numpy()


def from_stored(array: npt.NDArray[Any]) -> torch.Tensor:
    """Turn a stored array back into a tensor of its type; uint16 holds bfloat16's bits."""
    tensor = torch.from_numpy(np.array(array, copy=True))
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor
