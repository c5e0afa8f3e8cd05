"""Each speed setting runs on the real classes, and gives frames near to those without it."""

import pytest
import torch

from hvkf.errors import BadInput
from hvkf.model.renderer import Renderer
from hvkf.settings.experiment import ModelConfig
from hvkf.settings.rendering import RenderSpeed
from hvkf.storage import open_store
from tests.workspaces import TINY

NUM_STEPS = 6


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


def test_offloading_is_refused_without_a_gpu(tmp_path: object) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match=r"render\.speed\.group_offload"):
        frames(tmp_path, RenderSpeed(group_offload=True))
