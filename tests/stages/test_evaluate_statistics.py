"""The interval over source videos: how often it errs on gains whose truth is known."""

import numpy as np
import pytest
from scipy.stats import norm, t

from hvkf.stages import evaluate_statistics
from hvkf.stages.evaluate_statistics import MIN_VIDEOS, Interval, video_interval

NUM_TRIALS = 3000
NUM_QUICK_TRIALS = 24_000
"""Over so few videos that nothing is resampled, many more can be drawn."""
MAX_FALSE = 0.03
MIN_FOUND = 0.90


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of trials take their time; the rates hardly depend on the resamples."""
    monkeypatch.setattr(evaluate_statistics, "NUM_RESAMPLES", 999)


def share_above_zero(
    num_videos: int, per_video: int, between: float, skewness: float, gain: float
) -> float:
    """Draw gains of clusters, and count how often their interval lies above 0.

    Args:
        num_videos: Clusters.
        per_video: Pairs of each.
        between: The share of the variance that lies between videos.
        skewness: Of the videos' gains: 0 is normal, below it a shifted gamma's with a tail of
            losses, above it one with a tail of gains.
        gain: The true gain in standard errors of the mean.
    """
    generator = np.random.default_rng([num_videos, per_video, round(100 * between), 7])
    shape = (NUM_QUICK_TRIALS if num_videos == MIN_VIDEOS else NUM_TRIALS, num_videos)
    if skewness == 0:
        of_videos = generator.normal(size=shape)
    else:
        k = 4 / skewness**2  # a gamma's skewness is 2 / sqrt(k)
        of_videos = np.sign(skewness) * (generator.gamma(k, size=shape) - k) / np.sqrt(k)
    within = generator.normal(size=(*shape, per_video))
    error = np.sqrt((between + (1 - between) / per_video) / num_videos)
    drawn = np.sqrt(between) * of_videos[..., None] + np.sqrt(1 - between) * within + gain * error
    videos = [f"{number}" for number in range(num_videos) for _ in range(per_video)]
    return float(np.mean([video_interval(list(row.ravel()), videos).low > 0 for row in drawn]))


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("between", [0.3, 0.8])
@pytest.mark.parametrize(
    ("num_videos", "per_video"), [(8, 1), (8, 2), (8, 8), (12, 2), (16, 1), (16, 4), (32, 1)]
)
def test_no_gain_is_seldom_found_and_one_of_four_standard_errors_nearly_always(
    num_videos: int, per_video: int, between: float
) -> None:
    assert share_above_zero(num_videos, per_video, between, 0.0, 0.0) <= MAX_FALSE
    assert share_above_zero(num_videos, per_video, between, 0.0, 4.0) >= MIN_FOUND


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("num_videos", "per_video", "skewness"),
    [
        *((8, 2, skewness) for skewness in (-0.5, 0.5, 1.0, 2.0)),
        *((8, 4, -0.5), (12, 4, -0.5)),
        *((16, 1, skewness) for skewness in (-0.5, 0.5, 1.0, 2.0)),
        *((32, 2, skewness) for skewness in (-0.5, 0.5, 1.0, 2.0)),
    ],
)
def test_skewed_gains_are_seldom_found_where_there_is_none(
    num_videos: int, per_video: int, skewness: float
) -> None:
    assert share_above_zero(num_videos, per_video, 0.8, skewness, 0.0) <= MAX_FALSE


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("num_videos", "per_video", "least"), [(8, 1, 0.86), (8, 4, 0.86), (16, 2, 0.87), (32, 2, 0.9)]
)
def test_a_tail_of_losses_hides_some_more_of_the_true_gains(
    num_videos: int, per_video: int, least: float
) -> None:
    """What `docs/evaluation.md` says of them; no interval that errs in 3% finds 90% of 8 videos."""
    assert share_above_zero(num_videos, per_video, 0.8, -0.5, 4.0) >= least
    assert share_above_zero(num_videos, per_video, 0.8, 0.5, 4.0) >= MIN_FOUND


@pytest.mark.slow
@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("num_videos", "skewness", "bound"), [(8, -0.5, 0.035), (16, -2.0, 0.045), (32, -2.0, 0.04)]
)
def test_a_tail_of_losses_misleads_less_than_students_interval(
    num_videos: int, skewness: float, bound: float
) -> None:
    """Whoever has not seen the tail cannot know of it: none keeps to 3% with a skewness of -2.

    Student's is misled in 4%, 8% and 6%.
    """
    assert share_above_zero(num_videos, 2, 0.9, skewness, 0.0) <= bound


@pytest.mark.usefixtures("few_resamples")
def test_pairs_of_one_video_are_not_taken_for_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUM_TRIALS", "NUM_QUICK_TRIALS"):
        monkeypatch.setattr(f"tests.stages.test_evaluate_statistics.{name}", 400)
    assert share_above_zero(8, 8, 0.8, 0.0, 0.0) <= 0.04
    assert share_above_zero(12, 2, 0.8, 0.0, 4.0) >= MIN_FOUND


@pytest.mark.parametrize("count", [8, 16, 64])
def test_an_interval_of_normal_differences_is_about_students(count: int) -> None:
    # Quantiles of a normal distribution: a sample without chance.
    values = norm.ppf((np.arange(count) + 0.5) / count)
    half = t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count)
    videos = [f"{number:02d}" for number in range(count)]
    found = video_interval(list(values + 1.0), videos)
    assert found.mean == pytest.approx(1.0)
    assert found.high - 1.0 == pytest.approx(half, rel=0.12)
    assert 1.0 - found.low == pytest.approx(half, rel=0.12)
    assert video_interval(list(values + 1.0), videos) == found
    order = np.random.default_rng(0).permutation(count)
    shuffled = video_interval([values[i] + 1.0 for i in order], [videos[i] for i in order])
    assert shuffled == found, "the order of pairs changes nothing"


def test_each_video_counts_the_same_whatever_its_pairs() -> None:
    videos = [f"{number}" for number in range(8)]
    alone = video_interval([float(number) for number in range(8)], videos)
    more = video_interval(
        [*[float(number) for number in range(8)], *[7.0] * 20], videos + ["7"] * 20
    )
    assert (more.mean, more.low, more.high) == (alone.mean, alone.low, alone.high)
    assert (more.num_pairs, more.num_videos) == (28, 8)


def test_equal_differences_have_an_interval_without_width() -> None:
    videos = [f"{number}" for number in range(9)]
    found = video_interval([0.5] * 9, videos)
    assert (found.low, found.mean, found.high) == (0.5, 0.5, 0.5)
    outlier = video_interval([0.5] * 8 + [0.6], videos)
    assert outlier.low < 0.5 < outlier.high < 5
    with pytest.raises(ValueError, match="7 videos, where 8 are the fewest"):
        video_interval([0.5] * 9, [*videos[:7], "0", "0"])
    with pytest.raises(ValueError, match="not finite"):
        video_interval([0.5] * 8 + [float("nan")], videos)


def test_an_interval_of_an_earlier_version_reads() -> None:
    old = b'{"mean":1.0,"low":0.5,"high":1.5,"num_pairs":16}'
    assert Interval.from_json(old).num_videos == 0
