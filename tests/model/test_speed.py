"""Each speed setting runs on the real classes, and gives frames near to those without it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hvkf.buckets import Bucket
from hvkf.errors import BadInput
from hvkf.model.loading import load_transformer
from hvkf.model.renderer import Renderer
from hvkf.settings.experiment import ModelConfig
from hvkf.settings.rendering import RenderSpeed
from hvkf.storage import open_store
from hvkf.training.objective import batch_losses
from tests.estimate.batches import latent_batch
from tests.workspaces import GOLDEN, TINY

NUM_STEPS = 6
TRAINED = Path(__file__).parents[2] / "hvkf/assets/hvkf-tiny"
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
        RenderSpeed(packed_weights="int8"),
        RenderSpeed(packed_weights="fp8"),
    ],
    ids=["first-block cache", "TaylorSeer", "fp8", "packed int8", "packed fp8"],
)
def test_an_approximation_gives_other_frames_that_are_near(
    tmp_path: object, speed: RenderSpeed
) -> None:
    exact = frames(tmp_path, RenderSpeed())
    near = frames(tmp_path, speed)
    apart = (exact.float() - near.float()).abs().mean().item()
    assert 0 < apart < 8


def test_smaller_tiles_lose_no_more_of_a_picture(tmp_path: object) -> None:
    y, x = torch.meshgrid(torch.arange(192), torch.arange(192), indexing="ij")
    picture = torch.stack([x * 0.6 + 40, y * 0.6 + 30, (x + y) * 0.4], dim=-1)
    frames_FHWC = picture.to(torch.uint8)[None].repeat(5, 1, 1, 1)
    whole, tiled = (
        reconstructed(tmp_path, frames_FHWC, speed)
        for speed in (RenderSpeed(), RenderSpeed(vae_tile=64))
    )

    assert not torch.equal(whole, tiled)
    lost_whole, lost_tiled = (
        (found.float() - frames_FHWC.float()).abs().mean().item() for found in (whole, tiled)
    )
    assert lost_tiled < 1.1 * lost_whole


def reconstructed(tmp_path: object, frames_FHWC: torch.Tensor, speed: RenderSpeed) -> torch.Tensor:
    model = ModelConfig(pretrained_model_name_or_path=str(TRAINED))
    return Renderer(model, open_store(str(tmp_path)), "fp32", speed).reconstruct(frames_FHWC)


def test_encoders_that_wait_in_main_memory_give_the_same_frames(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[tuple[str, str]] = []
    move = torch.nn.Module.to

    def recorded(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], str | torch.device):
            moves.append((type(module).__name__, "here" if args[0] == "cpu" else "there"))
        return move(module, *args, **kwargs)

    exact = frames(tmp_path, RenderSpeed())
    monkeypatch.setattr(torch.nn.Module, "to", recorded)
    found = frames(tmp_path, RenderSpeed(offload_encoders=True))

    assert torch.equal(found, exact)
    used = ["AutoencoderKLHunyuanVideo", "LlamaModel", "CLIPTextModel"]
    for name in used:
        places = [place for moved, place in moves if moved == name][1:]  # the first was loading
        assert places
        assert places == ["there", "here"] * (len(places) // 2)


def test_blocks_that_are_brought_when_they_compute_answer_the_same() -> None:
    """Group offload as `apply_speed` asks for it, but from the CPU to the CPU and unstreamed."""
    here, brought = (load_transformer(TINY, dtype=torch.float32) for _ in range(2))
    cpu = torch.device("cpu")
    brought.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )
    batch = latent_batch(Bucket.parse("64x64x17"), 1, here)

    answers = [
        batch_losses(model, batch, dtype=torch.float32, guidance=1.0, weighting="none").detach()
        for model in (here, brought)
    ]

    assert torch.equal(*answers)


@pytest.mark.parametrize("way", [{"fp8_layerwise": True}, {"packed_weights": "int8"}])
def test_a_lora_fused_after_a_video_is_the_lora_fused_before(
    way: dict[str, Any], tmp_path: object
) -> None:
    """Eight-bit weights must not stay those of the base model, nor be rounded twice."""
    model = ModelConfig(pretrained_model_name_or_path=str(TINY))
    settings: dict[str, Any] = {"num_frames": 5, "steps": 2, "guidance": 6.0, "seed": 1}
    ends = {0: torch.zeros(32, 32, 3, dtype=torch.uint8), -1: torch.ones(32, 32, 3).byte()}
    found = []
    for renders_first in (False, True):
        renderer = Renderer(model, open_store(str(tmp_path)), "fp32", RenderSpeed(**way))
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


def test_two_ways_to_eight_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="fp8_layerwise or packed_weights, not both"):
        RenderSpeed(fp8_layerwise=True, packed_weights="int8")
