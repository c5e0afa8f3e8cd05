"""The speed settings of rendering against the exact render: time, and likeness of the pixels."""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.timing import Took, now
from hvkf.demo import CHECKPOINT
from hvkf.errors import HvkfError
from hvkf.model.image_quality import likeness, psnr_of
from hvkf.model.renderer import Pair, Rendered, Renderer
from hvkf.settings.experiment import ModelConfig
from hvkf.settings.rendering import RenderSpeed
from hvkf.shapes import render_clip
from hvkf.storage import open_store

DATA_SEED, FIRST_CLIP, NUM_FRAMES = 0, 1_002_000, 33
SPEED_STEPS, NUM_SPEED_PAIRS = 20, 4


class Case(NamedTuple):
    """A speed setting: what is chosen, and how many steps."""

    name: str
    speed: RenderSpeed = RenderSpeed()
    steps: int = SPEED_STEPS
    precision: str = "fp32"
    attention: str = "sdpa"


CASES = [
    Case("exact: 20 steps, float32, SDPA"),
    Case(f"batch_size={NUM_SPEED_PAIRS}", RenderSpeed(batch_size=NUM_SPEED_PAIRS)),
    Case("compile_blocks", RenderSpeed(compile_blocks=True)),
    Case("attention=flash", attention="flash"),
    Case("attention=sage", attention="sage"),
    Case("precision=bf16", precision="bf16"),
    Case("steps=10", steps=10),
    Case("steps=6", steps=6),
    Case("first_block_cache=0.05", RenderSpeed(first_block_cache=0.05)),
    Case("first_block_cache=0.1", RenderSpeed(first_block_cache=0.1)),
    Case("first_block_cache=0.2", RenderSpeed(first_block_cache=0.2)),
    Case("taylorseer=2", RenderSpeed(taylorseer=2)),
    Case("taylorseer=3", RenderSpeed(taylorseer=3)),
    Case("fp8_layerwise", RenderSpeed(fp8_layerwise=True)),
    Case("packed_weights=fp8", RenderSpeed(packed_weights="fp8")),
    Case("packed_weights=int8", RenderSpeed(packed_weights="int8")),
    Case("packed_weights=nf4", RenderSpeed(packed_weights="nf4")),
    Case("offload_encoders", RenderSpeed(offload_encoders=True)),
    Case("group_offload", RenderSpeed(group_offload=True)),
]


def speed_table() -> list[dict[str, Any]]:
    """Render the same pairs under each setting; likeness is to the exact render's pixels."""
    pairs = []
    for number in range(NUM_SPEED_PAIRS):
        frames, caption = render_clip(DATA_SEED, FIRST_CLIP + number, NUM_FRAMES)
        ends = torch.from_numpy(frames[[0, -1]].copy())
        pairs.append(Pair({0: ends[0], NUM_FRAMES - 1: ends[1]}, caption, number))
    rows: list[dict[str, Any]] = []
    exact_cpu_s = 0.0
    exact: list[torch.Tensor] = []
    for case in CASES:
        try:
            frames_found, took = render_case(case, pairs)
        except (HvkfError, ValueError, RuntimeError, ImportError) as fault:
            rows.append({"setting": case.name, "not_measured": " ".join(str(fault).split())[:200]})
            continue
        exact, exact_cpu_s = exact or frames_found, exact_cpu_s or took.cpu_s
        rows.append(
            {
                "setting": case.name,
                **took.figures(),
                "times_faster": round(exact_cpu_s / took.cpu_s, 2),
                "psnr_db": psnr_db(frames_found, exact),
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def render_case(case: Case, pairs: Sequence[Pair]) -> tuple[list[torch.Tensor], Took]:
    """Render pairs; returns frames, and the time for each pair, once warm."""
    model = ModelConfig.model_validate(
        {"pretrained_model_name_or_path": str(CHECKPOINT), "attention": case.attention}
    )
    with tempfile.TemporaryDirectory() as folder:
        renderer = Renderer(model, open_store(folder), case.precision, case.speed)
    size = case.speed.batch_size
    groups = [list(pairs[first : first + size]) for first in range(0, len(pairs), size)]
    settings: dict[str, Any] = {"num_frames": NUM_FRAMES, "steps": case.steps, "guidance": 6.0}
    renderer.render_batch(groups[0], **{**settings, "steps": 2})
    begun = now()
    found = [one for group in groups for one in renderer.render_batch(group, **settings)]
    took = now() - begun
    rendered = [one.frames for one in found if isinstance(one, Rendered)]
    return rendered, Took(took.clock_s / len(pairs), took.cpu_s / len(pairs))


def psnr_db(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float | None:
    """PSNR of the mean squared error over all pairs; None for equal pixels."""
    errors = [likeness(one, other).mse for one, other in zip(found, exact, strict=True)]
    return None if not any(errors) else round(psnr_of(statistics.mean(errors)), 2)


def show_speed(rows: Sequence[dict[str, Any]]) -> None:
    """Print a row for each setting."""
    table = Table("setting", "clock, s", "CPU, s", "times faster", "PSNR, dB")
    for row in rows:
        if "not_measured" in row:
            table.add_row(row["setting"], "not measured", "", "", row["not_measured"])
            continue
        psnr = "equal pixels" if row["psnr_db"] is None else f"{row['psnr_db']:.2f}"
        times = [f"{row[name]:g}" for name in ("clock_s", "cpu_s", "times_faster")]
        table.add_row(row["setting"], *times, psnr)
    Console().print(table)
