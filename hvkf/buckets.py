"""Which sizes a clip is stored at, and which of its frames: the reference's bucketing, made pure.

A requested `WxHxF` stands for a family of sizes of about the area W*H, all sides divisible by 16;
a clip takes the member of the family whose aspect ratio is nearest to its own, and enters with
every requested F that fits. The method is the reference's, without its doubled buckets.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

from hvkf.errors import BadInput

SIDE_MULTIPLE = 16
"""Sides divide by 16: the VAE halves them three times and the transformer's patches are 2 wide."""

TEMPORAL_MULTIPLE = 4
"""The VAE stores the first frame and then one latent frame for each 4."""

FrameChoice = Literal["head", "center", "uniform", "windows"]


class UnusableSize(BadInput):
    """A clip's size fits no bucket; `code` is what its failure is recorded under."""

    code = "unusable-size"


@dataclass(frozen=True, order=True)
class Bucket:
    """A size in pixels and a length in frames at which samples are stored.

    Raises BadInput when a side is not a positive multiple of 16 or `num_frames` is not 4k+1.
    """

    width: int
    height: int
    num_frames: int

    def __post_init__(self) -> None:
        _check_sides(self.width, self.height)
        step = TEMPORAL_MULTIPLE
        if self.num_frames < 1 or self.num_frames % step != 1:
            lower = max(1, self.num_frames - (self.num_frames - 1) % step)
            raise BadInput(
                f"Bucket {self} has {self.num_frames} frames, which is not 4k+1; "
                f"the nearest that work are {lower} and {lower + step}."
            )

    @classmethod
    def parse(cls, text: str) -> "Bucket":
        """Read `WxHxF`, for example `960x544x33`; raises BadInput when it is not of that form."""
        match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})x([0-9]{1,6})", text.strip())
        if match is None:
            raise BadInput(
                f"Bucket {text!r} is not of the form WxHxF: write width, height and number of "
                f"frames, for example 960x544x33."
            )
        width, height, num_frames = (int(group) for group in match.groups())
        return cls(width, height, num_frames)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"


