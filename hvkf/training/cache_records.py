"""Which records of a cache of the reference can train: its tools stored some that cannot."""

import math

import numpy as np
import numpy.typing as npt

from hvkf.buckets import Bucket
from hvkf.errors import BadInput
from hvkf.settings.data import DataConfig
from hvkf.shards import Sample
from hvkf.shown import cut

CHANNELS = 16
SPATIAL_FACTOR, TEMPORAL_FACTOR = 8, 4
PATCH = 2
FLOATS = ("float32", "float16", "uint16")
"""uint16 holds the bits of bfloat16."""


class UnusableRecord(BadInput):
    """One record cannot train; the others of its folder can."""


def check_record(sample: Sample, bucket: str, data: DataConfig, origin: str) -> None:
    """See that a record holds what the transformer takes.

    Args:
        sample: Its columns.
        bucket: WxHxF where its folder's name says it, else anything.
        data: Names the columns.
        origin: The record in words, for messages.

    Raises:
        UnusableRecord: it does not; as `hvkf import-cache` leaves it out.
    """
    reason = _reason(sample, bucket, data)
    if reason:
        raise UnusableRecord(f"{origin} cannot train: {cut(reason)}.")


def _reason(sample: Sample, bucket: str, data: DataConfig) -> str:
    keys = (data.latents_key, data.latents_cond_key, data.prompt_embeds_key)
    for key in (*keys, data.pooled_prompt_embeds_key):
        values = sample[key]
        if not isinstance(values, np.ndarray) or str(values.dtype) not in FLOATS:
            return f"{key} holds {_kind(values)}, not float32"
        if values.dtype != np.uint16 and not np.isfinite(values).all():
            return f"{key} holds NaN or infinity"
    latents, condition, tokens = (sample[key] for key in keys)
    if latents.shape != condition.shape:
        return f"{keys[0]} and {keys[1]} differ in shape"
    mask = sample[data.prompt_attention_mask_key]
    if not isinstance(mask, np.ndarray) or tokens.ndim != 2 or mask.shape != tokens.shape[:1]:
        return f"{data.prompt_attention_mask_key} does not fit {keys[2]}"
    if sample[data.pooled_prompt_embeds_key].ndim != 1:
        return f"{data.pooled_prompt_embeds_key} is not one vector"
    return _shape_reason(latents, bucket)


def _shape_reason(latents: npt.NDArray[np.generic], bucket: str) -> str:
    shape = list(latents.shape)
    if len(shape) != 4 or shape[0] != CHANNELS or not math.prod(shape):
        return f"latents of shape {shape} are not [16, frames, height, width]"
    _, frames, height, width = shape
    if height % PATCH or width % PATCH:
        return (
            f"latents of {width}x{height} have an odd side (the reference leaves out the scaling "
            "of clips one side of which already fits): make it anew from the video"
        )
    size = (width * SPATIAL_FACTOR, height * SPATIAL_FACTOR, (frames - 1) * TEMPORAL_FACTOR + 1)
    found = "x".join(map(str, size))
    if _is_bucket(bucket) and bucket != found:
        return f"it is of {found} in a folder for {bucket}: make it anew from the video"
    return ""


def _is_bucket(text: str) -> bool:
    try:
        Bucket.parse(text)
    except BadInput:
        return False
    return True


def _kind(values: object) -> str:
    return str(values.dtype) if isinstance(values, np.ndarray) else type(values).__name__
