"""How fast is rendering in bulk: against single runs, against its own models, and at planning.

hvkf-tiny on moving shapes, on the CPU, by OMP_NUM_THREADS threads. Each figure is given by the
clock and by the CPU's time, children counted: goals are held against the latter, which others' work
on the machine hardly moves. The speed settings are held against the exact render.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.rendering_speed import (
    DATA_SEED,
    FIRST_CLIP,
    NUM_FRAMES,
    show_speed,
    speed_table,
)
from benchmarks.timing import Took, machine, now
from hvkf.config import Config
from hvkf.demo import CHECKPOINT
from hvkf.errors import HvkfError
from hvkf.keyframe_images import decode_image
from hvkf.model.renderer import Pair, Renderer
from hvkf.model.tiny import build_tiny_checkpoint
from hvkf.shapes import render_clip
from hvkf.stages import render, render_rows
from hvkf.storage import open_store

SIDE, STEPS = 64, 4
NUM_REPEATS = 3
NUM_IMAGES = 2000
MEASURES = ("bulk", "overhead", "planning", "speed")


class Goal(NamedTuple):
    """A figure and the bound that it must keep; `is_least` says on which side."""

    what: str
    found: float
    bound: float
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether the bound is kept."""
        return self.found >= self.bound if self.is_least else self.found <= self.bound


