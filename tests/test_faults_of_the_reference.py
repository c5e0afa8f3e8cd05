"""The reference's ten faults, each seen by running it: a test for each that it would not pass.

The numbers are those of docs/from-the-reference.md. One small data set goes through all stages.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hvkf import ledger
from hvkf.buckets import Bucket, assign
from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.infer import Request, infer
from hvkf.lossless_video import unpack_frames
from hvkf.media.writing import write_png
from hvkf.model import renderer as renderer_module
from hvkf.model.flow_matching import drop_captions, sample_losses, sample_sigmas
from hvkf.model.loading import load_transformer
from hvkf.model.lora import load_lora
from hvkf.model.lora_file import read_lora, save_lora
from hvkf.model.renderer import Renderer
from hvkf.model.text import PromptEmbeds
from hvkf.records import Clip, Summary
from hvkf.resize import resize_to_cover
from hvkf.settings.data import DataConfig
from hvkf.settings.experiment import ModelConfig
from hvkf.shards import Sample, Segment
from hvkf.stages import cache, encode, evaluate, ingest, render, render_rows, train
from hvkf.stages.cache import SCENES_ROOT
from hvkf.stages.encode import latents_root
from hvkf.storage import FolderStore
from hvkf.training.batch_plan import MicroBatch
from hvkf.training.dataset import Draw, LatentReader, TrainSamples
from hvkf.training.items import find_sources, read_items
from hvkf.training.optimizers import make_optimizer
from hvkf.training.runs import choose_checkpoint, list_checkpoints, parse_step, step_name
from hvkf.video import decode_frames
from tests.workspaces import GOLDEN, TINY, small_config, write_clip, write_table

STAGES = (ingest, cache, encode)
# A clip of 64x60 fits the first bucket's width; the other two requests are one family of sizes.
REQUESTED = ["64x64x5", "64x48x5", "48x64x5"]
NUM_CLIPS = 4
TOLERANCE = 2e-5


def run_stage(stage: Any, config: Config, *, one_by_one: bool = False) -> Summary:
    """Run a stage in this process: at once, or its parts as several workers, the last one first."""
    store = FolderStore(Path(config.workspace))
    plan = stage.plan(config, store)
    shares = [[part] for part in reversed(plan.parts)] if one_by_one else [plan.parts]
    for parts in shares:
        stage.run(plan, store, parts)
    summary: Summary = stage.commit(plan, store)
    return summary


def chain_config(folder: Path, metadata: Path, **sections: dict[str, object]) -> Config:
    return small_config(
        folder,
        metadata,
        cache={"bucket_reso": REQUESTED, "segment_mb": 1, "segments_per_part": 1},
        network={"lora_rank": 4, "lora_alpha": 8, "train_norm_layers": True},
        data={"batch_size": 2},
        **sections,
    )


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, one of them without a caption, and a file that is no video."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(NUM_CLIPS):
        write_clip(folder / "videos" / f"{number}.mp4", number, num_frames=6, size=(64, 60))
        rows.append(
            ("" if number == 2 else f"The video shows take {number}.", f"videos/{number}.mp4")
        )
    (folder / "videos" / "broken.mp4").write_bytes(b"no video")
    return write_table(folder, [*rows, ("Broken.", "videos/broken.mp4")])


@pytest.fixture(scope="module")
def chain(
    tmp_path_factory: pytest.TempPathFactory, metadata: Path
) -> Iterator[tuple[Config, dict[str, Summary]]]:
    """The data set encoded by several workers and trained on."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        config = chain_config(tmp_path_factory.mktemp("chain"), metadata)
        summaries = {stage.STAGE: run_stage(stage, config, one_by_one=True) for stage in STAGES}
        summaries["train"] = run_stage(train, config)
        yield config, summaries


@pytest.fixture
def config(chain: tuple[Config, dict[str, Summary]]) -> Config:
    return chain[0]


@pytest.fixture
def store(config: Config) -> FolderStore:
    return FolderStore(Path(config.workspace))


def samples_of(config: Config, store: FolderStore, root: str, cache_folder: Path) -> list[Sample]:
    commit = ledger.latest_dataset(store, root, config.ingest.dataset)
    assert commit is not None
    records = [ledger.read_segment(store, root, segment) for segment in commit.segments]
    segments = [Segment(store, record, cache_folder) for record in records]
    return [segment[position] for segment in segments for position in range(len(segment))]


