"""One video from two images, as the reference's inference script makes it: its options, its method.

Every random draw comes from the seed; all that can be told is checked before a model is loaded.
"""

import logging
import secrets
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hvkf.buckets import Bucket
from hvkf.errors import BadInput
from hvkf.keyframe_images import MAX_FILE_BYTES, decode_keyframe, look_at, shown_name
from hvkf.loras import local_lora_file, resolve_lora
from hvkf.media.writing import write_mp4
from hvkf.model.renderer import Renderer
from hvkf.progress import progress
from hvkf.settings.experiment import ModelConfig
from hvkf.storage import TEMPORARY_PREFIX, Store
from hvkf.user_files import expanded, explain_unreadable, read_regular

logger = logging.getLogger(__name__)
FPS = 24
FEWEST_FRAMES = 5
MAX_DRAWN_SEED = 1 << 31


class Request(NamedTuple):
    """What to render.

    Attributes:
        lora: A file or folder, run:RUN_ID, workspace:PATH, or none.
        lora_alpha: Alpha of a LoRA file that records none.
        frame1: Image that the video begins with.
        frame2: Image that it ends with.
        prompt: What happens in between.
        frames: Number of frames, 4k+1.
        height: Pixels, a multiple of 16.
        width: Pixels, a multiple of 16.
        steps: Sampling steps.
        guidance: Embedded guidance scale.
        seed: Seed of all draws; left out, one is drawn and said.
        precision: fp32, bf16 or fp16; of all weights.
        output: The video; left out, a name of size, length and time in this folder.
    """

    lora: str
    lora_alpha: float | None
    frame1: Path
    frame2: Path
    prompt: str
    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    seed: int | None
    precision: str
    output: Path | None


class Inferred(NamedTuple):
    """Where the video is, and what it was made with."""

    video: Path
    seed: int
    lora_alpha: float | None


def infer(model: ModelConfig, store: Store, request: Request) -> Inferred:
    """Render one video.

    Raises:
        BadInput: frames that are not 4k+1 or sides that do not divide by 16 (with the two nearest
            that do), an image that is missing or cannot be read, no such LoRA or checkpoint.
    """
    _check_sizes(request)
    pair = {0: _keyframe(request.frame1, request), -1: _keyframe(request.frame2, request)}
    output = _output(request)
    lora = resolve_lora(request.lora, store)
    seed = secrets.randbelow(MAX_DRAWN_SEED) if request.seed is None else request.seed
    file = local_lora_file(lora, store)
    renderer = Renderer(model, store, request.precision)
    alpha = None
    if file is not None:
        alpha = renderer.fuse_lora(file, request.lora_alpha).alpha
    with progress("infer", request.steps) as shown:
        frames = renderer.render(
            {place: torch.from_numpy(image) for place, image in pair.items()},
            request.prompt,
            num_frames=request.frames,
            steps=request.steps,
            guidance=request.guidance,
            seed=seed,
            on_step=lambda step: shown.advance(note=f"step {step + 1}"),
        )
    temporary = output.parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        write_mp4(temporary, frames.numpy(), fps=FPS)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return Inferred(output, seed, alpha)


def _check_sizes(request: Request) -> None:
    try:
        Bucket(request.width, request.height, request.frames)
    except BadInput as fault:
        raise BadInput(f"--width, --height and --frames do not fit: {fault}") from None
    if request.frames < FEWEST_FRAMES:
        raise BadInput(
            f"--frames {request.frames} is too few for two keyframes: give 5, 9 or more."
        )
    if request.steps < 1:
        raise BadInput(f"--steps {request.steps} makes no video: give at least 1, better 30 to 50.")


def _keyframe(path: Path, request: Request) -> npt.NDArray[np.uint8]:
    """Read an image and cut it to size as training cuts its frames."""
    with explain_unreadable(f"The image {shown_name(str(path))}", "correct its path"):
        data = read_regular(expanded(path), MAX_FILE_BYTES)
    if note := look_at(data, str(path)).note:
        logger.warning("%s.", note)
    return decode_keyframe(data, str(path), request.width, request.height)


def _output(request: Request) -> Path:
    size = f"{request.height}x{request.width}x{request.frames}"
    name = f"hv-CL-{size}-{time.strftime('%Y%m%d_%H%M%S')}"
    output = expanded(request.output or Path(f"{name}.mp4")).absolute()
    if output.is_dir() or not output.parent.is_dir():
        raise BadInput(
            f"The video cannot be written to {output}: give --output a file in a folder that is "
            "there."
        )
    return output
