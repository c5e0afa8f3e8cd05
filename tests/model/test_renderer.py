"""Rendering a pair: it depends on its own arguments alone, and on nothing rendered before."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hvkf.errors import BadInput
from hvkf.model import conditioning
from hvkf.model import renderer as renderer_module
from hvkf.model.conditioning import encode_condition
from hvkf.model.loading import load_scheduler, load_text_encoders, load_transformer, load_vae
from hvkf.model.lora import load_lora
from hvkf.model.lora_file import read_lora, save_lora
from hvkf.model.random import draw_normal, generator_for
from hvkf.model.renderer import Pair, Rendered, Renderer, RenderFault
from hvkf.model.sampler import sample_latents
from hvkf.model.text import encode_prompts
from hvkf.model.vae import decode_latents, encode_spatially
from hvkf.settings.experiment import ModelConfig
from hvkf.storage import FolderStore
from tests.workspaces import checkpoint_with_shift

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = GOLDEN / "tiny_hunyuan"
LORA = GOLDEN / "lora_r4_a8.sft"
MODEL = ModelConfig(pretrained_model_name_or_path=str(TINY), attention="sdpa")
SHORT: dict[str, Any] = {"num_frames": 5, "steps": 2, "guidance": 6.0}


def keyframe(seed: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)


PAIR = {0: keyframe(0), -1: keyframe(1)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def base(store: FolderStore) -> Renderer:
    return Renderer(MODEL, store, "fp32")


@pytest.fixture
def fresh(store: FolderStore) -> Renderer:
    return Renderer(MODEL, store, "fp32")


def test_a_rendering_is_the_parts_of_the_model_put_together(base: Renderer) -> None:
    vae = load_vae(TINY, dtype=torch.float32)
    condition = encode_condition(vae, PAIR, 5, generator_for(3, "condition", None))
    latents = sample_latents(
        load_transformer(TINY, dtype=torch.float32),
        load_scheduler(),
        encode_prompts(load_text_encoders(TINY, dtype=torch.float32), ["A cat."]),
        condition,
        noise=draw_normal(condition.shape[1:], [generator_for(3, "noise", None)]),
        steps=2,
        guidance=6.0,
    )
    frames = base.render(PAIR, "A cat.", seed=3, **SHORT)
    assert frames.shape == (5, 32, 32, 3)
    assert torch.equal(frames, decode_latents(vae, latents))


def test_a_rendering_depends_on_nothing_that_was_rendered_before(base: Renderer) -> None:
    first = base.render(PAIR, "A cat.", seed=1, **SHORT)
    torch.manual_seed(99)
    base.render({0: keyframe(5, 48)}, "A dog.", num_frames=9, steps=1, guidance=1.0, seed=2)
    assert torch.equal(base.render(PAIR, "A cat.", seed=1, **SHORT), first)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 2},
        {"seed": 1, "item_key": "a"},
        {"seed": 1, "guidance": 1.0},
        {"seed": 1, "steps": 3},
    ],
)
def test_each_setting_changes_the_video(base: Renderer, other: dict[str, Any]) -> None:
    first = base.render(PAIR, "A cat.", seed=1, **SHORT)
    assert not torch.equal(base.render(PAIR, "A cat.", **{**SHORT, **other}), first)


def test_the_condition_is_sampled_from_the_seed(
    base: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(*arguments: object, **options: object) -> torch.Tensor:
        latents = encode_condition(*arguments, **options)  # type: ignore[arg-type]
        seen.append(latents)
        return latents

    monkeypatch.setattr(renderer_module, "encode_condition", spy)
    for seed in (1, 2, 1):
        base.render(PAIR, "", num_frames=5, steps=1, guidance=6.0, seed=seed)
    assert torch.equal(seen[0], seen[2])
    assert float((seen[0] - seen[1]).abs().max()) > 0.1


def test_a_lora_is_merged_and_changes_the_video(fresh: Renderer, base: Renderer) -> None:
    loaded = fresh.fuse_lora(LORA, alpha=8)
    assert (loaded.rank, loaded.alpha) == (4, 8)
    without = base.render(PAIR, "A cat.", seed=1, **SHORT)
    merged = fresh.render(PAIR, "A cat.", seed=1, **SHORT)
    assert not torch.equal(merged, without)

    beside = Renderer(MODEL, FolderStore(Path()), "fp32")
    load_lora(beside._transformer, LORA, alpha=8)
    difference = merged.int() - beside.render(PAIR, "A cat.", seed=1, **SHORT).int()
    assert int(difference.abs().max()) <= 1


def test_without_its_lora_a_renderer_is_the_base_again_and_encodes_no_prompt_anew(
    fresh: Renderer, base: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = base.render(PAIR, "A cat.", seed=1, **SHORT)
    fresh.fuse_lora(LORA, alpha=8)
    fresh.render(PAIR, "A cat.", seed=1, **SHORT)
    monkeypatch.setattr(renderer_module, "encode_prompts", None)
    fresh.forget_loras()
    assert torch.equal(fresh.render(PAIR, "A cat.", seed=1, **SHORT), without)


def test_a_prompt_is_encoded_once(base: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[str] = []

    def spy(encoders: object, prompts: list[str]) -> object:
        captions.extend(prompts)
        return encode_prompts(encoders, prompts)  # type: ignore[arg-type]

    monkeypatch.setattr(renderer_module, "encode_prompts", spy)
    for prompt in ("One.", "Two.", "One."):
        base.render(PAIR, prompt, num_frames=5, steps=1, guidance=6.0, seed=0)
    assert captions == ["One.", "Two."]


def test_rows_in_a_batch_are_those_rendered_alone_each_with_its_own_seed(base: Renderer) -> None:
    """Another batch size sums in another order: floats differ by rounding, pixels by a level."""
    settings: dict[str, Any] = {**SHORT, "true_cfg_scale": 2.0}
    pairs = [
        Pair(PAIR, "A cat.", 1, "blur"),
        Pair(PAIR, "A cat.", 2, "blur"),
        Pair({0: keyframe(4), -1: keyframe(5)}, "A long road by the sea.", 3),
    ]
    together = base.render_batch(pairs, **settings)
    alone = [base.render_batch([pair], **settings)[0] for pair in pairs]
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Rendered)
        assert isinstance(other, Rendered)
        torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)
        assert (one.frames.int() - other.frames.int()).abs().max() <= 1
    first, second = together[0], together[1]
    assert isinstance(first, Rendered)
    assert isinstance(second, Rendered)
    assert (first.latents - second.latents).abs().max() > 0.1  # only their seeds differ


def test_a_keyframe_is_encoded_once(fresh: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = encode_spatially

    def counted(vae: Any, tile: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(tile.shape)
        return encode(vae, tile, *rest)

    monkeypatch.setattr(conditioning, "encode_spatially", counted)
    pairs = [Pair(PAIR, prompt, seed) for seed, prompt in enumerate(["A cat.", "A dog.", ""])]
    fresh.render_batch(pairs[:1], **SHORT)
    num_first = len(calls)
    assert num_first > 0
    fresh.render_batch(pairs, **SHORT)
    assert len(calls) == num_first
    fresh.render_batch([Pair({0: keyframe(0), -1: keyframe(7)}, "", 0)], **SHORT)
    assert len(calls) > num_first


def test_each_step_is_told_and_can_end_the_rendering(base: Renderer) -> None:
    told: list[int] = []

    def stop_at_second(step: int) -> None:
        told.append(step)
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base.render(PAIR, "", num_frames=5, steps=4, guidance=6.0, seed=0, on_step=stop_at_second)
    assert told == [0, 1]


def test_a_length_that_is_not_4k_plus_1_is_refused_not_shortened(base: Renderer) -> None:
    with pytest.raises(BadInput, match="33 or 37"):
        base.render(PAIR, "", num_frames=35, steps=1, guidance=6.0, seed=0)


def test_a_lora_that_diverged_is_a_fault_of_the_row(fresh: Renderer, tmp_path: Path) -> None:
    weights = {name: weight * float("nan") for name, weight in read_lora(LORA).weights.items()}
    fresh.fuse_lora(save_lora(weights, tmp_path / "lora.safetensors", alpha=8))
    with pytest.raises(RenderFault, match="NaN or infinity") as caught:
        fresh.render(PAIR, "", seed=0, **SHORT)
    assert caught.value.code == "not-finite"
    assert pickle.loads(pickle.dumps(caught.value)).code == "not-finite"


def test_a_lora_of_another_model_is_refused(fresh: Renderer, tmp_path: Path) -> None:
    weights = load_file(LORA)
    wider = {name: torch.zeros(tuple(2 * n for n in w.shape)) for name, w in weights.items()}
    short = {name.removeprefix("transformer."): weight for name, weight in wider.items()}
    with pytest.raises(BadInput, match="does not fit"):
        fresh.fuse_lora(save_lora(short, tmp_path / "lora.safetensors", alpha=8))


def test_a_reconstruction_is_the_clip_behind_the_vae(base: Renderer) -> None:
    clip = torch.stack([keyframe(index) for index in range(5)])
    found = base.reconstruct(clip)
    assert found.shape == clip.shape
    assert torch.equal(base.reconstruct(clip), found)


def test_a_checkpoint_that_is_not_there_is_named(store: FolderStore) -> None:
    with pytest.raises(BadInput, match="no checkpoint folder"):
        Renderer(ModelConfig(pretrained_model_name_or_path="./nowhere"), store, "fp32")


def test_the_shift_is_the_checkpoints_unless_a_setting_says_another(
    base: Renderer, store: FolderStore, tmp_path: Path
) -> None:
    """17 and 7 gave the same video; the reference takes the checkpoint's."""
    checkpoint = checkpoint_with_shift(tmp_path / "shifted", 17)
    of_seven = base.render(PAIR, "A cat.", seed=1, **SHORT)
    rendered = {}
    for name, source, shift in [
        ("the checkpoint's", checkpoint, None),
        ("a setting", TINY, 17.0),
        ("back", checkpoint, 7.0),
    ]:
        model = MODEL.model_copy(
            update={"pretrained_model_name_or_path": str(source), "flow_shift": shift}
        )
        rendered[name] = Renderer(model, store, "fp32").render(PAIR, "A cat.", seed=1, **SHORT)
    assert not torch.equal(rendered["the checkpoint's"], of_seven)
    assert torch.equal(rendered["the checkpoint's"], rendered["a setting"])
    assert torch.equal(rendered["back"], of_seven)