def shape_of(sample: Sample) -> str:
    return f"{sample['bucket_width']}x{sample['bucket_height']}"


def test_fault_1_a_clip_that_fits_one_side_is_scaled_to_cover_the_other(
    config: Config, store: FolderStore, metadata: Path, tmp_path: Path
) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (540, 960, 3), dtype=np.uint8)
    assert resize_to_cover(frame, 960, 544).shape == (544, 960, 3)
    scenes = samples_of(config, store, SCENES_ROOT, tmp_path)
    for scene in (scene for scene in scenes if shape_of(scene) == "64x64"):
        video = unpack_frames(scene["video"])
        assert video.shape == (5, 64, 64, 3)
        decoded = decode_frames(metadata.parent / scene["source"], range(5))
        expected = [resize_to_cover(pixels, 64, 64) for _, pixels in decoded]
        assert np.array_equal(video, np.stack(expected))


def clip_of(width: int, height: int) -> Clip:
    facts: dict[str, Any] = dict.fromkeys(("clip_id", "source", "source_sha256", "caption"), "")
    numbers = {"start": 0, "end": 40, "source_frames": 40, "source_fps": 24.0, "num_frames": 40}
    return Clip(
        **facts, **numbers, fps=24.0, width=width, height=height, duration_s=1.7, split="train"
    )


def test_fault_2_a_size_and_its_turned_twin_take_each_clip_once(
    config: Config, store: FolderStore, tmp_path: Path
) -> None:
    twins = [Bucket(1280, 720, 33), Bucket(720, 1280, 33)]
    members = assign([clip_of(1920, 1080), clip_of(1080, 1920)], twins).members
    assert sorted(position for of in members.values() for position in of) == [0, 1]
    scenes = samples_of(config, store, SCENES_ROOT, tmp_path)
    made = [(scene["source"], shape_of(scene)) for scene in scenes]
    assert len(set(made)) == len(made) == NUM_CLIPS * 2
    assert {(scene["original_width"], scene["original_height"]) for scene in scenes} == {(64, 60)}


def test_fault_3_a_broken_file_and_an_empty_caption_cost_nothing_else_and_are_said(
    chain: tuple[Config, dict[str, Summary]], store: FolderStore, metadata: Path, tmp_path: Path
) -> None:
    config, summaries = chain
    assert "not taken: videos/broken.mp4" in summaries["ingest"].text
    latents = samples_of(config, store, latents_root(config, store), tmp_path)
    sources = {sample["source"]: sample["caption"] for sample in latents}
    assert len(sources) == NUM_CLIPS
    assert sources["videos/2.mp4"] == ""
    strict = chain_config(
        tmp_path, metadata, ingest={"metadata": str(metadata), "max_failed_fraction": 0.0}
    )
    with pytest.raises(BadInput, match=r"broken\.mp4") as caught:
        run_stage(ingest, strict)
    assert caught.value.exit_code == 65


def test_fault_4_any_number_of_workers_stores_each_sample_once_with_what_it_is(
    config: Config, store: FolderStore, metadata: Path, tmp_path: Path
) -> None:
    root = latents_root(config, store)
    latents = samples_of(config, store, root, tmp_path)
    scenes = samples_of(config, store, SCENES_ROOT, tmp_path)
    assert sorted(sample["item_key"] for sample in latents) == sorted(
        scene["item_key"] for scene in scenes
    )
    assert all(sample["caption"] or sample["source"] == "videos/2.mp4" for sample in latents)


