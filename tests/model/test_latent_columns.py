"""What is stored packed is read back as it was made, bit by bit."""

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import AutoencoderKLHunyuanVideo

from hvkf.model.conditioning import (
    EmptyTiles,
    empty_latent_frames,
    encode_condition,
    keyframes_of,
)
from hvkf.model.latent_columns import (
    pack_condition,
    pack_empty,
    pack_prompts,
    read_condition,
    whole_columns,
)
from hvkf.model.precision import from_stored, to_stored
from hvkf.model.random import generator_for
from hvkf.model.text import PromptEmbeds

from .test_vae import formula_frames


@pytest.mark.parametrize("stored", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("positions", [(0, -1), (0,), (40,)])
def test_a_packed_condition_is_read_back_bit_by_bit(
    stored: str, positions: tuple[int, ...], vae: AutoencoderKLHunyuanVideo
) -> None:
    num_frames, size = 65, (16, 32)
    generator = generator_for(3, "latents_cond", "key")
    keyframes = keyframes_of(formula_frames(num_frames, *size), positions)
    condition = encode_condition(vae, keyframes, num_frames, generator)[0]
    empty_frames = empty_latent_frames(vae, positions, num_frames)
    packed = pack_condition(
        condition,
        empty_frames,
        pack_empty(EmptyTiles(vae).of_video(num_frames, *size), empty_frames),
        seed=generator.initial_seed(),
        scale=float(vae.config["scaling_factor"]),
        stored=stored,
    )
    expected = from_stored(to_stored(condition, stored))
    assert torch.equal(read_condition({"latents": condition.numpy(), **packed}), expected)
    # A shard gives its numbers back as numpy's.
    packed["condition_seed"] = np.int64(packed["condition_seed"])
    packed["condition_scale"] = np.float64(packed["condition_scale"])
    assert torch.equal(read_condition({"latents": condition.numpy(), **packed}), expected)
    assert packed["condition_kept"].shape[1] == 17 - len(empty_frames)
    assert len(packed["condition_empty"]) < 1000


def test_a_condition_without_empty_frames_and_a_whole_one_are_read_as_they_are() -> None:
    condition = torch.randn(16, 2, 4, 4)
    packed = pack_condition(condition, [], b"", seed=0, scale=1.0, stored="fp32")
    assert torch.equal(read_condition({"latents": condition.numpy(), **packed}), condition)
    assert "latents_cond" in whole_columns("fp32")
    assert torch.equal(read_condition({"latents_cond": condition.numpy()}), condition)


@pytest.mark.parametrize("lengths", [[1], [5], [8], [5, 1, 8]])
def test_text_is_stored_up_to_its_last_token(lengths: list[int]) -> None:
    masks = (torch.arange(8)[None] < torch.tensor(lengths)[:, None]).long()
    prompts = PromptEmbeds(torch.randn(len(lengths), 8, 3), masks, torch.randn(len(lengths), 2))
    for row, packed in enumerate(pack_prompts(prompts, "fp32")):
        embeds = prompts.prompt_embeds[row, : lengths[row]]
        assert np.array_equal(packed["prompt_embeds"], embeds.numpy())
        assert packed["prompt_attention_mask"].tolist() == [1] * lengths[row]
        assert np.array_equal(packed["pooled_prompt_embeds"], prompts.pooled_prompt_embeds[row])
