"""Each speed setting runs on the real classes, and gives frames near to those without it."""

from typing import Any

import pytest
import torch

from hvkf.errors import BadInput
from hvkf.model.renderer import Renderer
from hvkf.settings.experiment import ModelConfig
from hvkf.settings.rendering import RenderSpeed
from hvkf.storage import open_store
from tests.workspaces import GOLDEN, TINY

NUM_STEPS = 6
LORA = GOLDEN / "lora_r4_a8.sft"


def frames(tmp_path: object, speed: RenderSpeed) -> torch.Tensor:
    model = ModelConfig(pretrained_model_name_or_path=str(TINY))
    renderer = Renderer(model, open_store(str(tmp_path)), "fp32", speed)
    pixels = torch.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3) % 251
    ends = {0: pixels[0].to(torch.uint8), -1: pixels[1].to(torch.uint8)}
    return renderer.render(ends, "a disc", num_frames=9, steps=NUM_STEPS, guidance=6.0, seed=1)


@pytest.mark.parametrize(
    "speed",
    [
        RenderSpeed(first_block_cache=0.5),
        RenderSpeed(taylorseer=2),
        RenderSpeed(fp8_layerwise=True),
    ],
    ids=["first-block cache", "TaylorSeer", "fp8"],
)
def test_an_approximation_gives_other_frames_that_are_near(
    tmp_path: object, speed: RenderSpeed
) -> None:
    exact = frames(tmp_path, RenderSpeed())
    near = frames(tmp_path, speed)
    apart = (exact.float() - near.float()).abs().mean().item()
    assert 0 < apart < 8


def test_a_lora_fused_after_a_video_is_the_lora_fused_before(tmp_path: object) -> None:
    """Eight-bit weights must not stay those of the base model, nor be rounded twice."""
    model = ModelConfig(pretrained_model_name_or_path=str(TINY))
    settings: dict[str, Any] = {"num_frames": 5, "steps": 2, "guidance": 6.0, "seed": 1}
    ends = {0: torch.zeros(32, 32, 3, dtype=torch.uint8), -1: torch.ones(32, 32, 3).byte()}
    found = []
    for renders_first in (False, True):
        renderer = Renderer(
            model, open_store(str(tmp_path)), "fp32", RenderSpeed(fp8_layerwise=True)
        )
        base = renderer.render(ends, "a disc", **settings) if renders_first else None
        for _ in range(2):
            renderer.fuse_lora(LORA, alpha=8)
        found.append(renderer.render(ends, "a disc", **settings))
        renderer.fuse_lora(LORA, alpha=8)
        found.append(renderer.render(ends, "a disc", **settings))
    assert base is not None
    assert not torch.equal(found[0], base)
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_offloading_is_refused_without_a_gpu(tmp_path: object) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match=r"render\.speed\.group_offload"):
        frames(tmp_path, RenderSpeed(group_offload=True))
