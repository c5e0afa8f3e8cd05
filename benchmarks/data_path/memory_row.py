"""How much memory a worker takes at its peak, and whether that grows with the number of clips.

What the interpreter, the libraries and the models take is left out where it is named: a worker's
peak at its end less that at its first item.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.data_path.cache_row import BUCKETS
from benchmarks.data_path.measuring import (
    Row,
    Scale,
    child,
    run_stages,
    settings,
    store_plan,
    write_real_clips,
    write_shapes,
)

GOAL, FLAT_GOAL = 2.0, 1.1
LARGEST_MB = 49 * 1280 * 720 * 3 / 2**20
"""The frames that are needed of the largest real clip, decoded."""


def measure(scale: Scale) -> list[Row]:
    """Measure peaks of whole runs of a worker."""
    found = [cache_real_clips() for _ in range(scale.repeats)]
    above_mb = statistics.median(turn["peak_mb"] - turn["begun_mb"] for turn in found)
    details: dict[str, Any] = {"turns": found, "limit_mb": LARGEST_MB}
    rows = [
        Row(
            "memory",
            "cache: peak / largest clip's frames",
            f"<= {GOAL}",
            GOAL,
            round(above_mb / LARGEST_MB, 3),
            details=details,
        )
    ]
    few, many = (2, 8) if scale.is_quick else (10, 100)
    for stage, earlier in (("cache", ["ingest"]), ("encode", ["ingest", "cache"])):
        turns = [peaks(stage, earlier, (1, few, many)) for _ in range(scale.repeats)]
        details = {"mb": turns}
        if stage == "encode":
            over_one = median_ratio(turns, many, 1)
            what = "encode: peak / models and one batch"
            rows.append(Row("memory", what, f"<= {GOAL}", GOAL, over_one, details=details))
        flat = median_ratio(turns, many, few)
        what = f"{stage}: peak of {many} clips / of {few}"
        rows.append(Row("memory", what, f"<= {FLAT_GOAL}", FLAT_GOAL, flat, details=details))
    return rows


def cache_real_clips() -> dict[str, Any]:
    """Cache the real clips in twelve buckets; return what the worker took."""
    with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
        write_real_clips(Path(name))
        return run_whole(Path(name), "cache", BUCKETS, "ingest")


def peaks(stage: str, earlier: list[str], counts: tuple[int, ...]) -> dict[int, float]:
    """Run a stage on so many clips each; return its worker's peak in MB."""
    found = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
            write_shapes(Path(name), count, 17)
            found[count] = run_whole(Path(name), stage, ["32x32x17"], *earlier)["peak_mb"]
    return found


def median_ratio(turns: list[dict[int, float]], more: int, fewer: int) -> float:
    """Take the median of the turns' ratios of two peaks."""
    return round(statistics.median(turn[more] / turn[fewer] for turn in turns), 3)


def run_whole(folder: Path, stage: str, buckets: list[str], *earlier: str) -> dict[str, Any]:
    """Run a stage in one child process, all its parts, and return what it took."""
    config = settings(folder, cache={"bucket_reso": buckets})
    store = run_stages(config, *earlier)
    plan = store_plan(stage, config, store)
    return child("probe", "whole", stage, config.workspace, plan)
