"""Timing two ways of one work against each other, and what a row of the table says."""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.timing import Took
from hvkf import cli
from hvkf.config import Config
from hvkf.demo import CHECKPOINT, CLIPS, clips_folder
from hvkf.shapes import write_dataset
from hvkf.storage import FolderStore

HERE = Path(__file__).parent
SHAPES_SEED = 0
FIRST_SHAPE = 1_004_000
KEPT = {"cache": ("datasets",), "encode": ("datasets", "scenes")}
"""The folders of a workspace that a stage reads."""


class Row(NamedTuple):
    """One figure of the table: the ratio of what was measured to the limit, and the goal.

    `clock` and `cpu` are medians of the ratios of pairs measured one after the other; goals are
    held against the clock's where there is one, for what stages do beside each other is meant to
    cost no time. Others' work on the machine moves the CPU's least.
    """

    stage: str
    what: str
    goal: str
    bound: float
    clock: float | None
    cpu: float | None = None
    is_least: bool = False
    details: Mapping[str, Any] = MappingProxyType({})

    @property
    def found(self) -> float:
        """The figure that the goal is held against."""
        found = self.clock if self.clock is not None else self.cpu
        assert found is not None
        return found

    @property
    def is_met(self) -> bool:
        """Whether the goal is met."""
        return self.found >= self.bound if self.is_least else self.found <= self.bound


class Scale(NamedTuple):
    """How much to measure: all, or what two minutes hold."""

    repeats: int
    is_quick: bool


def ratios(pairs: Sequence[tuple[Took, Took]]) -> tuple[float, float]:
    """Take the medians, by the clock and by the CPU, of the ratios of (work, limit) pairs."""
    clock = statistics.median(work.clock_s / limit.clock_s for work, limit in pairs)
    cpu = statistics.median(work.cpu_s / limit.cpu_s for work, limit in pairs)
    return round(clock, 3), round(cpu, 3)


def seconds(pairs: Sequence[tuple[Took, Took]]) -> dict[str, Any]:
    """List the pairs' CPU seconds for the results."""
    return {
        "cpu_s": [round(work.cpu_s, 2) for work, _ in pairs],
        "limit_cpu_s": [round(limit.cpu_s, 2) for _, limit in pairs],
        "clock_s": [round(work.clock_s, 2) for work, _ in pairs],
        "limit_clock_s": [round(limit.clock_s, 2) for _, limit in pairs],
    }


def settings(folder: Path, **sections: dict[str, Any]) -> Config:
    """Make a configuration on hvkf-tiny with a workspace in a folder."""
    chosen: dict[str, Any] = {
        "workspace": str(folder / "workspace"),
        "model": {"pretrained_model_name_or_path": str(CHECKPOINT)},
        "experiment": {"trackers": []},
        "encode": {"precision": "fp32"},
        "ingest": {
            "metadata": str(folder / "data" / "metadata.csv"),
            "holdout_fraction": 0.0,
            "find_near_duplicates": False,
        },
    }
    for name, values in sections.items():
        chosen[name] = {**chosen.get(name, {}), **values}
    return Config.model_validate(chosen)


def write_shapes(folder: Path, num_clips: int, num_frames: int) -> None:
    """Write clips of moving shapes and their table."""
    write_dataset(folder / "data", num_clips, num_frames, SHAPES_SEED, first_index=FIRST_SHAPE)


def write_real_clips(folder: Path, copies: int = 1) -> None:
    """Copy the demo's real clips, each so many times, with their table."""
    videos = folder / "data" / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    lines = ["video_file,caption"]
    for name, caption in CLIPS.items():
        for number in range(copies):
            target = videos / f"{number}-{name}"
            # Bytes behind the last box change the hash alone: ingest leaves equal files out.
            target.write_bytes((clips_folder() / name).read_bytes() + _free_box(number))
            lines.append(f'videos/{target.name},"{caption}"')
    (folder / "data" / "metadata.csv").write_text("\n".join(lines) + "\n")


def _free_box(number: int) -> bytes:
    return (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")


def run_stages(config: Config, *stages: str) -> FolderStore:
    """Run stages in processes of their own, as a user does; return the workspace."""
    store = FolderStore(Path(config.workspace))
    for stage in stages:
        cli.run_stage(stage, config, store)
    return store


@contextmanager
def fresh_copy(folder: Path, *kept: str) -> Iterator[FolderStore]:
    """Yield a new workspace folder with some of the old one's folders in it; it goes again."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for name in kept:
        shutil.copytree(folder / "workspace" / name, copy / name)
    try:
        yield FolderStore(copy)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def store_plan(stage: str, config: Config, store: FolderStore) -> Path:
    """Plan a stage and write the plan to a file beside the workspace."""
    file = Path(config.workspace).with_name(f"{stage}-plan.json")
    file.write_bytes(cli.stage_module(stage).plan(config, store).to_json())
    return file


def child(module: str, *arguments: object) -> dict[str, Any]:
    """Run the module beside this one with arguments and read the JSON that it prints last."""
    command = [sys.executable, str(HERE / f"{module}.py"), *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{ended.stderr}")
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found
