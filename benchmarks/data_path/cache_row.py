"""Caching twelve buckets against one decode of each needed frame, its resizes, and plain writes."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from benchmarks.data_path.measuring import (
    KEPT,
    Row,
    Scale,
    fresh_copy,
    ratios,
    run_stages,
    seconds,
    settings,
    write_real_clips,
)
from benchmarks.timing import Took, took
from hvkf.buckets import Bucket
from hvkf.config import Config
from hvkf.resize import resize_to_cover
from hvkf.stages import cache
from hvkf.stages.cache_frames import source_frames
from hvkf.video import decode_frames

SIZES, LENGTHS = ("128x128", "256x256", "320x320", "384x384"), (17, 33, 49)
BUCKETS = [f"{size}x{length}" for size in SIZES for length in LENGTHS]
GOAL = 1.15
COPIES = 4


def measure(scale: Scale) -> list[Row]:
    """Time the stage and its limit in turns."""
    with tempfile.TemporaryDirectory(prefix="hvkf-bench-") as name:
        folder = Path(name)
        write_real_clips(folder, 1 if scale.is_quick else COPIES)
        config = settings(folder, cache={"bucket_reso": BUCKETS})
        run_stages(config, "ingest")
        pairs = [pair(folder, config) for _ in range(scale.repeats)]
    clock, cpu = ratios(pairs)
    details = {**seconds(pairs), "cpu_ratio": cpu}
    # By the clock: what else the stage does is meant to go on beside decoding.
    row = Row("cache", "12 buckets, wall", f"<= {GOAL}", GOAL, clock, details=details)
    return [row]


def pair(folder: Path, config: Config) -> tuple[Took, Took]:
    """Run the stage in a fresh workspace, then its limit on the same clips."""
    with fresh_copy(folder, *KEPT["cache"]) as store:
        plan = cache.plan(config, store)
        stage = took(lambda: cache.run(plan, store, plan.parts))
        files = [path.read_bytes() for path in sorted((folder / "copy" / "scenes").rglob("*.mds*"))]
    groups = [group for part in plan.parts for group in cache._part_groups(part)]
    return stage, took(lambda: limit(folder, config, groups, files))


def limit(
    folder: Path, config: Config, groups: Sequence[cache.SceneGroup], files: Sequence[bytes]
) -> None:
    """Decode each needed frame once, resize it once per size; write the stage's bytes beside it."""
    writing = Thread(target=write_all, args=(folder, files))
    writing.start()
    for group in groups:
        for number, clip in enumerate(group.clips):
            sizes: dict[int, set[tuple[int, int]]] = {}
            for item in (item for segment in group.segments for item in segment.items):
                if item.clip == number:
                    bucket = Bucket.parse(item.bucket)
                    for frame in source_frames(clip, item, config):
                        sizes.setdefault(frame, set()).add((bucket.width, bucket.height))
            for frame, pixels in decode_frames(
                folder / "data" / clip.source, sorted(sizes), clip.reading
            ):
                for size in sizes[frame]:
                    resize_to_cover(pixels, *size)
    writing.join()


def write_all(folder: Path, files: Sequence[bytes]) -> None:
    """Write files."""
    for data in files:
        target = folder / "written"
        target.write_bytes(data)
        target.unlink()
