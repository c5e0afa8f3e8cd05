"""Small real data sets, and the settings under which the tiny golden checkpoint trains on them."""

import csv
import json
from pathlib import Path

import numpy as np

from hvkf.config import Config
from hvkf.config_file import check_config
from hvkf.media.writing import write_mp4

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "tiny_hunyuan"


def write_clip(
    file: Path, seed: int, num_frames: int = 20, size: tuple[int, int] = (64, 64)
) -> None:
    """Write a video of a bright square that crosses a coloured gradient."""
    width, height = size
    generator = np.random.default_rng(seed)
    start, colour = generator.integers(0, 40, 2), generator.integers(60, 255, 3)
    y, x = np.mgrid[:height, :width]
    background = np.stack([x * 2, y * 2, x + y], axis=-1).astype(np.uint8) // 2
    frames = np.repeat(background[None], num_frames, axis=0)
    for index, frame in enumerate(frames):
        left, top = (start + index) % 48
        frame[top : top + 12, left : left + 12] = colour
    file.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(file, frames, fps=12)


def write_table(folder: Path, rows: list[tuple[str, str]]) -> Path:
    """Write the reference's table: caption, video_file."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["caption", "video_file"])
        writer.writerows(rows)
    return folder / "metadata.csv"


def write_dataset(folder: Path, num_videos: int, num_frames: int = 20) -> Path:
    """Write videos and their table in the reference's layout; return the table."""
    rows = []
    for number in range(num_videos):
        write_clip(folder / "videos" / f"{number:05d}.mp4", number, num_frames)
        rows.append((f"A square moves, take {number}.", f"videos/{number:05d}.mp4"))
    return write_table(folder, rows)


def checkpoint_with_shift(folder: Path, shift: object) -> Path:
    """The tiny golden checkpoint, with a scheduler of another shift."""
    folder.mkdir(parents=True)
    for part in TINY.iterdir():
        if part.name != "scheduler":
            (folder / part.name).symlink_to(part)
    (folder / "scheduler").mkdir()
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": shift}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return folder


def small_config(folder: Path, metadata: Path, **sections: dict[str, object]) -> Config:
    """Settings for a chain that takes seconds; sections are merged into the defaults below."""
    settings: dict[str, dict[str, object]] = {
        "experiment": {"random_seed": 1, "run_id": "test"},
        "model": {"pretrained_model_name_or_path": str(TINY), "attention": "sdpa"},
        "ingest": {"metadata": str(metadata), "min_holdout": 1, "holdout_fraction": 0.0},
        "cache": {"bucket_reso": ["32x32x5", "32x48x9"], "segment_mb": 1, "segments_per_part": 1},
        "encode": {"precision": "fp32", "segments_per_part": 1},
        "network": {"lora_rank": 4, "lora_alpha": 4},
        "hparams": {
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "lr_warmup_steps": 2,
            "max_train_steps": 4,
        },
        "checkpointing": {"save_every_n_steps": 2},
        "validation": {"num_items": 1, "sigmas": [0.5]},
        "evaluate": {"num_pairs": 1, "steps": 2, "precision": "fp32"},
        "render": {"width": 32, "height": 32, "num_frames": 5, "steps": 2, "precision": "fp32"},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return check_config({"workspace": str(folder / "workspace"), **settings}, "the test")
