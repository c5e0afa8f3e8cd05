"""How sure a mean gain is: a bootstrap interval of paired differences."""

import math
from collections.abc import Sequence

import numpy as np

from hvkf.records import Record

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
MIN_PAIRS = 8
"""With fewer no verdict is given: an interval over so few says little."""


class Interval(Record):
    """The mean of paired differences, and where the true mean lies with 95% confidence."""

    mean: float
    low: float
    high: float
    num_pairs: int


def paired_interval(differences: Sequence[float], seed: int = 0) -> Interval:
    """Bootstrap the mean of paired differences; equal input gives an equal interval.

    A percentile interval is too narrow for few pairs, by the factor sqrt((n-1)/n) and by the
    quantile of the normal distribution in place of Student's. Its level is therefore raised to what
    undoes both for normal data (the expanded percentile interval of Hesterberg, "What Teachers
    Should Know About the Bootstrap", 2015).

    Raises:
        ValueError: fewer than `MIN_PAIRS`, or one is not finite.
    """
    from scipy.stats import bootstrap  # here: it takes a second, and most plans need no interval

    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if count < MIN_PAIRS:
        raise ValueError(f"{count} pairs, where {MIN_PAIRS} are the fewest")
    if not np.isfinite(values).all():
        raise ValueError("a difference is not finite")
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean=mean, low=mean, high=mean, num_pairs=count)
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=1000,
        confidence_level=_expanded_level(count),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean=mean, low=float(found.low), high=float(found.high), num_pairs=count)


def _expanded_level(count: int) -> float:
    from scipy.stats import norm, t

    quantile = t.ppf(0.5 + CONFIDENCE / 2, count - 1) * math.sqrt(count / (count - 1))
    return float(1 - 2 * norm.sf(quantile))
