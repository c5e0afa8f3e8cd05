"""Counting what code does to memory, and how much it computes, while it runs on meta tensors.

A meta tensor has a shape and a type and no values. The real code runs on them at any size: what is
counted follows it, and nothing is allocated.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

ATEN = torch.ops.aten
META = torch.device("meta")
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Count:
    """What a piece of work took: the most bytes alive at once, and floating-point operations."""

    peak_bytes: int = 0
    flops: int = 0

    def __add__(self, other: "Count") -> "Count":
        """Do one after the other."""
        return Count(max(self.peak_bytes, other.peak_bytes), self.flops + other.flops)

    def times(self, repeats: int) -> "Count":
        """Do it several times, one after the other."""
        return Count(self.peak_bytes, self.flops * repeats)


class Counter(TorchDispatchMode):
    """Counts storages on the meta device from when an operation makes them until they are freed.

    What a GPU's kernels allocate for themselves is added where it is large: the float32
    accumulator of attention's backward pass.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self.flops = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        count_flops = flop_registry.get(func._overloadpacket)
        if count_flops is None and func is not torch.ops.prim.device.default:
            # In inference mode, operations such as `linear` come here whole.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if count_flops is not None:
            self.flops += count_flops(*args, **kwargs, out_val=result)
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and value.device == META:
                self._see(value.untyped_storage())
        if func is ATEN._scaled_dot_product_flash_attention_backward.default:
            self.note(args[1].numel() * FLOAT32_BYTES)
        return result

    def hold(self, module: torch.nn.Module) -> None:
        """Count a module's weights and buffers, which are there before the work begins."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._see(tensor.untyped_storage())

    def note(self, transient_bytes: int) -> None:
        """Count bytes that were alive for a moment."""
        self.peak_bytes = max(self.peak_bytes, self.live_bytes + transient_bytes)

    @property
    def count(self) -> Count:
        """What was counted so far."""
        return Count(self.peak_bytes, self.flops)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        self.note(0)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)

    def once_per_shape(
        self, forward: Callable[[torch.Tensor], torch.Tensor]
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        """Let a network run for the first input of each shape only, and count all.

        The VAE takes hundreds of tiles of few shapes.
        """
        known: dict[torch.Size, tuple[torch.Size, Count]] = {}

        def counted(tile: torch.Tensor) -> torch.Tensor:
            if tile.shape in known:
                size, count = known[tile.shape]
                self.note(count.peak_bytes)
                self.flops += count.flops
                return tile.new_empty(size)
            live, peak, flops = self.live_bytes, self.peak_bytes, self.flops
            self.peak_bytes = live
            result = forward(tile)
            count = Count(self.peak_bytes - live, self.flops - flops)
            known[tile.shape] = (result.shape, count)
            self.peak_bytes = max(peak, self.peak_bytes)
            return result

        return counted
