"""How sure a mean gain is: a bootstrap interval of paired differences, over source videos.

Pairs of one video are no independent draws, so that the video is what is drawn: a cluster bootstrap
(Cameron, Gelbach & Miller, "Bootstrap-Based Improvements for Inference with Clustered Errors",
2008). Videos are few, and their gains skewed, so that it is studentised (bootstrap-t; Hall, "The
Bootstrap and Edgeworth Expansion", 1992) and always wider than Student's t over videos. What is
right over few was found by simulation: `tests/stages/test_evaluate_statistics.py`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hvkf.records import Record

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
MIN_VIDEOS = 8
"""With fewer no verdict is given: an interval over so few says little."""
FULL_VIDEOS = 16
"""From so many on the bootstrap's quantiles count in full; see `_weight`."""
WIDENING = 0.07
"""How much wider than Student's the interval is at least, up to `FULL_VIDEOS`; then less and less.

Student's errs in up to 4% where losses have a tail (a skewness of -0.5); with 8% and more, less
than 90% of the true gains of four standard errors are found over eight videos.
"""
MAX_STATISTIC = 12.7
"""Student's quantile with one degree of freedom: bounds the statistic of a resample of equals."""

Floats = npt.NDArray[np.float64]


class Interval(Record):
    """The mean of paired differences over videos, and where the true mean lies with 95% confidence.

    Each video counts the same, whatever its number of pairs. Intervals of earlier versions were
    over pairs, and have no `num_videos`.
    """

    mean: float
    low: float
    high: float
    num_pairs: int
    num_videos: int = 0


def video_interval(differences: Sequence[float], videos: Sequence[str], seed: int = 0) -> Interval:
    """Bootstrap the mean of paired differences over videos; equal input gives an equal interval.

    Args:
        differences: Of each pair.
        videos: The source video of each pair.
        seed: Of the resamples.

    Raises:
        ValueError: fewer than `MIN_VIDEOS` videos, or a difference is not finite.
    """
    means = _means_of_videos(differences, videos)
    count = len(means)
    if count < MIN_VIDEOS:
        raise ValueError(f"{count} videos, where {MIN_VIDEOS} are the fewest")
    if not np.isfinite(means).all():
        raise ValueError("a difference is not finite")
    mean = float(means.mean())
    low, high = mean, mean
    if np.ptp(means) > 0:
        error = float(means.std(ddof=1)) / np.sqrt(count)
        below, above = _quantiles(means, seed)
        low, high = mean - below * error, mean + above * error
    return Interval(
        mean=mean, low=float(low), high=float(high), num_pairs=len(differences), num_videos=count
    )


def num_videos(videos: Sequence[str]) -> int:
    """Count the source videos of pairs."""
    return len(set(videos))


def _means_of_videos(differences: Sequence[float], videos: Sequence[str]) -> Floats:
    by_video: dict[str, list[float]] = {}
    for difference, video in zip(differences, videos, strict=True):
        by_video.setdefault(video, []).append(difference)
    # In an order of their own, so that the order of pairs changes no resample.
    return np.array([np.mean(by_video[video]) for video in sorted(by_video)], dtype=np.float64)


def _quantiles(means: Floats, seed: int) -> tuple[float, float]:
    """Say how many standard errors the true mean may lie below and above the one found."""
    from scipy.stats import t  # here: it takes a second, and most plans need no interval

    count = len(means)
    student = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    least = student * (1 + WIDENING * min(1.0, FULL_VIDEOS / count))
    weight = _weight(count)
    if weight == 0:
        return least, least
    generator = np.random.default_rng(seed)
    drawn = means[generator.integers(0, count, size=(NUM_RESAMPLES, count))]
    distance = drawn.mean(axis=1) - means.mean()
    error = drawn.std(axis=1, ddof=1) / np.sqrt(count)
    bound = np.abs(distance) / MAX_STATISTIC
    statistic = distance / np.maximum(error, np.where(bound > 0, bound, 1.0))
    tail = (1 - CONFIDENCE) / 2
    high, low = np.quantile(statistic, [1 - tail, tail])
    return (
        max(least, student + weight * (float(high) - student)),
        max(least, student + weight * (-float(low) - student)),
    )


def _weight(count: int) -> float:
    """Say how much of what the bootstrap adds to Student's quantile counts.

    Over eight videos its tails are more noise than skew, and would hide every sixth true gain of
    four standard errors; over sixteen a tail of losses misleads Student's too often.
    """
    return min(1.0, (count - MIN_VIDEOS) / (FULL_VIDEOS - MIN_VIDEOS))
