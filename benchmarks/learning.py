"""Does training teach? A control LoRA on hvkf-tiny from fixed seeds, and its renders' worth.

Goes the way of the data (ingest, cache, encode, train) on synthetic shapes, renders held-out pairs,
and prints PSNRs with 95% intervals. An ablation breaks one thing; its renders must be worse.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from hvkf import cli
from hvkf.config import Config
from hvkf.demo import CHECKPOINT, HPARAMS, NETWORK
from hvkf.errors import HvkfError
from hvkf.loras import local_lora_file, resolve_lora
from hvkf.model.conditioning import keyframes_of
from hvkf.model.flow_matching import sample_losses, timesteps_of
from hvkf.model.image_quality import likeness, psnr_of
from hvkf.model.loading import load_transformer
from hvkf.model.lora import target_layers
from hvkf.model.renderer import Renderer
from hvkf.progress import progress
from hvkf.shapes import render_clip, write_dataset
from hvkf.stages import train
from hvkf.stages.evaluate_statistics import video_interval
from hvkf.storage import Store, file_sha256, open_store
from hvkf.training.lineage import BESIDE, TrainedOnFile, read_lineage
from hvkf.training.objective import batch_losses

DATA_SEED = 0
NUM_FRAMES = 17
FIRST_TRAINING_CLIP = 20_000
FIRST_HELD_OUT_CLIP = 1_001_000
"""The base model and its VAE never saw these either."""
SHIFT = 7.0
NUM_STEPS = 358
"""What four minutes hold on two idle cores; 400 at most."""
SETTINGS: dict[str, Any] = {
    "model": {"pretrained_model_name_or_path": str(CHECKPOINT)},
    "experiment": {"name": "learning", "random_seed": 0, "trackers": []},
    "ingest": {"dataset": "shapes", "holdout_fraction": 0.0},
    "cache": {"bucket_reso": [f"64x64x{NUM_FRAMES}"], "segment_mb": 16},
    "encode": {"precision": "fp32", "stored": "fp32"},
    "data": {"batch_size": 32, "dataloader_kwargs": {"drop_last": True}},
    "network": NETWORK,
    "hparams": {
        **HPARAMS,
        "max_train_steps": NUM_STEPS,
        "flow_match": {**HPARAMS["flow_match"], "discrete_flow_shift": SHIFT},
    },
    "validation": {"num_items": 0},
    "checkpointing": {"save_every_n_steps": None},
    "jobs": {"cache": {"workers": 2}, "encode": {"workers": 2}},
}


class Ablation(NamedTuple):
    """One thing broken on purpose: settings and a patch while training, or the LoRA's file."""

    settings: Callable[[], dict[str, Any]] = dict
    broken: Callable[[], AbstractContextManager[Any]] = nullcontext
    forgets_alpha: bool = False
    has_goal: bool = True