class ClipShape(Protocol):
    """What bucketing needs to know of a clip: pixels as displayed, frames after resampling."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def num_frames(self) -> int: ...


@dataclass(frozen=True)
class Refusal:
    """A clip that no bucket can take: its position in the list given, a code, a sentence."""

    clip: int
    code: str
    message: str


@dataclass(frozen=True)
class Assignment:
    """Which clips enter which bucket, as positions in the list of clips given, ascending.

    `dropped` holds the number of samples of each bucket that stayed under `min_bucket_count`;
    `too_short` the clips that no requested length fits; `refused` those of an unusable size.
    """

    members: dict[Bucket, tuple[int, ...]]
    dropped: dict[Bucket, int]
    too_short: tuple[int, ...]
    refused: tuple[Refusal, ...]


def bucket_family(width: int, height: int) -> list[tuple[int, int]]:
    """List the (width, height) pairs that a requested size stands for, ascending.

    Sides go from about half the square root of the area in steps of 16; each pair appears in both
    orientations, so 1280x720 and 720x1280 are one family. Raises BadInput on a side that is not a
    positive multiple of 16.
    """
    _check_sides(width, height)
    area = width * height
    root = math.isqrt(area)
    shortest = max(SIDE_MULTIPLE, _floor_to_multiple(root // 2))
    pairs = {
        (side, _floor_to_multiple(area // side))
        for side in range(shortest, root + SIDE_MULTIPLE, SIDE_MULTIPLE)
    }
    return sorted(pairs | {(long, short) for short, long in pairs})


def choose(
    clip_width: int, clip_height: int, width: int, height: int, *, no_upscale: bool = False
) -> tuple[int, int]:
    """Choose the (width, height) at which a clip is stored when `width` x `height` is requested.

    The nearest width/height ratio wins, the narrower size on a tie. With `no_upscale` a clip of no
    more than the requested area keeps its own size, cut to multiples of 16.

    Raises:
        UnusableSize: a side is not positive, or would be cut to 0 under `no_upscale`.
    """
    if clip_width < 1 or clip_height < 1:
        raise UnusableSize(
            f"a clip of {clip_width}x{clip_height} pixels has no picture; remove its row"
        )
    if no_upscale and clip_width * clip_height <= width * height:
        kept = (_floor_to_multiple(clip_width), _floor_to_multiple(clip_height))
        if 0 in kept:
            raise UnusableSize(
                f"a clip of {clip_width}x{clip_height} pixels has a side under {SIDE_MULTIPLE} "
                f"pixels: remove its row, or turn no_upscale off"
            )
        return kept
    return _nearest(clip_width, clip_height, width, height)


@lru_cache(maxsize=65536)  # a data set has few clip sizes and many clips
def _nearest(clip_width: int, clip_height: int, width: int, height: int) -> tuple[int, int]:
    aspect = clip_width / clip_height
    return min(bucket_family(width, height), key=lambda size: abs(size[0] / size[1] - aspect))


def assign(
    clips: Sequence[ClipShape],
    requested: Iterable[Bucket],
    *,
    head_frame: int = 0,
    mode: FrameChoice = "head",
    min_bucket_count: int = 1,
    no_upscale: bool = False,
) -> Assignment:
    """Enter each clip once into every bucket that a requested size leads to and whose F fits.

    Requests that lead to the same bucket (1280x720x33 and 720x1280x33) count once. A bucket with
    fewer than `min_bucket_count` samples is dropped; `mode` matters to that count alone, since
    `windows` makes several samples of one clip.
    """
    wanted = sorted(set(requested))
    members: dict[Bucket, list[int]] = {}
    too_short: list[int] = []
    refused: list[Refusal] = []
    for position, clip in enumerate(clips):
        fitting = [b for b in wanted if clip.num_frames >= head_frame + b.num_frames]
        try:
            buckets = {
                Bucket(
                    *choose(clip.width, clip.height, b.width, b.height, no_upscale=no_upscale),
                    b.num_frames,
                )
                for b in fitting
            }
        except UnusableSize as fault:
            refused.append(Refusal(position, fault.code, str(fault)))
            continue
        if not buckets:
            too_short.append(position)
        for bucket in buckets:
            members.setdefault(bucket, []).append(position)

    kept: dict[Bucket, tuple[int, ...]] = {}
    dropped: dict[Bucket, int] = {}
    for bucket, positions in sorted(members.items()):
        num_samples = sum(
            num_windows(clips[p].num_frames, bucket.num_frames, mode, head_frame) for p in positions
        )
        if num_samples < min_bucket_count:
            dropped[bucket] = num_samples
        else:
            kept[bucket] = tuple(positions)
    return Assignment(kept, dropped, tuple(too_short), tuple(refused))


def num_windows(
    num_clip_frames: int, num_frames: int, mode: FrameChoice, head_frame: int = 0
) -> int:
    """Count the samples that `windows` makes of a clip, without making them."""
    available = num_clip_frames - head_frame
    if available < num_frames:
        return 0
    return available // num_frames if mode == "windows" else 1


def windows(
    num_clip_frames: int, num_frames: int, mode: FrameChoice, head_frame: int = 0
) -> list[tuple[int, ...]]:
    """List the samples of a clip, each as the ascending indices of its `num_frames` frames.

    All modes look only behind `head_frame`: `head` takes the first frames (as the reference does),
    `center` those in the middle, `uniform` spreads them evenly from the first to the last, and
    `windows` takes all consecutive stretches that do not overlap. Empty when the clip is too short.
    """
    available = num_clip_frames - head_frame
    if available < num_frames:
        return []
    if mode == "uniform":
        return [_spread(head_frame, available, num_frames)]
    starts = {
        "head": [head_frame],
        "center": [head_frame + (available - num_frames) // 2],
        "windows": range(head_frame, num_clip_frames - num_frames + 1, num_frames),
    }[mode]
    return [tuple(range(start, start + num_frames)) for start in starts]


def _spread(first: int, available: int, num_frames: int) -> tuple[int, ...]:
    """Place `num_frames` indices evenly from the first available to the last, halves upwards."""
    intervals = num_frames - 1
    if intervals == 0:
        return (first + (available - 1) // 2,)
    return tuple(
        first + (2 * i * (available - 1) + intervals) // (2 * intervals) for i in range(num_frames)
    )


def _floor_to_multiple(side: int) -> int:
    return side - side % SIDE_MULTIPLE


def _check_sides(width: int, height: int) -> None:
    for name, side in (("width", width), ("height", height)):
        if side < 1 or side % SIDE_MULTIPLE:
            lower = max(SIDE_MULTIPLE, _floor_to_multiple(side))
            raise BadInput(
                f"Bucket size {width}x{height} has the {name} {side}, which is not a positive "
                f"multiple of {SIDE_MULTIPLE}; the nearest are {lower} and {lower + SIDE_MULTIPLE}."
            )
