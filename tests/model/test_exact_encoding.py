"""Encoding less gives the same bits: every shortcut against diffusers' own `vae.encode`."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

from hvkf.model.conditioning import (
    EmptyTiles,
    condition_video,
    empty_latent_frames,
    encode_condition,
    keyframes_of,
)
from hvkf.model.loading import load_vae
from hvkf.model.vae import encode_moments, latent_frames, to_pixels_range

from .conftest import TINY_FOLDER
from .test_vae import formula_frames

LENGTHS = (17, 33, 49, 65, 97, 129)
KEYFRAMES = ((0, -1), (0,), (0, 13, -1), (-1,))
# Height and width, and the side of a spatial tile: 32 cuts into 2 x 2 parts with remainders.
WHOLE, CUT = ((16, 16), 256), ((40, 56), 32)
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def own_vae(request: pytest.FixtureRequest) -> AutoencoderKLHunyuanVideo:
    return load_vae(TINY_FOLDER, dtype=request.param)


@pytest.fixture(params=(WHOLE, CUT), ids=("whole", "cut"))
def shaped(
    request: pytest.FixtureRequest, own_vae: AutoencoderKLHunyuanVideo
) -> Iterator[tuple[AutoencoderKLHunyuanVideo, tuple[int, int]]]:
    """A VAE with that spatial tiling, and the height and width that go with it."""
    size, side = request.param
    before = (own_vae.tile_sample_min_height, own_vae.tile_sample_stride_height)
    _set_tiling(own_vae, side, side * 3 // 4)
    yield own_vae, size
    _set_tiling(own_vae, *before)


def _set_tiling(vae: AutoencoderKLHunyuanVideo, side: int, stride: int) -> None:
    vae.tile_sample_min_height = vae.tile_sample_min_width = side
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = stride


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_a_videos_moments_are_bit_equal(
    num_frames: int, shaped: tuple[AutoencoderKLHunyuanVideo, tuple[int, int]]
) -> None:
    vae, (height, width) = shaped
    video = to_pixels_range(formula_frames(num_frames, height, width))
    with torch.inference_mode():
        expected = vae.encode(video.to(vae.dtype)).latent_dist.parameters
        assert torch.equal(encode_moments(vae, video), expected)


@pytest.mark.parametrize("num_frames", LENGTHS)
def test_a_conditions_latents_are_bit_equal_and_its_empty_frames_those_of_an_empty_video(
    num_frames: int, shaped: tuple[AutoencoderKLHunyuanVideo, tuple[int, int]]
) -> None:
    vae, (height, width) = shaped
    empty_tiles = EmptyTiles(vae)
    empty = empty_tiles.of_video(num_frames, height, width)
    frames = formula_frames(num_frames, height, width)
    # All sets of keyframes where that is quick, one for each length where it is not.
    chosen = KEYFRAMES if height == 16 else KEYFRAMES[LENGTHS.index(num_frames) % 4 :][:1]
    for positions in chosen:
        keyframes = keyframes_of(frames, positions)
        video = to_pixels_range(condition_video(keyframes, num_frames)).to(vae.dtype)
        with torch.inference_mode():
            posterior = vae.encode(video).latent_dist.parameters.float().chunk(2, dim=1)
        expected = posterior[0] * vae.config["scaling_factor"]
        assert torch.equal(
            encode_condition(vae, keyframes, num_frames, empty_tiles=empty_tiles), expected
        )
        same = empty_latent_frames(vae, positions, num_frames)
        deviation = torch.exp(0.5 * posterior[1][0].clamp(-30, 20))
        assert torch.equal(empty.mean[:, same], posterior[0][0][:, same])
        assert torch.equal(empty.std[:, same], deviation[:, same])


@pytest.mark.parametrize(
    ("num_frames", "num_empty"), [(17, 0), (33, 3), (49, 6), (65, 9), (97, 18), (129, 27)]
)
def test_most_latent_frames_of_a_long_condition_are_empty(
    num_frames: int, num_empty: int, vae: AutoencoderKLHunyuanVideo
) -> None:
    assert len(empty_latent_frames(vae, (0, -1), num_frames)) == num_empty


@pytest.mark.parametrize(
    ("num_frames", "position"), list(product((33, 97), (0, 5, 12, 16, 17, 28, 29, -1)))
)
def test_frames_called_empty_do_not_depend_on_the_keyframe(
    num_frames: int, position: int, vae: AutoencoderKLHunyuanVideo
) -> None:
    same = empty_latent_frames(vae, (position,), num_frames)
    latents = [
        encode_condition(vae, {position: torch.full((16, 16, 3), value).byte()}, num_frames)[0]
        for value in (40, 230)
    ]
    differing = [
        frame
        for frame in range(latent_frames(num_frames))
        if not torch.equal(latents[0][:, frame], latents[1][:, frame])
    ]
    assert not set(differing) & set(same)
    assert set(differing) | set(same) == set(range(latent_frames(num_frames)))


def test_the_parts_of_an_empty_tile_are_encoded_once_per_shape(
    vae: AutoencoderKLHunyuanVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    forward = vae.encoder.forward

    def count(tile: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(tile.shape[2:]))
        moments: torch.Tensor = forward(tile)
        return moments

    monkeypatch.setattr(vae.encoder, "forward", count)
    for name in ("tile_sample_min_height", "tile_sample_min_width"):
        monkeypatch.setattr(vae, name, 32)
    for name in ("tile_sample_stride_height", "tile_sample_stride_width"):
        monkeypatch.setattr(vae, name, 24)
    EmptyTiles(vae).of_video(97, 72, 96)
    # 3 x 4 parts in each of 8 tiles, of four sizes and two lengths.
    sizes = [(h, w) for h in (32, 24) for w in (32, 24)]
    assert sorted(shapes) == sorted((n, *size) for n in (17, 13) for size in sizes)