def main() -> None:
    """Measure what is asked for, print it, keep it; the exit code says whether goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of the bulk render")
    parser.add_argument("--singles", type=int, default=3, help="hvkf infer processes to measure")
    parser.add_argument(
        "--untrained", action="store_true", help="the smaller tiny checkpoint with random weights"
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--measure", nargs="*", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--results", type=Path, help="add the figures to this JSON file")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if options.results is not None and options.results.exists():
        figures = json.loads(options.results.read_text())
    with tempfile.TemporaryDirectory(prefix="hvkf-rendering-") as name:
        folder = Path(name)
        if options.untrained:
            build_tiny_checkpoint(checkpoint_of(folder))
        else:
            checkpoint_of(folder).symlink_to(CHECKPOINT)
        write_pairs(folder, max(options.pairs, options.singles))
        for what in options.measure:
            measured: Any
            if what == "bulk":
                measured = bulk_against_singles(folder, options.pairs, options.singles)
            elif what == "overhead":
                measured = overhead(folder, options.pairs)
            elif what == "planning":
                measured = [plan_many(folder, rows) for rows in options.rows]
            else:
                measured = speed_table()
            figures[what] = {"found": measured, "machine": machine()}
            print(json.dumps({what: figures[what]}), file=sys.stderr, flush=True)
            goals = goals_of(figures)
            figures["goals"] = [{**goal._asdict(), "is_met": goal.is_met} for goal in goals]
            if options.results is not None:
                options.results.parent.mkdir(parents=True, exist_ok=True)
                options.results.write_text(json.dumps(figures, indent=2) + "\n")
    show(figures)
    raise SystemExit(0 if all(goal["is_met"] for goal in figures["goals"]) else 1)


def checkpoint_of(folder: Path) -> Path:
    """Where the models lie that a measurement renders with."""
    return folder / "checkpoint"


def write_pairs(folder: Path, count: int) -> None:
    """Write the first and last frames of moving shapes, and their manifest."""
    with (folder / "pairs.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "first_frame", "last_frame", "prompt", "seed"])
        for number in range(count):
            frames, caption = render_clip(DATA_SEED, FIRST_CLIP + number, NUM_FRAMES)
            names = [f"{number}-{end}.png" for end in ("first", "last")]
            for name, frame in zip(names, (frames[0], frames[-1]), strict=True):
                Image.fromarray(frame).save(folder / name)
            writer.writerow([number, *names, caption, number])


def settings_for(folder: Path, workspace: str, manifest: str = "pairs.csv") -> Config:
    """Make the settings of a render in a workspace of its own."""
    return Config.model_validate(
        {
            "workspace": str(folder / workspace),
            "model": {"pretrained_model_name_or_path": str(checkpoint_of(folder))},
            "jobs": {"render": {"threads": torch.get_num_threads()}},
            "render": {
                "manifest": str(folder / manifest),
                "lora": "none",
                "width": SIDE,
                "height": SIDE,
                "num_frames": NUM_FRAMES,
                "steps": STEPS,
                "precision": "fp32",
            },
        }
    )


def bulk_against_singles(folder: Path, num_pairs: int, num_singles: int) -> dict[str, Any]:
    """Time one `hvkf submit` of all pairs, and single `hvkf infer` processes, start to end."""
    config = settings_for(folder, "bulk")
    keep_first_rows(folder, num_pairs)
    (folder / "config.json").write_text(config.model_dump_json())
    submit = ["submit", str(folder / "pairs.csv"), "--config", str(folder / "config.json"), "--yes"]
    rows = list(csv.DictReader((folder / "pairs.csv").open(newline="")))
    singles = [infer_process(folder, row) for row in rows[:num_singles]]
    bulk = command_took(submit)
    clock_s, cpu_s = (statistics.mean(values) for values in zip(*singles, strict=True))
    return {
        "pairs": num_pairs,
        "singles_measured": num_singles,
        "single": Took(clock_s, cpu_s).figures(),
        "bulk": bulk.figures(),
        "single_pairs_per_cpu_minute": round(60 / cpu_s, 2),
        "bulk_pairs_per_cpu_minute": round(60 * num_pairs / bulk.cpu_s, 2),
        "ratio_by_cpu": round(cpu_s * num_pairs / bulk.cpu_s, 2),
        "ratio_by_clock": round(clock_s * num_pairs / bulk.clock_s, 2),
    }


def keep_first_rows(folder: Path, count: int) -> None:
    """Leave the first rows in the manifest."""
    lines = (folder / "pairs.csv").read_text().splitlines()
    (folder / "pairs.csv").write_text("\n".join(lines[: count + 1]) + "\n")


def infer_process(folder: Path, row: dict[str, str]) -> Took:
    """Time one `hvkf infer` of a row."""
    size = [f"--frames={NUM_FRAMES}", f"--height={SIDE}", f"--width={SIDE}", f"--steps={STEPS}"]
    return command_took(
        [
            *(
                "infer",
                "--lora",
                "none",
                "--model",
                str(checkpoint_of(folder)),
                "--precision",
                "fp32",
            ),
            *("--frame1", str(folder / row["first_frame"])),
            *("--frame2", str(folder / row["last_frame"]), "--prompt", row["prompt"]),
            *("--seed", row["seed"], "--output", str(folder / "single.mp4"), *size),
        ]
    )


def command_took(arguments: Sequence[str]) -> Took:
    """Time an `hvkf` process and those it starts."""
    begun = now()
    command = [sys.executable, "-m", "hvkf.cli", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise HvkfError(
            f"{' '.join(command)} ended with {ended.returncode}: {ended.stderr[-2000:]}"
        )
    return now() - begun


def overhead(folder: Path, num_pairs: int) -> dict[str, Any]:
    """Compare a worker's time for its rows with that of the models alone, turn about.

    The worker reads images, claims rows, renews claims, measures, encodes H.264 and records; the
    models encode prompts and keyframes, sample and decode. Loading counts in neither.
    """
    render_alone(folder, 1)
    alone, worker = [], []
    for repeat in range(NUM_REPEATS):
        alone.append(render_alone(folder, num_pairs))
        worker.append(render_as_worker(folder, f"worker-{repeat}"))
    pairs = list(zip(alone, worker, strict=True))
    return {
        "repeats": NUM_REPEATS,
        "alone": [took.figures() for took in alone],
        "worker": [took.figures() for took in worker],
        "ratio_by_cpu": round(statistics.median(w.cpu_s / a.cpu_s for a, w in pairs), 3),
        "ratio_by_clock": round(statistics.median(w.clock_s / a.clock_s for a, w in pairs), 3),
    }


def render_alone(folder: Path, num_pairs: int) -> Took:
    """Time the models for the manifest's pairs, which are read beforehand."""
    config = settings_for(folder, "alone")
    rows = list(csv.DictReader((folder / "pairs.csv").open(newline="")))[:num_pairs]
    pairs = []
    for row in rows:
        ends = [
            torch.from_numpy(decode_image((folder / row[name]).read_bytes(), name))
            for name in ("first_frame", "last_frame")
        ]
        pairs.append(Pair({0: ends[0], NUM_FRAMES - 1: ends[1]}, row["prompt"], int(row["seed"])))
    renderer = Renderer(config.model, open_store(config.workspace), "fp32")
    begun = now()
    for pair in pairs:
        renderer.render_batch([pair], num_frames=NUM_FRAMES, steps=STEPS, guidance=6.0)
    return now() - begun