def main() -> None:
    """Train, render, measure and print; the exit code says whether all goals are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--clips", type=int, default=2560, help="training clips")
    parser.add_argument("--pairs", type=int, default=64, help="held-out pairs to render")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument(
        "--ablation",
        action="append",
        default=[],
        choices=[*ABLATIONS, "all"],
        help="also train with this broken; may be repeated",
    )
    parser.add_argument("--results", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--keep-lora", type=Path, help="copy the LoRA to this file, in float16")
    options = parser.parse_args()
    store, config = prepare(options.work, options.clips)
    clips = [
        render_clip(DATA_SEED, FIRST_HELD_OUT_CLIP + i, NUM_FRAMES) for i in range(options.pairs)
    ]
    lora, seconds = train_lora(store, config, "whole", Ablation())
    if options.keep_lora is not None:
        keep(lora, options.keep_lora, store)
    measured = {"reference answers": trivial_answers(clips)}
    measured["base"] = measure(config, store, clips, options.steps, None)
    measured["lora"] = measure(config, store, clips, options.steps, lora)
    names = list(ABLATIONS) if "all" in options.ablation else options.ablation
    for name in names:
        ablation = ABLATIONS[name]
        if ablation.forgets_alpha:
            broken = forget_alpha(lora, options.work / f"{name}.safetensors")
        else:
            broken, _ = train_lora(store, config, name, ablation)
        measured[name] = measure(config, store, clips, options.steps, broken)
    figures = summarise(measured, seconds)
    show(figures)
    if options.results is not None:
        options.results.write_text(json.dumps(figures, indent=2) + "\n")
    raise SystemExit(0 if all(goal["met"] for goal in figures["goals"]) else 1)


def prepare(work: Path, num_clips: int) -> tuple[Store, Config]:
    """Write the training clips and take them to latents; what was done before is found done."""
    data = work / f"data-{num_clips}"
    if not (data / "metadata.csv").exists():
        write_dataset(data, num_clips, NUM_FRAMES, DATA_SEED, first_index=FIRST_TRAINING_CLIP)
    settings = {**SETTINGS, "workspace": str(work / "workspace")}
    settings["ingest"] = {**SETTINGS["ingest"], "metadata": str(data / "metadata.csv")}
    config = Config.model_validate(settings)
    store = open_store(config.workspace)
    for stage in ("ingest", "cache", "encode"):
        print(f"{stage}: {cli.run_stage(stage, config, store).text}", flush=True)
    return store, config


def train_lora(store: Store, config: Config, run_id: str, ablation: Ablation) -> tuple[Path, float]:
    """Train in this process, so that it can be broken; return the LoRA's file and the seconds."""
    settings = config.model_dump()
    settings["experiment"]["run_id"] = run_id
    settings = merged(settings, ablation.settings())
    changed = Config.model_validate(settings)
    started_s = time.monotonic()
    with ablation.broken():
        plan = train.plan(changed, store)
        train.run(plan, store, plan.parts)
    seconds = time.monotonic() - started_s
    file = local_lora_file(resolve_lora(f"run:{run_id}", store), store)
    assert file is not None
    return file, seconds


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change nested settings, and leave the others."""
    changed = dict(settings)
    for key, value in changes.items():
        changed[key] = merged(settings[key], value) if isinstance(value, dict) else value
    return changed


def measure(
    config: Config,
    store: Store,
    clips: Sequence[tuple[NDArray[np.uint8], str]],
    steps: int,
    lora: Path | None,
) -> dict[str, list[float]]:
    """Render every pair; return squared errors: keyframes, their reconstruction, the clip."""
    renderer = Renderer(config.model, store, "fp32")
    if lora is not None:
        renderer.fuse_lora(lora)
    errors: dict[str, list[float]] = {}
    with progress(lora.stem if lora is not None else "base", len(clips)) as shown:
        for number, (frames, caption) in enumerate(clips):
            truth = torch.from_numpy(frames)
            made = renderer.render(
                keyframes_of(truth),
                caption,
                num_frames=NUM_FRAMES,
                steps=steps,
                guidance=6.0,
                seed=number,
            )
            rebuilt = renderer.reconstruct(truth)
            for name, ours, theirs in (
                ("first", made[0], truth[0]),
                ("last", made[-1], truth[-1]),
                ("first_rebuilt", made[0], rebuilt[0]),
                ("last_rebuilt", made[-1], rebuilt[-1]),
                ("clip", made, truth),
                ("ceiling", rebuilt, truth),
            ):
                errors.setdefault(name, []).append(likeness(ours, theirs).mse)
            shown.advance()
    return errors


def trivial_answers(clips: Sequence[tuple[NDArray[np.uint8], str]]) -> dict[str, list[float]]:
    """Squared errors of the clip for what needs no model: a freeze and a cross-fade."""
    weights = np.linspace(0.0, 1.0, NUM_FRAMES)[:, None, None, None]
    errors: dict[str, list[float]] = {"freeze": [], "cross_fade": []}
    for frames, _ in clips:
        fade = np.rint((1 - weights) * frames[:1] + weights * frames[-1:]).astype(np.uint8)
        still = np.broadcast_to(frames[:1], frames.shape).copy()
        for name, answer in (("freeze", still), ("cross_fade", fade)):
            found = likeness(torch.from_numpy(answer), torch.from_numpy(frames))
            errors[name].append(found.mse)
    return errors


def pooled(errors: Sequence[float]) -> dict[str, float]:
    """PSNR in dB of the mean squared error over all pairs, with its 95% interval: the gate's.

    Each pair is of a video of its own. A mean error that may be 0 has no upper end in dB: 100.
    """
    found = video_interval(errors, [str(number) for number in range(len(errors))])
    return {
        "psnr_db": round(psnr_of(found.mean), 2),
        "low_db": round(psnr_of(found.high), 2),
        "high_db": round(psnr_of(max(0.0, found.low)), 2),
    }


def keyframe_errors(errors: dict[str, list[float]], suffix: str = "") -> list[float]:
    """Each pair's error over both keyframes."""
    pairs = zip(errors[f"first{suffix}"], errors[f"last{suffix}"], strict=True)
    return [(first + last) / 2 for first, last in pairs]


def summarise(measured: dict[str, dict[str, list[float]]], seconds: float) -> dict[str, Any]:
    """Turn errors into figures, and hold them against the goals."""
    figures: dict[str, Any] = {
        who: {name: pooled(values) for name, values in errors.items()}
        for who, errors in measured.items()
    }
    for who in figures:
        if "first" in measured[who]:
            figures[who]["keyframes"] = pooled(keyframe_errors(measured[who]))
    lora, base, trivial = figures["lora"], figures["base"], figures["reference answers"]
    gains = [lora[end]["psnr_db"] - base[end]["psnr_db"] for end in ("first", "last")]
    rebuilt = [lora[f"{end}_rebuilt"]["psnr_db"] for end in ("first", "last")]
    clip = lora["clip"]["psnr_db"]
    goals = [
        _goal("VAE's reconstruction, dB", lora["ceiling"]["psnr_db"], 26.0),
        _goal("keyframes above the base's, dB (less of both ends)", min(gains), 10.0),
        _goal("keyframes against their reconstruction, dB (less of both)", min(rebuilt), 26.0),
        _goal("clip above a freeze, dB", clip - trivial["freeze"]["psnr_db"], 0.0),
        _goal("clip above a cross-fade, dB", clip - trivial["cross_fade"]["psnr_db"], 0.0),
        {
            "what": "training, s (at most 240; not counted for a run that was found done)",
            "found": round(seconds, 1),
            "goal": 240.0,
            "met": seconds <= 240,
        },
    ]
    for name in measured.keys() & ABLATIONS.keys():
        cost = lora["keyframes"]["psnr_db"] - figures[name]["keyframes"]["psnr_db"]
        if not ABLATIONS[name].has_goal:
            continue
        apart = lora["keyframes"]["low_db"] > figures[name]["keyframes"]["high_db"]
        goal = _goal(f"{name} costs, dB of the keyframes, intervals apart", cost, 1.0)
        goals.append({**goal, "met": goal["met"] and apart})
    return {**figures, "goals": goals}


