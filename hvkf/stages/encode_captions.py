"""Captions encoded in batches: which were made is remembered, batch by batch."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType

from hvkf.errors import BadInput
from hvkf.shards import Sample

KEPT_BYTES = 1 << 30
CaptionBatch = tuple[str, ...]
ALONE: Mapping[str, CaptionBatch] = MappingProxyType({})
"""No caption is in a batch with others."""


class Prompts:
    """Captions' columns, each made once; a clip's caption comes again in each bucket and window.

    What is kept is a batch of captions: a caption that comes in another batch has other bits there,
    and must not get those of the batch that happened to come first. The batches used last are kept,
    up to a number of bytes: a thousand of real captions in bfloat16.
    """

    def __init__(
        self,
        encode: Callable[[CaptionBatch], list[Sample]],
        limit_bytes: int = KEPT_BYTES,
    ) -> None:
        self._encode = encode
        self._limit_bytes = limit_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[CaptionBatch, list[Sample]] = OrderedDict()

    def __call__(self, caption: str, batch: CaptionBatch) -> Sample:
        """Give a caption's columns as they are made in a batch."""
        if batch not in self._kept:
            self._kept[batch] = self._encode(batch)
            self._num_bytes += _num_bytes(self._kept[batch])
        self._kept.move_to_end(batch)
        while self._num_bytes > self._limit_bytes and len(self._kept) > 1:
            self._num_bytes -= _num_bytes(self._kept.popitem(last=False)[1])
        return self._kept[batch][batch.index(caption)]


def _num_bytes(samples: list[Sample]) -> int:
    return sum(int(array.nbytes) for columns in samples for array in columns.values())


def too_many(captions: CaptionBatch) -> BadInput:
    """Say which captions did not fit, and what makes them fit."""
    what, fix = "One caption", "Take"
    if len(captions) > 1:
        what = f"{len(captions)} captions"
        fix = f"Set encode.caption_batch_size below {len(captions)}, or take"
    return BadInput(
        f"{what} did not fit the GPU's memory while encoding. {fix} a larger GPU: `hvkf plan` says "
        "what fits which."
    )
