"""Figures of an evaluation that need weights of their own: LPIPS, CLIP score, FVD.

Nothing is downloaded. `evaluate.extras_weights` names a folder with, for each that is asked for:

- `lpips`: `checkpoints/alexnet-owt-7be5be79.pth`, torchvision's AlexNet (torchmetrics brings the
  layers that were fitted upon it, Zhang et al. 2018);
- `clip`: `clip/`, a CLIP checkpoint with its processor, such as openai/clip-vit-base-patch16;
- `fvd`: `i3d_torchscript.pt`, the I3D network of Kinetics-400 as TorchScript, which is called with
  videos [B, 3, F, H, W] of 0 to 255 and `rescale`, `resize` and `return_features` set.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torchmetrics.functional.multimodal import clip_score
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
from transformers import CLIPModel, CLIPProcessor

from hvkf.errors import BadInput

FRAMES_AT_ONCE = 8


class Extras:
    """The networks behind the extra figures, loaded once.

    Args:
        names: Of lpips, clip, fvd.
        weights: The folder with their weights; whether they are there was checked before.
        device: Where they run.
    """

    def __init__(self, names: Sequence[str], weights: Path, device: torch.device) -> None:
        self._device = device
        self._clip: Any = None
        self._lpips: Any = None
        self._i3d: Any = None
        if "lpips" in names:
            torch.hub.set_dir(str(weights))
            self._lpips = _load_lpips().to(device)
        if "fvd" in names:
            with warnings.catch_warnings():  # I3D is published as TorchScript, and torch moves on
                warnings.filterwarnings("ignore", ".*torch.jit.load", FutureWarning)
                self._i3d = torch.jit.load(str(weights / "i3d_torchscript.pt"), device)
        if "clip" in names:
            model = CLIPModel.from_pretrained(weights / "clip", weights_only=True).to(device)
            self._clip = (model, CLIPProcessor.from_pretrained(weights / "clip"))

    @torch.inference_mode()
    def figures(self, frames: torch.Tensor, truth: torch.Tensor, prompt: str) -> dict[str, float]:
        """Measure a video of uint8 frames [F, H, W, 3]: lpips (0: alike), clip (100: as told)."""
        found = {}
        made, true = _as_images(frames, self._device), _as_images(truth, self._device)
        if self._lpips is not None:
            distances = [
                self._lpips(
                    made[at : at + 1].float() / 127.5 - 1, true[at : at + 1].float() / 127.5 - 1
                )
                for at in range(len(made))
            ]
            found["lpips"] = round(float(torch.stack(distances).mean()), 6)
        if self._clip is not None:
            scores = [
                clip_score(chunk, [prompt] * len(chunk), lambda: self._clip) * len(chunk)
                for chunk in made.split(FRAMES_AT_ONCE)
            ]
            found["clip"] = round(float(torch.stack(scores).sum()) / len(made), 4)
        return found

    @torch.inference_mode()
    def video_features(self, frames: torch.Tensor) -> tuple[float, ...]:
        """The features of a video by which FVD compares sets of videos; none if not asked for."""
        if self._i3d is None:
            return ()
        video = frames.permute(3, 0, 1, 2)[None].to(self._device, torch.float32)
        features = self._i3d(video, rescale=True, resize=True, return_features=True)
        return tuple(round(value, 6) for value in features[0].tolist())


def _load_lpips() -> LearnedPerceptualImagePatchSimilarity:
    with _no_pickled_code():
        try:
            return LearnedPerceptualImagePatchSimilarity(net_type="alex")
        except (UnpicklingError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BadInput(
                "lpips cannot read torchvision's AlexNet weights in evaluate.extras_weights "
                f"({reason}): put the file of torchvision itself there."
            ) from error


@contextmanager
def _no_pickled_code() -> Iterator[None]:
    """Let torch read no more than tensors from a .pth file: torchvision asks for all of pickle."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _as_images(frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    return frames.permute(0, 3, 1, 2).to(device)
