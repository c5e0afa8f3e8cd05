"""Small synthetic latents in a workspace, and settings under which the tiny checkpoint trains."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvkf import ledger
from hvkf.catalog import to_parquet
from hvkf.config import Config
from hvkf.config_file import check_config
from hvkf.model.latent_columns import whole_columns
from hvkf.model.precision import to_stored
from hvkf.records import Clip, DatasetCommit, digest
from hvkf.shards import SegmentWriter
from hvkf.stages import train as train_stage
from hvkf.stages.encode import latents_root
from hvkf.storage import FolderStore, Store

TINY = Path(__file__).parents[1] / "golden" / "tiny_hunyuan"
NUM_TOKENS = 8
TEXT_DIM = 32
POOLED_DIM = 24
TWO_BUCKETS = {"32x32x5": 3, "48x32x9": 4}


def train_config(workspace: Path | str, **sections: dict[str, Any]) -> Config:
    """Settings for a training of a few steps; sections are merged into the defaults below."""
    settings: dict[str, dict[str, Any]] = {
        "experiment": {"random_seed": 7, "run_id": "test", "trackers": []},
        "model": {"pretrained_model_name_or_path": str(TINY), "attention": "sdpa"},
        "network": {"lora_rank": 2, "lora_alpha": 4},
        "hparams": {
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "learning_rate": 1e-2,
            "lr_warmup_steps": 2,
            "max_train_steps": 4,
        },
        "checkpointing": {"save_every_n_steps": 2},
        "validation": {"num_items": 1, "sigmas": [0.5]},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return check_config({"workspace": str(workspace), **settings}, "the test")


def latent_sample(key: str, bucket: str, stored: str = "fp32") -> dict[str, Any]:
    """Draw one sample's columns from its key."""
    width, height, frames = map(int, bucket.split("x"))
    shape = (16, (frames - 1) // 4 + 1, height // 8, width // 8)
    generator = torch.Generator().manual_seed(int(digest(key)[:8], 16))

    def draw(*size: int) -> Any:
        return to_stored(torch.randn(size, generator=generator), stored)

    mask = np.zeros(NUM_TOKENS, np.uint8)
    mask[:5] = 1
    return {
        "item_key": key,
        "clip_id": key,
        "source": f"{key}.mp4",
        "caption": f"caption of {key}",
        "latents": draw(*shape),
        "latents_cond": draw(*shape),
        "prompt_embeds": draw(NUM_TOKENS, TEXT_DIM),
        "prompt_attention_mask": mask,
        "pooled_prompt_embeds": draw(POOLED_DIM),
    }


def write_latents(
    store: Store,
    config: Config,
    counts: Mapping[str, int] | None = None,
    *,
    num_holdout: int = 1,
    stored: str = "fp32",
    spoil: Mapping[str, float] | None = None,
) -> None:
    """Commit a data set of synthetic latents: one segment for each bucket.

    `spoil` maps an item's key to a value that its latents are filled with.
    """
    root, dataset = latents_root(config, store), config.ingest.dataset
    segments, clips = [], []
    for bucket, count in (counts or TWO_BUCKETS).items():
        segment_id = digest(["test", bucket])
        writer = SegmentWriter(segment_id, bucket, whole_columns(stored))
        for number in range(count):
            key = f"{bucket}-{number}"
            source = digest(["source", key])
            sample = latent_sample(key, bucket, stored)
            if spoil and key in spoil:
                sample["latents"] = np.full_like(sample["latents"], spoil[key])
            writer.add(key, source, sample)
            clips.append(_clip(key, source, "holdout" if number < num_holdout else "train"))
        writer.commit(store, root, "test")
        writer.close()
        segments.append(segment_id)
    catalog = f"datasets/{dataset}/catalog.parquet"
    store.put(catalog, io.BytesIO(to_parquet(clips)).getvalue())
    commit = DatasetCommit(
        dataset=dataset,
        number=1,
        plan="test",
        catalog=catalog,
        segments=tuple(segments),
        num_items=len(clips),
        num_failed=0,
    )
    ledger.put_commit(store, ledger.dataset_folder(root, dataset), commit)


def _clip(key: str, source: str, split: Any) -> Clip:
    return Clip(
        clip_id=key,
        source=f"{key}.mp4",
        source_sha256=source,
        caption="",
        start=0,
        end=9,
        source_frames=9,
        source_fps=12.0,
        num_frames=9,
        fps=12.0,
        width=64,
        height=64,
        duration_s=0.75,
        split=split,
    )


def run_training(config: Config, store: Store | None = None) -> Store:
    """Plan, run and commit in this process."""
    used = store or FolderStore(Path(config.workspace))
    plan = train_stage.plan(config, used)
    train_stage.run(plan, used, plan.parts)
    train_stage.commit(plan, used)
    return used
