"""How near frames are to others: PSNR and SSIM by torchmetrics, a few frames at a time."""

from dataclasses import dataclass

import numpy as np
import torch
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

MAX_PSNR_DB = 100.0
"""Of equal frames, whose PSNR is infinite: JSON has no infinity, and a mean would be lost."""

FRAMES_AT_ONCE = 4
LEVELS = 255.0
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales of MS-SSIM (Wang, Simoncelli and Bovik 2003)."""
SSIM_WINDOW = 11


@dataclass(frozen=True)
class Likeness:
    """What two frames or clips have in common.

    Attributes:
        mse: Mean squared error of values in [0, 1].
        psnr_db: Peak signal-to-noise ratio of that error, at most `MAX_PSNR_DB`.
        ssim: Mean structural similarity of the frames, at most 1.
    """

    mse: float
    psnr_db: float
    ssim: float


def psnr_of(mse: float) -> float:
    """Turn a mean squared error of values in [0, 1] into decibels, at most `MAX_PSNR_DB`."""
    if mse <= 0:
        return MAX_PSNR_DB
    return min(MAX_PSNR_DB, float(-10 * np.log10(mse)))


@torch.inference_mode()
def likeness(
    frames_FHWC: torch.Tensor, truth_FHWC: torch.Tensor, device: torch.device | str = "cpu"
) -> Likeness:
    """Compare uint8 frames [F, H, W, 3] (or one frame [H, W, 3]) of at least 11x11 pixels.

    The error is that of all pixels together; SSIM is the mean over frames, with the Gaussian window
    of 11 pixels of Wang et al. 2004.

    Raises:
        ValueError: the shapes differ.
    """
    if frames_FHWC.shape != truth_FHWC.shape:
        raise ValueError(f"cannot compare {frames_FHWC.shape} with {truth_FHWC.shape}")
    frames = frames_FHWC.reshape(-1, *frames_FHWC.shape[-3:])
    truth = truth_FHWC.reshape(-1, *truth_FHWC.shape[-3:])
    squared_errors, similarities = [], []
    for begin in range(0, len(frames), FRAMES_AT_ONCE):
        chunk = slice(begin, begin + FRAMES_AT_ONCE)
        made, true = _as_images(frames[chunk], device), _as_images(truth[chunk], device)
        squared_errors.append((made - true).square().mean(dim=(1, 2, 3)).cpu())
        ssim = structural_similarity_index_measure(made, true, data_range=1.0, reduction="none")
        assert isinstance(ssim, torch.Tensor)
        similarities.append(ssim.reshape(-1).cpu())
    mse = float(torch.cat(squared_errors).mean())
    ssim_mean = float(torch.cat(similarities).mean())
    return Likeness(mse, psnr_of(mse), ssim_mean)


@torch.inference_mode()
def ms_ssim(
    frames_FHWC: torch.Tensor, truth_FHWC: torch.Tensor, device: torch.device | str = "cpu"
) -> float:
    """Mean multi-scale SSIM of uint8 frames [F, H, W, 3] of at least 11x11 pixels.

    Frames below 176 pixels have fewer than five scales; the first scales' weights are then made to
    add up to 1. Negative contrast terms count as 0, so that no root of a negative is taken.
    """
    weights = SCALE_WEIGHTS[: _num_scales(min(frames_FHWC.shape[1:3]))]
    betas = tuple(weight / sum(weights) for weight in weights)
    found = []
    for begin in range(0, len(frames_FHWC), FRAMES_AT_ONCE):
        chunk = slice(begin, begin + FRAMES_AT_ONCE)
        made, true = (_as_images(frames[chunk], device) for frames in (frames_FHWC, truth_FHWC))
        ratios = multiscale_structural_similarity_index_measure(
            made, true, data_range=1.0, betas=betas, normalize="relu", reduction="none"
        )
        assert isinstance(ratios, torch.Tensor)
        found.append(ratios.reshape(-1).cpu())
    return float(torch.cat(found).mean())


def _num_scales(side: int) -> int:
    """As many scales as torchmetrics allows for its window at this shorter side."""
    allowed = [
        count
        for count in range(1, len(SCALE_WEIGHTS) + 1)
        if side // max(1, count - 1) ** 2 >= SSIM_WINDOW and side >= 2**count
    ]
    return allowed[-1]


def _as_images(frames: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Map uint8 [N, H, W, 3] to float64 [N, 3, H, W] in [0, 1].

    SSIM subtracts squares that are nearly equal, and GPUs may round float32 to 10 bits (TF32).
    """
    return frames.to(device).permute(0, 3, 1, 2).to(torch.float64) / LEVELS
