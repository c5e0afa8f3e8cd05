from collections.abc import Callable

import pytest
import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoTransformer3DModel

from hvkf.errors import BadInput
from hvkf.model.loading import load_scheduler
from hvkf.model.lora import fuse_lora, load_lora
from hvkf.model.random import draw_normal, generator_for
from hvkf.model.sampler import sample_latents
from hvkf.model.text import PromptEmbeds

from .conftest import relative_difference
from .test_lora_file import REFERENCE_FILE
from .test_widening import narrow_transformer

GoldenReader = Callable[[str], dict[str, torch.Tensor]]
SHAPE = (16, 2, 4, 4)


def prompt_of_rows(num_rows: int) -> PromptEmbeds:
    generators = [generator_for("prompt", row) for row in range(num_rows)]
    mask = torch.zeros(num_rows, 6, dtype=torch.int64)
    for row in range(num_rows):
        mask[row, : 2 + row] = 1
    return PromptEmbeds(draw_normal((6, 32), generators), mask, draw_normal((24,), generators))


def test_latents_after_each_step_equal_the_references(
    transformer: HunyuanVideoTransformer3DModel, golden: GoldenReader
) -> None:
    expected = golden("inference")
    load_lora(transformer, REFERENCE_FILE)
    fuse_lora(transformer)
    after_steps = []
    scheduler = load_scheduler(7.0)
    final = sample_latents(
        transformer,
        scheduler,
        PromptEmbeds(expected["prompt_embeds"], expected["mask"], expected["pooled"]),
        expected["cond_latents"],
        noise=expected["noise"],
        steps=4,
        on_step=lambda step, latents: after_steps.append(latents),
    )
    assert relative_difference(torch.as_tensor(scheduler.sigmas), expected["sigmas"]) < 1e-6
    assert relative_difference(torch.as_tensor(scheduler.timesteps), expected["timesteps"]) < 1e-6
    assert len(after_steps) == 4
    for step, latents in enumerate(after_steps):
        assert relative_difference(latents, expected[f"latents_after_step{step}"]) < 2e-5
    assert relative_difference(final, expected["final_latents"]) < 2e-5


def test_a_row_samples_the_same_alone_and_in_a_batch(
    transformer: HunyuanVideoTransformer3DModel,
) -> None:
    prompt = prompt_of_rows(2)
    generators = [generator_for("row", row) for row in range(2)]
    condition, noise = draw_normal(SHAPE, generators), draw_normal(SHAPE, generators)
    together = sample_latents(
        transformer, load_scheduler(), prompt, condition, noise=noise, steps=3
    )
    for row in range(2):
        own = slice(row, row + 1)
        alone = sample_latents(
            transformer,
            load_scheduler(),
            PromptEmbeds(
                prompt.prompt_embeds[own],
                prompt.prompt_attention_mask[own],
                prompt.pooled_prompt_embeds[own],
            ),
            condition[own],
            noise=noise[own],
            steps=3,
        )
        assert relative_difference(together[own], alone) < 1e-5


def test_guidance_changes_the_result(transformer: HunyuanVideoTransformer3DModel) -> None:
    noise = draw_normal(SHAPE, [generator_for(0)])
    low, high = (
        sample_latents(
            transformer,
            load_scheduler(),
            prompt_of_rows(1),
            torch.zeros_like(noise),
            noise=noise,
            steps=2,
            guidance=guidance,
        )
        for guidance in (1.0, 6.0)
    )
    assert relative_difference(low, high) > 1e-4


def test_latents_stay_float32_while_the_transformer_computes_in_16_bits(
    transformer: HunyuanVideoTransformer3DModel,
) -> None:
    torch.nn.Module.to(transformer, torch.bfloat16)
    noise = draw_normal(SHAPE, [generator_for(0)])
    seen = []
    sample_latents(
        transformer,
        load_scheduler(),
        prompt_of_rows(1),
        torch.zeros_like(noise),
        noise=noise,
        steps=2,
        on_step=lambda step, latents: seen.append(latents.dtype),
    )
    assert seen == [torch.float32, torch.float32]


def test_what_on_step_raises_ends_the_loop(transformer: HunyuanVideoTransformer3DModel) -> None:
    noise = draw_normal(SHAPE, [generator_for(0)])
    steps = []

    def stop(step: int, latents: torch.Tensor) -> None:
        steps.append(step)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample_latents(
            transformer,
            load_scheduler(),
            prompt_of_rows(1),
            torch.zeros_like(noise),
            noise=noise,
            steps=5,
            on_step=stop,
        )
    assert steps == [0]


def test_inputs_that_do_not_fit_are_refused(transformer: HunyuanVideoTransformer3DModel) -> None:
    noise = draw_normal(SHAPE, [generator_for(0)])
    with pytest.raises(BadInput, match="same shape"):
        sample_latents(
            transformer, load_scheduler(), prompt_of_rows(1), noise[:, :, :1], noise=noise, steps=1
        )
    with pytest.raises(BadInput, match="not widened"):
        sample_latents(
            narrow_transformer(), load_scheduler(), prompt_of_rows(1), noise, noise=noise, steps=1
        )
