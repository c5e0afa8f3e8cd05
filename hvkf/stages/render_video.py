"""Storing a rendered video: its files, its figures, and the record that names them."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from hvkf import ledger
from hvkf.loras import Lora
from hvkf.model.image_quality import likeness
from hvkf.model.renderer import Rendered
from hvkf.records import FORMAT_VERSION, FileEntry, Record, canonical_json
from hvkf.settings.rendering import RenderConfig
from hvkf.stages.render_checks import check_frames
from hvkf.stages.render_records import (
    DESCRIPTION_NAME,
    LATENTS_NAME,
    VIDEO_NAME,
    Checks,
    Fidelity,
    InnerFidelity,
    RenderRecord,
    RenderTask,
    picture_name,
    render_folder,
)
from hvkf.stages.rendered_files import put_bytes, put_frame, put_tensor, put_video
from hvkf.storage import Store


class KeyframeDescription(Record):
    """A keyframe by its position and the sha256 of its image."""

    position: int
    sha256: str


class VideoDescription(Record):
    """What lies beside a video: how it was made and how near its ends are to the keyframes."""

    format_version: int = FORMAT_VERSION
    identity: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    crf: int
    steps: int
    guidance: float
    true_cfg_scale: float
    seed: int
    precision: str
    approximations: dict[str, float]
    models: str
    lora: str
    lora_sha256: str | None
    lora_alpha: float | None
    keyframes: tuple[KeyframeDescription, ...]
    first_frame: Fidelity | None
    last_frame: Fidelity | None
    inner_frames: tuple[InnerFidelity, ...]
    checks: Checks


class MadeWith(NamedTuple):
    """What all rows of a worker have in common."""

    render: RenderConfig
    models: str
    lora: Lora
    lora_alpha: float | None


def fidelity(frames: torch.Tensor, truth: torch.Tensor, device: torch.device) -> Fidelity:
    """Compare frames, rounded to what does not depend on how a sum was split."""
    found = likeness(frames, truth, device)
    return Fidelity(
        mse=round(found.mse, 9), psnr_db=round(found.psnr_db, 4), ssim=round(found.ssim, 6)
    )


def store_video(
    store: Store,
    task: RenderTask,
    made_with: MadeWith,
    one: Rendered,
    keyframes: Mapping[int, torch.Tensor],
    device: torch.device,
) -> RenderRecord:
    """Store a row's video and what lies beside it; the record is left to be put.

    Args:
        store: The workspace.
        task: The row.
        made_with: What it was made with.
        one: Its frames and latents.
        keyframes: Position to uint8 frame [H, W, 3], as the model saw them.
        device: Where frames are compared.
    """
    found = {
        place: fidelity(one.frames[place], truth, device) for place, truth in keyframes.items()
    }
    worst_db = min(fidelity.psnr_db for fidelity in found.values())
    frames = one.frames.numpy()
    checks = check_frames(frames, sorted(keyframes), worst_db)
    description = _describe(task, made_with, found, checks)
    settings = canonical_json(description.model_dump(mode="json")).decode()
    prefix = render_folder(task.identity)
    files: list[FileEntry] = [
        put_video(
            store,
            prefix,
            VIDEO_NAME,
            frames,
            fps=description.fps,
            crf=description.crf,
            metadata={"comment": settings},
        )
    ]
    for place, truth in sorted(keyframes.items()):
        name = picture_name(place, task.row.num_frames)
        files.append(put_frame(store, prefix, name, truth.numpy()))
    if made_with.render.keep_frames:
        for number, frame in enumerate(frames):
            files.append(put_frame(store, prefix, f"frames/{number:05d}.png", frame))
    if made_with.render.keep_latents:
        files.append(put_tensor(store, prefix, LATENTS_NAME, one.latents))
    files.append(put_bytes(store, prefix, DESCRIPTION_NAME, f"{settings}\n".encode()))
    return RenderRecord(
        identity=task.identity,
        files=tuple(files),
        first_frame=description.first_frame,
        last_frame=description.last_frame,
        inner_frames=description.inner_frames,
        checks=checks,
        attempt=ledger.attempt_name(),
    )


def _describe(
    task: RenderTask, made_with: MadeWith, found: Mapping[int, Fidelity], checks: Checks
) -> VideoDescription:
    row, render = task.row, made_with.render
    ends = (0, row.num_frames - 1)
    return VideoDescription(
        identity=task.identity,
        prompt=row.prompt,
        negative_prompt=row.negative_prompt if row.true_cfg_scale > 1 else "",
        width=row.width,
        height=row.height,
        num_frames=row.num_frames,
        fps=render.fps,
        crf=render.crf,
        steps=row.steps,
        guidance=row.guidance,
        true_cfg_scale=row.true_cfg_scale,
        seed=row.seed,
        precision=render.precision,
        approximations=render.speed.approximations,
        models=made_with.models,
        lora=made_with.lora.name,
        lora_sha256=made_with.lora.sha256,
        lora_alpha=made_with.lora_alpha,
        keyframes=tuple(
            KeyframeDescription(position=frame.position, sha256=frame.sha256)
            for frame in task.keyframes
        ),
        first_frame=found.get(0),
        last_frame=found.get(row.num_frames - 1),
        inner_frames=tuple(
            InnerFidelity(position=place, fidelity=likeness_found)
            for place, likeness_found in sorted(found.items())
            if place not in ends
        ),
        checks=checks,
    )
