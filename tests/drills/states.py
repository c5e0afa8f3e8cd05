"""The same small chain, stage by stage, for drills that disturb each of its stages."""

import shutil
from pathlib import Path

import hvkf.stages.cache_group
import hvkf.stages.encode_segments
import hvkf.stages.evaluate_pairs
import hvkf.stages.ingest_scan
import hvkf.stages.render_rows
import hvkf.training.loop  # noqa: F401  (loaded once: each drill forks a child)
from hvkf.config import Config
from tests.drills.killing import run_and_count
from tests.drills.test_kills import stage_work
from tests.stages.render_manifests import row, write_images, write_manifest
from tests.workspaces import small_config, write_dataset

STAGES = ("ingest", "cache", "encode", "train", "evaluate", "render")
MADE = {
    "ingest": ("datasets",),
    "cache": ("scenes",),
    "encode": ("latents",),
    "train": ("runs",),
    "evaluate": ("evals",),
    "render": ("renders",),
}


def chain_config(folder: Path, metadata: Path) -> Config:
    """Settings for the chain in `folder/workspace`; it renders a manifest beside the data."""
    pairs = metadata.parent / "pairs"
    return small_config(
        folder,
        metadata,
        ingest={"metadata": str(metadata), "min_holdout": 1},
        evaluate={"num_pairs": 2, "pairs_per_part": 1},
        render={"manifest": str(pairs / "pairs.csv"), "lora": "none", "rows_per_part": 1},
    )


def prepare_states(folder: Path) -> dict[str, Path]:
    """Run the chain undisturbed, and keep the workspace as it is before each stage, and "after"."""
    metadata = write_dataset(folder / "data", 4)
    pairs = write_images(folder / "data" / "pairs")
    write_manifest(pairs, [row(str(number), seed=number) for number in range(3)])
    config = chain_config(folder, metadata)
    root = folder / "workspace"
    root.mkdir()
    states = {}
    for stage in STAGES:
        states[stage] = folder / f"before-{stage}"
        shutil.copytree(root, states[stage])
        run_and_count(root, stage_work(stage, config))
    states["after"] = root
    return states
