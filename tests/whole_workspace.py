"""A small workspace in which there is an object of every kind, made by the stages themselves."""

import time
from pathlib import Path

from hvkf import ledger
from hvkf.catalog import newest_catalog
from hvkf.cli import stage_module
from hvkf.config import Config
from hvkf.crashes import note_crash
from hvkf.loras import resolve_lora
from hvkf.manifest import keep_pasted_rows
from hvkf.manifest_errors import ManifestError, RowError
from hvkf.media.writing import write_png
from hvkf.nightly import Night
from hvkf.stages import render, render_errors
from hvkf.stages.evaluate_gate import gate
from hvkf.stages.promotion import candidate_of, put_into_use
from hvkf.stages.render_records import manifest_folder
from hvkf.storage import Store, open_store
from hvkf.sweeps import begin_sweep, change_sweep
from hvkf.uses import WORK, WorkUse
from hvkf.video import decode_frames
from tests.workspaces import small_config, write_dataset

STAGES = ("ingest", "cache", "encode", "train", "evaluate")
MANIFEST = "id,first_frame,last_frame,prompt\none,a.png,b.png,a square\n"


def whole_config(folder: Path) -> Config:
    """Settings under which all stages run in a folder, once its videos are written."""
    metadata = write_dataset(folder / "data", 3, num_frames=9)
    video = metadata.parent / "videos" / "00000.mp4"
    for name, (_, frame) in zip(("a.png", "b.png"), decode_frames(video, [0, 4]), strict=True):
        write_png(metadata.parent / name, frame)
    pairs = metadata.parent / "pairs.csv"
    pairs.write_text(MANIFEST)
    return small_config(
        folder,
        metadata,
        cache={"bucket_reso": ["32x32x5"]},
        hparams={"max_train_steps": 2, "lr_warmup_steps": 1},
        checkpointing={"save_every_n_steps": 1, "save_last_n_steps": 10},
        profiling={"first_step": 1, "num_steps": 1},
        evaluate={"steps": 1},
        render={"manifest": str(pairs), "steps": 1},
    )


def run_here(stage: str, config: Config, store: Store) -> str:
    """Run a stage in this process; return the path of its result."""
    module = stage_module(stage)
    plan = module.plan(config, store)
    ledger.put_plan(store, plan)
    module.run(plan, store, plan.parts)
    return str(module.commit(plan, store).result)


def make_whole_workspace(folder: Path) -> Config:
    """Run the whole chain, promote its LoRA, render, and begin a night."""
    config = whole_config(folder)
    store = open_store(config.workspace)
    metrics = [run_here(stage, config, store) for stage in STAGES][-1]
    gate(config.gate, store, metrics)
    lora = resolve_lora("run:test", store)
    candidate = candidate_of(store, lora, decided_by="a test")
    candidate = candidate.model_copy(update={"evaluation": metrics})
    put_into_use(store, "house", lora, candidate, over=0)
    quoted = render.quoted_plan(config, store)
    store.put(f"{manifest_folder(quoted.plan.digest)}/quote.json", quoted.quote.to_json())
    run_here("render", config, store)
    keep_pasted_rows(MANIFEST, store)
    Night(config, store, "a test")
    _leave_traces(store)
    assert newest_catalog(store, config.ingest.dataset).number == 1
    return config


def _leave_traces(store: Store) -> None:
    """Leave what a deletion, a crash and a killed command leave."""
    change_sweep(store, begin_sweep(store), "done", frozenset(), time.time)
    note_crash(store, "render-1", "SIGSEGV")
    unwritable = ManifestError("/proc/none/a.csv", [RowError(1, "a", "prompt", "", "is empty")], 1)
    render_errors.kept(unwritable, store)
    use = WorkUse(
        what="hvkf train",
        owner="here:1",
        machine="here",
        process=1,
        process_started_s=0,
        since_s=0,
        until_s=1,
    )
    store.put(f"{WORK}/{'0' * 32}.json", use.to_json())
