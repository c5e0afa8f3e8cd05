from collections.abc import Callable

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo
from hypothesis import given
from hypothesis import strategies as st

from hvkf.errors import BadInput
from hvkf.model.conditioning import (
    EmptyTiles,
    condition_video,
    empty_latent_frames,
    encode_condition,
    keyframes_of,
)
from hvkf.model.random import generator_for
from hvkf.model.vae import to_pixels_range

from .conftest import relative_difference
from .test_vae import SIZES, TOLERANCE, formula_frames


@pytest.mark.parametrize("size", SIZES)
def test_the_conditions_posterior_mean_equals_the_references(
    size: tuple[int, int, int],
    vae: AutoencoderKLHunyuanVideo,
    golden: Callable[[str], dict[str, torch.Tensor]],
) -> None:
    num_frames, height, width = size
    keyframes = keyframes_of(formula_frames(*size))
    latents = encode_condition(vae, keyframes, num_frames)
    expected = golden("vae")[f"formula_{num_frames}x{height}x{width}.cond.mean"]
    assert relative_difference(latents / vae.config["scaling_factor"], expected) < TOLERANCE


@pytest.mark.parametrize("positions", [(0, -1), (0,), (0, 30, -1), (50,)])
def test_reusing_empty_tiles_changes_no_bit(
    positions: tuple[int, ...], vae: AutoencoderKLHunyuanVideo
) -> None:
    keyframes = keyframes_of(formula_frames(65, 32, 32), positions)
    video = to_pixels_range(condition_video(keyframes, 65))
    empty_tiles = EmptyTiles(vae)
    with torch.inference_mode():
        expected = vae.encode(video).latent_dist.mean * vae.config["scaling_factor"]
    for _ in range(2):
        latents = encode_condition(vae, keyframes, 65, empty_tiles=empty_tiles)
        assert torch.equal(latents, expected)


def test_conditions_encoded_together_equal_those_encoded_alone_but_for_rounding(
    vae: AutoencoderKLHunyuanVideo,
) -> None:
    frames = torch.stack([formula_frames(65, 32, 32), formula_frames(65, 32, 32).flip(0)])
    empty_tiles = EmptyTiles(vae)
    generators = [generator_for(3, "condition", key) for key in "ab"]
    together = encode_condition(vae, keyframes_of(frames), 65, generators, empty_tiles)
    empty = empty_latent_frames(vae, (0, -1), 65)
    assert empty
    for index, key in enumerate("ab"):
        alone = encode_condition(
            vae, keyframes_of(frames[index]), 65, generator_for(3, "condition", key), empty_tiles
        )[0]
        assert relative_difference(together[index], alone) < TOLERANCE
        # Empty tiles come from memory, whatever the batch.
        assert torch.equal(together[index][:, empty], alone[:, empty])


def test_empty_tiles_are_encoded_once_per_shape(
    vae: AutoencoderKLHunyuanVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    forward = vae.encoder.forward

    def count(tile: torch.Tensor) -> torch.Tensor:
        lengths.append(tile.shape[2])
        moments: torch.Tensor = forward(tile)
        return moments

    monkeypatch.setattr(vae.encoder, "forward", count)
    keyframes = keyframes_of(formula_frames(129, 16, 16))
    empty_tiles = EmptyTiles(vae)
    encode_condition(vae, keyframes, 129, empty_tiles=empty_tiles)
    # The first tile, one empty one for nine, and the last, which holds the last keyframe.
    assert lengths == [17, 17, 9]
    encode_condition(vae, keyframes, 129, empty_tiles=empty_tiles)
    assert lengths == [17, 17, 9, 17, 9]


def test_the_condition_sample_depends_on_its_seed_only(vae: AutoencoderKLHunyuanVideo) -> None:
    keyframes = keyframes_of(formula_frames(5, 32, 32))
    torch.manual_seed(1)
    first = encode_condition(vae, keyframes, 5, generator_for(3, "condition", "row"))
    torch.manual_seed(2)
    again = encode_condition(vae, keyframes, 5, generator_for(3, "condition", "row"))
    assert torch.equal(first, again)
    assert not torch.equal(first, encode_condition(vae, keyframes, 5))


@given(st.integers(0, 4), st.data())
def test_only_keyframes_are_not_empty(quarter: int, data: st.DataObject) -> None:
    num_frames = 4 * quarter + 1
    positions = data.draw(st.sets(st.integers(-num_frames, num_frames - 1), min_size=1))
    frames = torch.full((num_frames, 2, 3, 3), 200, dtype=torch.uint8)
    video = condition_video(keyframes_of(frames, sorted(positions)), num_frames)
    filled = {position % num_frames for position in positions}
    assert video.shape == (num_frames, 2, 3, 3)
    for index in range(num_frames):
        assert int(video[index].max()) == (200 if index in filled else 0)


def test_an_empty_frame_is_minus_one_after_mapping() -> None:
    frames = torch.full((5, 2, 2, 3), 255, dtype=torch.uint8)
    video = to_pixels_range(condition_video(keyframes_of(frames), 5))
    assert video[0, 0, :, 0, 0].tolist() == [1, -1, -1, -1, 1]


@pytest.mark.parametrize("num_frames", [0, 35, 34, -3])
def test_a_number_of_frames_that_is_not_4k_plus_1_is_refused(num_frames: int) -> None:
    keyframes = {0: torch.zeros((2, 2, 3), dtype=torch.uint8)}
    with pytest.raises(BadInput, match=r"4k\+1"):
        condition_video(keyframes, num_frames)


def test_keyframes_that_cannot_be_placed_are_refused() -> None:
    frame = torch.zeros((2, 2, 3), dtype=torch.uint8)
    with pytest.raises(BadInput, match="outside"):
        condition_video({5: frame}, 5)
    with pytest.raises(BadInput, match="at least one"):
        condition_video({}, 5)
    with pytest.raises(BadInput, match="differ in size"):
        condition_video({0: frame, -1: frame[:1]}, 5)