def test_fault_4_encoding_is_seeded_resumes_and_is_not_all_float32(
    config: Config, store: FolderStore, metadata: Path, tmp_path: Path
) -> None:
    def bytes_of(folder: FolderStore) -> dict[str, bytes]:
        paths = folder.list(latents_root(config, store))
        return {path: folder.read(path) for path in paths if "/ledger/" not in path}

    alone = chain_config(tmp_path, metadata)
    for stage in STAGES:
        run_stage(stage, alone)
    before = bytes_of(store)
    assert bytes_of(FolderStore(Path(alone.workspace))) == before
    assert run_stage(encode, config).reused
    assert bytes_of(store) == before
    sample = samples_of(config, store, latents_root(config, store), tmp_path)[0]
    assert sample["latents"].dtype == np.uint16
    far = config.model_copy(update={"data": DataConfig(remote=("s3://bucket/32x32x5_00",))})
    assert find_sources(far, store)["folders"][0]["url"] == "s3://bucket/32x32x5_00"


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "cosmap"])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_fault_5_each_sample_is_weighed_by_its_own_sigma_at_any_batch_size(
    scheme: str, batch_size: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, latents, noise = (
        torch.randn(batch_size, 16, 2, 4, 4, generator=generator) for _ in range(3)
    )
    sigmas = torch.tensor([0.2, 0.5, 0.9])[:batch_size]
    losses = sample_losses(prediction, latents, noise, sigmas, scheme)
    assert losses.shape == (batch_size,)
    for row in range(batch_size):
        sigma = sigmas[row].double()
        weights: dict[str, Any] = {
            "none": 1.0,
            "sigma_sqrt": sigma**-2,
            "cosmap": 2 / (np.pi * (1 - 2 * sigma + 2 * sigma**2)),
        }
        error = prediction[row].double() - (noise[row].double() - latents[row].double())
        assert losses[row].item() == pytest.approx(
            float(weights[scheme] * error.square().mean()), rel=1e-5
        )


def test_fault_6_a_dropped_caption_gives_finite_numbers() -> None:
    transformer = load_transformer(TINY, dtype=torch.float32)
    inputs = {
        name.removeprefix("in."): value
        for name, value in load_file(GOLDEN / "transformer.safetensors").items()
        if name.startswith("in.")
    }
    prompt = PromptEmbeds(
        inputs["encoder_hidden_states"],
        inputs["encoder_attention_mask"],
        inputs["pooled_projections"],
    )
    dropped = drop_captions(prompt, torch.ones(len(prompt.prompt_embeds), dtype=torch.bool))
    assert not dropped.prompt_embeds.any()
    inputs["encoder_hidden_states"] = dropped.prompt_embeds
    inputs["encoder_attention_mask"] = dropped.prompt_attention_mask
    inputs["pooled_projections"] = dropped.pooled_prompt_embeds
    assert torch.isfinite(transformer(**inputs, return_dict=False)[0]).all()


def test_fault_6_the_defaults_are_values_that_work() -> None:
    hparams = Config().hparams
    sigmas = sample_sigmas(hparams.flow_match.timestep_sampling, 3, torch.Generator())
    assert sigmas.shape == (3,)
    weight = torch.nn.Parameter(torch.ones(2))
    make_optimizer(hparams.optimizer_type, [weight], 1e-3, hparams.optimizer_args)


def test_fault_7_every_item_and_epoch_has_noise_of_its_own_on_whichever_rank(
    config: Config, store: FolderStore
) -> None:
    sources = find_sources(config, store)
    items = read_items(store, sources, config.data)
    keys = max(items.by_bucket().values(), key=len)
    ranks = [
        TrainSamples(config, LatentReader(store, sources, config.data), items.train)
        for _ in range(2)
    ]

    def noise(rank: int, key: str, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = ranks[rank][Draw(MicroBatch((key,), borrowed=False), epoch)]
        return batch.noise, batch.sigmas

    drawn = [noise(0, key, epoch) for key in keys[:2] for epoch in (0, 1)]
    for number, (one, sigma) in enumerate(drawn):
        for other, other_sigma in drawn[:number]:
            assert not torch.equal(one, other)
            assert not torch.equal(sigma, other_sigma)
    assert torch.equal(noise(1, keys[0], 0)[0], drawn[0][0])


def test_fault_7_latest_is_found_and_names_are_parsed_and_going_on_changes_nothing(
    config: Config, store: FolderStore
) -> None:
    found = list_checkpoints(store, "test")
    assert choose_checkpoint(found, "latest", "test") == 4
    assert [parse_step(step_name(step)) for step in found.whole] == [2, 4]
    folder = "runs/test/step-00000004"
    undisturbed = store.read(f"{folder}/weights.safetensors")
    losses = store.read("runs/test/losses.jsonl")
    for path in ["runs/test/result.json", *store.list(folder)]:
        store.delete(path)
    latest = config.model_copy(
        update={
            "checkpointing": config.checkpointing.model_copy(
                update={"resume_from_checkpoint": "latest"}
            )
        }
    )
    run_stage(train, latest)
    assert store.read(f"{folder}/weights.safetensors") == undisturbed
    assert store.read("runs/test/losses.jsonl") == losses


def test_fault_8_a_lora_of_another_alpha_than_rank_renders_as_it_was_trained(
    tmp_path: Path,
) -> None:
    golden = load_file(GOLDEN / "transformer.safetensors")
    inputs = {name.removeprefix("in."): golden[name] for name in golden if name.startswith("in.")}
    file = save_lora(read_lora(GOLDEN / "lora_r4_a8.sft").weights, tmp_path, alpha=8)
    transformer = load_transformer(TINY, dtype=torch.float32)
    load_lora(transformer, file)
    with torch.inference_mode():
        output = transformer(**inputs, return_dict=False)[0]
    expected = golden["out.lora_alpha8_trainside"]
    assert float((output - expected).abs().max() / expected.abs().max()) < TOLERANCE


def test_fault_8_the_final_file_has_alpha_and_the_trained_norms(
    config: Config, store: FolderStore
) -> None:
    contents = read_lora(store.root / "runs" / "test" / "step-00000004")
    assert (contents.rank, contents.alpha) == (4, 8)
    before = load_transformer(TINY, dtype=torch.float32).state_dict()
    assert len(contents.norms) == 4 + 2 * 2
    assert any(not torch.equal(weight, before[name]) for name, weight in contents.norms.items())


def two_images(folder: Path) -> list[Path]:
    files = [folder / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        write_png(file, pixels)
    return files


def test_fault_9_the_seed_decides_the_conditions_sample_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelConfig(pretrained_model_name_or_path=str(TINY), attention="sdpa")
    renderer = Renderer(model, FolderStore(tmp_path), "fp32")
    renderer.fuse_lora(GOLDEN / "lora_r4_a8.sft", 8)
    monkeypatch.setattr(
        renderer_module, "draw_normal", lambda shape, generators: torch.zeros(1, *shape)
    )
    frame = torch.arange(32 * 32 * 3, dtype=torch.float32).reshape(32, 32, 3).to(torch.uint8)
    videos = [
        renderer.render({0: frame, -1: frame}, "", num_frames=5, steps=1, guidance=6.0, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(videos[0], videos[1])
    assert not torch.equal(videos[0], videos[2])


def test_fault_9_35_frames_are_refused_with_the_two_nearest(tmp_path: Path) -> None:
    first, last = two_images(tmp_path)
    request = Request(
        *("none", None, first, last, "p", 35, 32, 32, 1, 6.0, 0, "fp32", tmp_path / "a.mp4")
    )
    with pytest.raises(BadInput, match=r"35 frames.* 33 and 37"):
        infer(ModelConfig(pretrained_model_name_or_path=str(TINY)), FolderStore(tmp_path), request)


def test_fault_9_the_model_is_loaded_once_for_all_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_images(tmp_path)
    rows = [("id", "first_frame", "last_frame", "prompt")]
    rows += [(f"pair-{number}", "0.png", "1.png", f"take {number}") for number in range(3)]
    (tmp_path / "pairs.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    loaded: list[Renderer] = []

    def load(*arguments: Any) -> Renderer:
        loaded.append(Renderer(*arguments))
        return loaded[-1]

    monkeypatch.setattr(render_rows, "Renderer", load)
    wanted = {"manifest": str(tmp_path / "pairs.csv"), "lora": "none", "steps": 1}
    summary = run_stage(render, small_config(tmp_path, tmp_path / "none.csv", render=wanted))
    assert summary.counts == {"rows": 3, "failed": 0}
    assert len(loaded) == 1


def test_fault_10_training_is_tracked_and_validated_and_its_result_is_evaluated(
    config: Config, store: FolderStore
) -> None:
    logs = [path for path in store.list("runs/test/logs") if "tfevents" in path]
    assert logs
    rows: Sequence[dict[str, Any]] = [
        json.loads(line) for line in store.read("runs/test/losses.jsonl").splitlines()
    ]
    assert all(np.isfinite(row["validation_loss"]) for row in rows if row["step"] in (2, 4))
    summary = run_stage(evaluate, config)
    assert summary.counts == {"pairs": 1, "failed": 0}
    assert store.exists(summary.links["report"])
    metrics = json.loads(store.read(summary.links["metrics"]))
    assert metrics["lora"] != metrics["base"]