def render_as_worker(folder: Path, workspace: str) -> Took:
    """Time `hvkf render run` in this process, less the loading of the models."""
    config = settings_for(folder, workspace)
    store = open_store(config.workspace)
    plan = render.plan(config, store)
    loading: list[Took] = []

    def load(*arguments: Any) -> Renderer:
        begun = now()
        renderer = Renderer(*arguments)
        loading.append(now() - begun)
        return renderer

    begun = now()
    with patch.object(render_rows, "Renderer", load):
        render.run(plan, store, plan.parts)
    return now() - begun - loading[0]


def plan_many(folder: Path, num_rows: int) -> dict[str, Any]:
    """Time the checking and planning of a manifest of many rows in a process of its own."""
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        draws = np.random.default_rng(0)
        for number in range(NUM_IMAGES):
            pixels = draws.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(images / f"{number}.png")
    manifest = folder / f"many-{num_rows}.csv"
    with manifest.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "first_frame", "last_frame", "prompt", "seed"])
        for number in range(num_rows):
            ends = [f"images/{(number * step) % NUM_IMAGES}.png" for step in (1, 7)]
            prompt = f"A disc of colour {number} moves slowly across a striped background."
            writer.writerow([f"row-{number:06d}", *ends, prompt, number])
    config = settings_for(folder, f"plan-{num_rows}", manifest.name)
    program = (
        "import os, re, sys, time\n"
        "from pathlib import Path\n"
        "from hvkf.config import Config\n"
        "from hvkf.stages import render\n"
        "from hvkf.storage import open_store\n"
        "config = Config.model_validate_json(sys.stdin.read())\n"
        "begun_s = time.monotonic()\n"
        "plan = render.plan(config, open_store(config.workspace))\n"
        # Not getrusage: its peak begins with that of the process that started this one.
        "peak_kib = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(time.monotonic() - begun_s, sum(os.times()[:4]), peak_kib)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    clock_s, cpu_s, peak_kib = ended.stdout.split()
    return {
        "rows": num_rows,
        "images": NUM_IMAGES,
        **Took(float(clock_s), float(cpu_s)).figures(),
        "peak_mib": round(int(peak_kib) / 1024, 1),
    }


def goals_of(figures: dict[str, Any]) -> list[Goal]:
    """Hold the figures against what was promised."""
    limits_s = {10_000: 10.0, 100_000: 60.0}
    goals = []
    if "bulk" in figures:
        ratio = figures["bulk"]["found"]["ratio_by_cpu"]
        goals.append(Goal("pairs per CPU minute against single processes", ratio, 5.0, True))
    if "overhead" in figures:
        ratio = figures["overhead"]["found"]["ratio_by_cpu"]
        goals.append(Goal("worker against its models alone, CPU", ratio, 1.1))
    for planned in figures.get("planning", {}).get("found", []):
        rows = planned["rows"]
        goals.append(
            Goal(f"planning {rows} rows, CPU s", planned["cpu_s"], limits_s.get(rows, 60.0))
        )
        goals.append(Goal(f"planning {rows} rows, MiB", planned["peak_mib"], 500.0))
    return goals


def show(figures: dict[str, Any]) -> None:
    """Print figures as tables."""
    console = Console()
    goals = Table("what", "found", "goal", "", title="Goals")
    for goal in figures["goals"]:
        sign = "at least" if goal["is_least"] else "at most"
        met = "met" if goal["is_met"] else "missed"
        goals.add_row(goal["what"], f"{goal['found']:g}", f"{sign} {goal['bound']:g}", met)
    console.print(goals)
    if "speed" in figures:
        show_speed(figures["speed"]["found"])


if __name__ == "__main__":
    main()
