"""Evaluations for tests: their settings, and what came of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvkf.config import Config
from hvkf.loras import Lora
from hvkf.stages import evaluate
from hvkf.stages.evaluate_records import (
    ClipFidelity,
    Evaluation,
    Metrics,
    Motion,
    PairRecord,
    Rendered,
    Settings,
)
from hvkf.stages.evaluate_summary import summarise
from hvkf.stages.render_records import Fidelity
from hvkf.storage import FolderStore
from tests.workspaces import small_config

NUM_PAIRS = 2


def config_in(folder: Path, **evaluation: object) -> Config:
    return small_config(
        folder,
        folder / "data" / "metadata.csv",
        ingest={"min_holdout": 2},
        evaluate={"num_pairs": NUM_PAIRS, **evaluation},
    )


def evaluated(config: Config, store: FolderStore, order: Sequence[int] | None = None) -> Any:
    """Plan, run the parts in the given order, commit."""
    plan = evaluate.plan(config, store)
    parts = plan.parts if order is None else [plan.parts[index] for index in order]
    for part in parts:
        evaluate.run(plan, store, [part])
    return evaluate.commit(plan, store)


def read_metrics(workspace: Path) -> Metrics:
    (file,) = (workspace / "evals" / "test").rglob("metrics.json")
    return Metrics.from_json(file.read_bytes())


def made_up(count: int, num_apart: int = 0) -> Metrics:
    """An evaluation whose LoRA gains 2 dB on the base, and more than a cross-fade loses.

    Of the pairs that are set apart, the LoRA makes nothing.
    """

    def clip(psnr_db: float) -> ClipFidelity:
        fidelity = Fidelity(mse=10 ** (-psnr_db / 10), psnr_db=psnr_db, ssim=psnr_db / 100)
        return ClipFidelity(first=fidelity, last=fidelity, clip=fidelity)

    def record(key: str, psnr_db: float) -> PairRecord:
        motion = Motion(flicker=1, flow_warp=0, end_jump=1, colour_drift=0, freeze=1, cross_fade=0)
        return PairRecord(
            key=key,
            bucket="32x32x5",
            source=key,
            prompt="",
            fps=24,
            made=clip(psnr_db),
            motion=motion,
            ceiling=clip(40),
            freeze=clip(psnr_db - 5),
            cross_fade=clip(psnr_db - 4),
            truth_motion=motion.model_copy(update={"freeze": 0.0}),
            files=(),
            attempt="a",
        )

    pairs = [(f"pair-{number:02d}", 20 + number / 10) for number in range(count)]
    work = Evaluation(
        lora=Lora(name="run:test", sha256="0" * 64, run_id="test", checkpoint="step-00000004"),
        scenes="s",
        root="evals/test/step/d",
        base_root="evals/_base/b",
        pairs=(),
    )
    models = Settings(steps=1, guidance=6, seed=0, precision="fp32", models="m")
    rendered = [Rendered(record(key, db), record(key, db + 2)) for key, db in pairs]
    apart = [
        Rendered(record(f"apart-{number:02d}", 1), record(f"apart-{number:02d}", 0))
        for number in range(num_apart)
    ]
    return summarise(work, models, rendered, apart)