def _goal(what: str, found: float, goal: float) -> dict[str, Any]:
    return {"what": what, "found": round(found, 2), "goal": goal, "met": found >= goal}


def show(figures: dict[str, Any]) -> None:
    """Print the figures and the goals as tables."""
    console = Console()
    table = Table("", "first", "last", "first vs VAE", "last vs VAE", "clip", title="PSNR, dB")
    for who, of_who in figures.items():
        if who in ("goals", "reference answers"):
            continue
        names = ("first", "last", "first_rebuilt", "last_rebuilt", "clip")
        table.add_row(who, *(_interval(of_who[name]) for name in names))
    for name, figure in figures["reference answers"].items():
        table.add_row(name, "", "", "", "", _interval(figure))
    console.print(table)
    goals = Table("what", "found", "goal", "", title="Goals")
    for goal in figures["goals"]:
        found, wanted = f"{goal['found']:.2f}", f"{goal['goal']:g}"
        goals.add_row(goal["what"], found, wanted, "met" if goal["met"] else "missed")
    console.print(goals)


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['psnr_db']:.2f} ({figure['low_db']:.2f} to {figure['high_db']:.2f})"


def keep(lora: Path, file: Path, store: Store) -> None:
    """Store the LoRA's weights as float16, with its alpha, and beside it what it was trained on."""
    from safetensors import safe_open

    with safe_open(lora, framework="pt") as opened:
        metadata = opened.metadata()
    file.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.half() for name, tensor in load_file(lora).items()}
    save_file(weights, file, metadata)
    trained_on = read_lineage(store, "whole")
    assert trained_on is not None
    listed = TrainedOnFile(lora_sha256=file_sha256(file), trained_on=trained_on)
    file.with_name(BESIDE).write_bytes(listed.to_json())


def forget_alpha(lora: Path, file: Path) -> Path:
    """Store the LoRA as the reference does, without its alpha: alpha = rank is assumed."""
    save_file(load_file(lora), file)
    return file


@contextmanager
def _changed_batches(change: Callable[[Any], Any]) -> Iterator[None]:
    def losses(transformer: Any, batch: Any, **settings: Any) -> torch.Tensor:
        return batch_losses(transformer, change(batch), **settings)

    with patch("hvkf.training.loop.batch_losses", losses):
        yield


def _without_condition() -> AbstractContextManager[Any]:
    return _changed_batches(
        lambda batch: replace(batch, condition=torch.zeros_like(batch.condition))
    )


def _flipped_target() -> AbstractContextManager[Any]:
    def losses(prediction: torch.Tensor, *rest: Any) -> torch.Tensor:
        return sample_losses(-prediction, *rest)

    return patch("hvkf.training.objective.sample_losses", losses)


def _timesteps_as_if_unshifted() -> AbstractContextManager[Any]:
    def timesteps(sigmas: torch.Tensor) -> torch.Tensor:
        return timesteps_of(sigmas / (SHIFT - (SHIFT - 1) * sigmas))

    return patch("hvkf.training.objective.timesteps_of", timesteps)


def _unshifted() -> dict[str, Any]:
    return {"hparams": {"flow_match": {"discrete_flow_shift": 1.0}}}


def _all_but_the_input() -> dict[str, Any]:
    transformer = load_transformer(CHECKPOINT, dtype=torch.float32)
    layers = target_layers(transformer, "all-linear")
    return {"network": {"target_modules": [name for name in layers if name != "x_embedder.proj"]}}


ABLATIONS = {
    "condition-zeroed": Ablation(broken=_without_condition),
    "input-not-trained": Ablation(settings=_all_but_the_input),
    "alpha-ignored": Ablation(forgets_alpha=True),
    "target-flipped": Ablation(broken=_flipped_target),
    "timesteps-unshifted": Ablation(settings=_unshifted),
    # The LoRA learns the timesteps that it is told, so this costs little: watched, without a goal.
    "timesteps-mistold": Ablation(broken=_timesteps_as_if_unshifted, has_goal=False),
}


if __name__ == "__main__":
    try:
        main()
    except HvkfError as fault:
        raise SystemExit(f"error: {fault}") from fault
