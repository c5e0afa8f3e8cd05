"""Rendering rows on one device: the models are loaded once for all of them."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch

from hvkf import ledger
from hvkf.config import Config
from hvkf.errors import AlreadyExists, BadInput
from hvkf.loras import Lora, local_lora_file
from hvkf.manifest import ManifestRow, split_location
from hvkf.model.image_quality import likeness
from hvkf.model.renderer import Renderer, RenderFault
from hvkf.progress import Progress, progress
from hvkf.records import FORMAT_VERSION, Failure, FileEntry, Record, canonical_json
from hvkf.resize import resize_to_cover
from hvkf.stages.render import (
    DESCRIPTION_NAME,
    FIRST_FRAME_NAME,
    LAST_FRAME_NAME,
    VIDEO_NAME,
    Fidelity,
    RenderRecord,
    RenderTask,
    record_path,
    render_folder,
    row_failure,
)
from hvkf.stages.render_images import ImageFault, decode_image, read_image_bytes
from hvkf.stages.rendered_files import put_bytes, put_frame, put_video
from hvkf.storage import Store, open_folder

MAX_SHOWN_IMAGES = 10


class _Changed(Exception):
    """An image is not the one that was planned with."""


class VideoDescription(Record):
    """What lies beside a video: how it was made and how near its ends are to the keyframes."""

    format_version: int = FORMAT_VERSION
    identity: str
    prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    crf: int
    steps: int
    guidance: float
    seed: int
    precision: str
    models: str
    lora: str
    lora_sha256: str | None
    lora_alpha: float | None
    first_image_sha256: str
    last_image_sha256: str
    first_frame: Fidelity
    last_frame: Fidelity


def fidelity(frames: torch.Tensor, truth: torch.Tensor, device: torch.device) -> Fidelity:
    """Compare frames, rounded to what does not depend on how a sum was split."""
    found = likeness(frames, truth, device)
    return Fidelity(
        mse=round(found.mse, 9), psnr_db=round(found.psnr_db, 4), ssim=round(found.ssim, 6)
    )


def render_rows(
    config: Config, store: Store, lora: Lora, models: str, tasks: Sequence[RenderTask]
) -> None:
    """Render the rows that have no record yet, in the given order.

    Raises:
        BadInput: images changed since the plan was made; all other rows were rendered.
    """
    missing = [task for task in tasks if not store.exists(record_path(task.identity))]
    if not missing:
        return
    with progress("render", sum(task.row.steps for task in missing)) as shown:
        worker = _RowRenderer(config, store, lora, models)
        changed = []
        for task in missing:
            try:
                worker.render(task, shown)
            except _Changed as fault:
                changed.append(f"row {task.row.row} ({task.row.id}): {fault}")
                shown.advance(task.row.steps)
    if changed:
        more = len(changed) - MAX_SHOWN_IMAGES
        raise BadInput(
            "Images changed since this work was planned, so run `hvkf render` again: "
            + "; ".join(changed[:MAX_SHOWN_IMAGES])
            + (f"; and {more} more" if more > 0 else "")
            + "."
        )


class _RowRenderer:
    """The loaded models, and the settings under which they render rows."""

    def __init__(self, config: Config, store: Store, lora: Lora, models: str) -> None:
        assert config.render.manifest is not None
        self._config = config
        self._store = store
        self._lora = lora
        self._models = models
        self._images = open_folder(split_location(config.render.manifest).folder)
        file = local_lora_file(lora, store)
        self._renderer = Renderer(config.model, store, config.render.precision)
        self._alpha: float | None = None
        if file is not None:
            self._alpha = self._renderer.fuse_lora(file, config.render.lora_alpha).alpha

    def render(self, task: RenderTask, shown: Progress) -> None:
        """Render a row, or record why it cannot be; a row that another worker did is left."""
        remaining = task.row.steps

        def on_step(step: int) -> None:
            nonlocal remaining
            remaining -= 1
            shown.advance(note=f"{task.row.shape} {task.row.id}")

        try:
            record = self._render(task, on_step)
        except (ImageFault, RenderFault) as fault:
            record = self._failure(task, row_failure(task.row, fault.code, str(fault)))
        if remaining:
            shown.advance(remaining)
        try:
            self._store.put_new(record_path(task.identity), record.to_json())
        except AlreadyExists:
            return

    def _failure(self, task: RenderTask, failure: Failure) -> RenderRecord:
        return RenderRecord(identity=task.identity, failure=failure, attempt=ledger.attempt_name())

    def _render(self, task: RenderTask, on_step: Callable[[int], None]) -> RenderRecord:
        row = task.row
        first = self._keyframe(row, row.first_frame, task.first_sha256)
        last = self._keyframe(row, row.last_frame, task.last_sha256)
        frames = self._renderer.render(
            {0: first, -1: last},
            row.prompt,
            num_frames=row.num_frames,
            steps=row.steps,
            guidance=row.guidance,
            seed=row.seed,
            on_step=on_step,
        )
        device = self._renderer.device
        description = self._describe(
            task, fidelity(frames[0], first, device), fidelity(frames[-1], last, device)
        )
        settings = canonical_json(description.model_dump(mode="json")).decode()
        prefix = render_folder(task.identity)
        files: tuple[FileEntry, ...] = (
            put_video(
                self._store,
                prefix,
                VIDEO_NAME,
                frames.numpy(),
                fps=description.fps,
                crf=description.crf,
                metadata={"comment": settings},
            ),
            put_frame(self._store, prefix, FIRST_FRAME_NAME, first.numpy()),
            put_frame(self._store, prefix, LAST_FRAME_NAME, last.numpy()),
            put_bytes(self._store, prefix, DESCRIPTION_NAME, description.to_json()),
        )
        return RenderRecord(
            identity=task.identity,
            files=files,
            first_frame=description.first_frame,
            last_frame=description.last_frame,
            attempt=ledger.attempt_name(),
        )

    def _keyframe(self, row: ManifestRow, path: str, sha256: str) -> torch.Tensor:
        """Read an image and cut it to the row's size, as training cuts its frames."""
        try:
            data = read_image_bytes(self._images, path)
        except ImageFault as fault:
            raise _Changed(str(fault)) from fault
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _Changed(f"{path} has other bytes now")
        frame = resize_to_cover(decode_image(data, path), row.width, row.height)
        # A copy: what Pillow enlarged is read-only, and torch warns of what may write to it.
        return torch.from_numpy(np.array(frame))

    def _describe(self, task: RenderTask, first: Fidelity, last: Fidelity) -> VideoDescription:
        row, render = task.row, self._config.render
        return VideoDescription(
            identity=task.identity,
            prompt=row.prompt,
            width=row.width,
            height=row.height,
            num_frames=row.num_frames,
            fps=render.fps,
            crf=render.crf,
            steps=row.steps,
            guidance=row.guidance,
            seed=row.seed,
            precision=render.precision,
            models=self._models,
            lora=self._lora.name,
            lora_sha256=self._lora.sha256,
            lora_alpha=self._alpha,
            first_image_sha256=task.first_sha256,
            last_image_sha256=task.last_sha256,
            first_frame=first,
            last_frame=last,
        )
