"""The CPU's time per clip as clips become more."""

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.data_path.measuring import (
    KEPT,
    Row,
    Scale,
    child,
    fresh_copy,
    run_stages,
    settings,
    store_plan,
    write_shapes,
)
from hvkf.config import Config

GOAL = 1.1


def measure(scale: Scale) -> list[Row]:
    """Measure caching and encoding."""
    counts = {"cache": (1, 10, 100, 1000), "encode": (1, 10, 100)}
    if scale.is_quick:
        counts = {"cache": (1, 10, 50), "encode": (1, 5)}
    return [growth(stage, of_stage, scale.repeats) for stage, of_stage in counts.items()]


def growth(stage: str, counts: tuple[int, ...], repeats: int) -> Row:
    """Compare the CPU's time per clip, without the start, at more clips with that at fewer."""
    with ExitStack() as folders:
        configs = {count: prepare(folders, stage, count) for count in counts}
        turns = [
            {count: seconds_per_clip(stage, config, count) for count, config in configs.items()}
            for _ in range(repeats)
        ]
    worst = max(
        statistics.median(turn[more] / turn[fewer] for turn in turns)
        for fewer in counts
        for more in counts
        if more > fewer
    )
    what = f"{stage}: growth of time per clip, {' to '.join(map(str, counts))} clips"
    per_clip = {count: statistics.median(turn[count] for turn in turns) for count in counts}
    details = {"ms_per_clip": {count: round(1000 * s, 1) for count, s in per_clip.items()}}
    return Row("scale", what, f"<= {GOAL}", GOAL, None, round(worst, 3), details=details)


def prepare(folders: ExitStack, stage: str, count: int) -> Config:
    """Make so many clips, and do what comes before the stage, in a folder of its own."""
    folder = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="hvkf-bench-")))
    write_shapes(folder, count, 17)
    config = settings(folder, cache={"bucket_reso": ["32x32x17"]})
    run_stages(config, *(["ingest"] if stage == "cache" else ["ingest", "cache"]))
    return config


def seconds_per_clip(stage: str, config: Config, count: int) -> float:
    """Run the stage in a fresh workspace; the CPU's seconds after its first item began."""
    with fresh_copy(Path(config.workspace).parent, *KEPT[stage]) as store:
        there = config.model_copy(update={"workspace": str(store.root)})
        found = child("probe", "whole", stage, store.root, store_plan(stage, there, store))
    return float(found["cpu_s"] - found["begun_cpu_s"]) / count
