from collections.abc import Callable

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

from hvkf.model.random import generator_for
from hvkf.model.vae import (
    decode_latents,
    encode_moments,
    encode_video,
    pixels_for,
    to_frames,
    to_pixels_range,
)

from .conftest import relative_difference

GoldenReader = Callable[[str], dict[str, torch.Tensor]]
TOLERANCE = 2e-5
SIZES = [(17, 64, 64), (33, 64, 320), (65, 48, 80)]


def formula_frames(num_frames: int, height: int, width: int) -> torch.Tensor:
    """The golden videos' pixels, uint8 [F, H, W, 3]."""
    f = torch.arange(num_frames)[:, None, None, None]
    y = torch.arange(height)[:, None, None]
    x = torch.arange(width)[:, None]
    channel = torch.arange(3)
    return ((7 * f + 3 * y + 5 * x + 85 * channel + x * y // 16) % 256).to(torch.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_the_posterior_mean_equals_the_references(
    size: tuple[int, int, int], vae: AutoencoderKLHunyuanVideo, golden: GoldenReader
) -> None:
    latents = encode_video(vae, to_pixels_range(formula_frames(*size)))
    num_frames, height, width = size
    expected = golden("vae")[f"formula_{num_frames}x{height}x{width}.video.mean"]
    assert relative_difference(latents / vae.config["scaling_factor"], expected) < TOLERANCE


def test_a_real_videos_moments_equal_the_references(
    vae: AutoencoderKLHunyuanVideo, golden: GoldenReader
) -> None:
    expected = golden("vae")
    with torch.inference_mode():
        moments = encode_moments(vae, to_pixels_range(expected["real.video_u8"]))
    mean, logvar = moments.chunk(2, dim=1)
    assert relative_difference(mean, expected["real.video.mean"]) < TOLERANCE
    assert relative_difference(logvar, expected["real.video.logvar"]) < TOLERANCE


@pytest.mark.parametrize("num_frames", [1, 5, 13, 17, 25, 37])
def test_moments_equal_diffusers_own_bit_by_bit(
    num_frames: int, vae: AutoencoderKLHunyuanVideo
) -> None:
    video = to_pixels_range(formula_frames(num_frames, 32, 48))
    with torch.inference_mode():
        expected = vae.encode(video).latent_dist.parameters
        assert torch.equal(encode_moments(vae, video), expected)


def test_a_sample_depends_on_its_seed_only(vae: AutoencoderKLHunyuanVideo) -> None:
    video = to_pixels_range(formula_frames(5, 32, 32))
    torch.manual_seed(1)
    first = encode_video(vae, video, generator_for(3, "posterior", "clip"))
    torch.manual_seed(2)
    again = encode_video(vae, video, generator_for(3, "posterior", "clip"))
    other = encode_video(vae, video, generator_for(4, "posterior", "clip"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_videos_encoded_together_equal_those_encoded_alone_but_for_rounding(
    vae: AutoencoderKLHunyuanVideo,
) -> None:
    frames = torch.stack([formula_frames(33, 32, 32), formula_frames(33, 32, 32).flip(0)])
    videos = pixels_for(vae, frames)
    assert torch.equal(videos[1:], to_pixels_range(frames[1]))
    generators = [generator_for(3, "posterior", key) for key in "ab"]
    together = encode_video(vae, videos, generators)
    for index, key in enumerate("ab"):
        alone = encode_video(vae, videos[index : index + 1], generator_for(3, "posterior", key))
        assert relative_difference(together[index : index + 1], alone) < TOLERANCE


def test_samples_scatter_about_the_mean_by_the_posteriors_deviation(
    vae: AutoencoderKLHunyuanVideo,
) -> None:
    video = to_pixels_range(formula_frames(1, 32, 32))
    mean = encode_video(vae, video)
    samples = torch.cat([encode_video(vae, video, generator_for(seed)) for seed in range(200)])
    with torch.inference_mode():
        deviation = vae.encode(video).latent_dist.std * vae.config["scaling_factor"]
    scatter = (samples - mean) / deviation
    assert abs(float(scatter.mean())) < 0.02
    assert abs(float(scatter.std()) - 1) < 0.02


def test_pixels_survive_mapping_there_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    video = to_pixels_range(frames)
    assert video.shape == (1, 3, 1, 16, 16)
    assert (float(video.min()), float(video.max())) == (-1, 1)
    assert torch.equal(to_frames(video), frames)


def test_decoded_frames_equal_the_references(
    vae: AutoencoderKLHunyuanVideo, golden: GoldenReader
) -> None:
    expected = golden("inference")
    frames = decode_latents(vae, expected["final_latents"])
    assert frames.shape == (33, 64, 64, 3)
    assert frames.dtype == torch.uint8
    expected_frames = to_frames(expected["decoded_frame0_16_32"])
    difference = frames[[0, 16, 32]].int() - expected_frames.int()
    # A value on the border between two integers may fall to either side.
    assert int(difference.abs().max()) <= 1
    assert float((difference != 0).float().mean()) < 1e-3
