"""Likeness of frames, against scikit-image's independent figures."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hvkf.model.image_quality import MAX_PSNR_DB, likeness, psnr_of


def frames(seed: int, num_frames: int = 3, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand((num_frames, 3, 4, 4), generator=generator)
    smooth = torch.nn.functional.interpolate(small, (side, side), mode="bilinear")
    return (smooth * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_psnr_and_ssim_are_those_of_scikit_image(seed: int, strength: int) -> None:
    truth = frames(seed, side=128)
    noise = torch.randint(-strength, strength + 1, truth.shape, generator=torch.manual_seed(seed))
    made = (truth.int() + noise).clamp(0, 255).to(torch.uint8)
    found = likeness(made, truth)
    psnr: Any = peak_signal_noise_ratio
    structural: Any = structural_similarity
    assert found.psnr_db == pytest.approx(psnr(truth.numpy(), made.numpy()), abs=1e-4)
    ssim = [
        structural(
            true.numpy() / 255,
            one.numpy() / 255,
            data_range=1.0,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for one, true in zip(made, truth, strict=True)
    ]
    # scikit-image leaves out a border of 5 pixels, where torchmetrics mirrors the frame.
    assert found.ssim == pytest.approx(sum(ssim) / len(ssim), abs=0.02)


def test_equal_frames_are_alike_without_infinity() -> None:
    truth = frames(0)
    found = likeness(truth, truth)
    assert (found.mse, found.psnr_db) == (0.0, MAX_PSNR_DB)
    assert found.ssim == pytest.approx(1.0, abs=1e-6)
    assert psnr_of(1e-30) == MAX_PSNR_DB


def test_a_clip_longer_than_a_chunk_counts_every_frame_once() -> None:
    truth, made = frames(1, 19), frames(2, 19)
    whole = likeness(made, truth)
    single = [likeness(one, true) for one, true in zip(made, truth, strict=True)]
    assert whole.mse == pytest.approx(sum(one.mse for one in single) / 19, rel=1e-6)
    assert whole.ssim == pytest.approx(sum(one.ssim for one in single) / 19, rel=1e-6)
    assert whole.psnr_db == pytest.approx(psnr_of(whole.mse))


def test_clips_of_other_shapes_are_not_compared() -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        likeness(frames(0, 2), frames(0, 3))
