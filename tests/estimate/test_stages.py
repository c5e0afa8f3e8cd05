"""What is counted on meta tensors against what the CPU's allocator reports of the real code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hvkf.buckets import Bucket
from hvkf.config import Config
from hvkf.estimate.parts import Shapes, num_bytes, published_shapes, shapes_of_folder
from hvkf.estimate.stages import Encode, Render, StageEstimate, Train, block_bytes
from hvkf.model.frozen import hold_frozen
from hvkf.model.loading import load_scheduler, load_text_encoders, load_transformer, load_vae
from hvkf.model.lora import add_lora
from hvkf.model.recomputing import recompute_blocks
from hvkf.model.sampler import sample_latents
from hvkf.model.text import encode_prompts
from hvkf.model.tiny import build_tiny_checkpoint
from hvkf.model.vae import decode_latents, encode_video, set_tile
from hvkf.training.dataset import LatentBatch
from hvkf.training.objective import batch_losses
from hvkf.training.optimizers import make_optimizer
from hvkf.training.sharding import Sharding
from hvkf.training.state import optimizer_state
from tests.estimate.batches import latent_batch
from tests.estimate.measuring import measured_memory

WITHIN = 0.1
# oneDNN's convolutions of bfloat16 work in place of what they read: float32's copy it 27 times.
BF16 = {"encode": {"precision": "bf16"}, "render": {"precision": "bf16", "steps": 2}}
FP32 = {
    "render": {"precision": "fp32", "steps": 2},
    "encode": {"stored": "fp32"},
    "network": {"lora_rank": 4, "lora_alpha": 4},
    "hparams": {"mixed_precision": "no", "gradient_checkpointing": False},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose VAE outweighs what oneDNN keeps for itself."""
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shapes(checkpoint: Path) -> Shapes:
    """Its settings."""
    return shapes_of_folder(checkpoint)


def measure(work: Callable[[], Any]) -> int:
    """Run once for what is kept from then on, and measure the second time."""
    work()
    with measured_memory() as measured:
        work()
    return measured.peak_bytes


@pytest.mark.parametrize("size", ["512x320x17", "320x192x33"])
def test_the_vae_s_memory_is_counted_within_a_tenth_of_what_is_measured(
    size: str, checkpoint: Path, shapes: Shapes
) -> None:
    bucket, config = Bucket.parse(size), Config.model_validate(BF16)
    vae = load_vae(checkpoint, dtype=torch.bfloat16)
    video = torch.rand((1, 3, bucket.num_frames, bucket.height, bucket.width)).to(torch.bfloat16)
    latents = torch.randn(
        (1, 16, (bucket.num_frames - 1) // 4 + 1, bucket.height // 8, bucket.width // 8)
    )
    encode = Encode(config, shapes).estimate(bucket)
    render = Render(config, shapes).estimate(bucket)

    with measured_memory() as encoding:
        encode_video(vae, video)
    with measured_memory() as decoding:
        decode_latents(vae, latents)

    video_bytes = video.numel() * video.element_size()
    counted = encode.passes["video"] - sum(encode.resident.values()) - video_bytes
    assert counted == pytest.approx(encoding.peak_bytes, rel=WITHIN)
    counted = render.passes["decoding"] - sum(render.resident.values())
    assert counted == pytest.approx(decoding.peak_bytes, rel=WITHIN)


@pytest.mark.parametrize("tile", [None, 128])
def test_the_memory_of_clips_encoded_together_is_counted_within_a_tenth_of_what_is_measured(
    tile: int | None, checkpoint: Path, shapes: Shapes
) -> None:
    bucket, together = Bucket.parse("320x192x33"), 3
    encode = {"precision": "bf16", "batch_size": together, "vae_tile": tile}
    vae = load_vae(checkpoint, dtype=torch.bfloat16)
    if tile is not None:
        set_tile(vae, tile)
    shape = (together, 3, bucket.num_frames, bucket.height, bucket.width)
    videos = torch.rand(shape).to(torch.bfloat16)

    measured = measure(lambda: encode_video(vae, videos))

    estimate = Encode(Config.model_validate({"encode": encode}), shapes).estimate(bucket)
    counted = estimate.passes["video"] - sum(estimate.resident.values())
    assert counted - videos.numel() * 2 == pytest.approx(measured, rel=WITHIN)


def test_the_memory_of_captions_is_counted_within_a_tenth_of_what_is_measured(
    checkpoint: Path, shapes: Shapes
) -> None:
    """Of different lengths, so that there is a mask; enough to outweigh the kernels' buffers."""
    together = 8
    encoders = load_text_encoders(checkpoint, dtype=torch.bfloat16)
    captions = ["and on " * (300 - number) for number in range(together - 1)] + ["Short."]

    measured = measure(lambda: encode_prompts(encoders, captions, is_padded=False))

    encode = {"precision": "bf16", "caption_batch_size": together}
    estimate = Encode(Config.model_validate({"encode": encode}), shapes).estimate(
        Bucket.parse("320x192x33")
    )
    counted = estimate.passes["caption"] - sum(estimate.resident.values())
    assert counted == pytest.approx(measured, rel=WITHIN)


@pytest.mark.parametrize("usable_bytes", [120 * 10**6, 10**9])
def test_the_largest_batch_is_the_last_that_fits(usable_bytes: int, shapes: Shapes) -> None:
    bucket = Bucket.parse("320x192x33")

    def peak(together: int) -> int:
        settings = {"encode": {"precision": "bf16", "batch_size": together}}
        return Encode(Config.model_validate(settings), shapes).estimate(bucket).peak_bytes

    encode = Encode(Config.model_validate(BF16), shapes)
    largest = encode.largest_batch(bucket, usable_bytes)
    assert largest >= 1
    assert peak(largest) <= usable_bytes < peak(largest + 1)
    assert encode.largest_batch(bucket, 10**6) == 0


@pytest.mark.parametrize("size", ["512x320x17", "320x192x33"])
def test_sampling_s_memory_is_counted_within_a_tenth_of_what_is_measured(
    size: str, checkpoint: Path, shapes: Shapes
) -> None:
    bucket, config = Bucket.parse(size), Config.model_validate(FP32)
    transformer = load_transformer(checkpoint, dtype=torch.float32)
    batch = latent_batch(bucket, 1, transformer)

    measured = measure(
        lambda: sample_latents(
            transformer, load_scheduler(), batch.prompt, batch.condition, noise=batch.noise, steps=2
        )
    )

    estimate = Render(config, shapes).estimate(bucket)
    counted = estimate.passes["sampling"] - sum(estimate.resident.values())
    # What was there before the measurement: the noise is replaced, on a GPU, by the latents.
    inputs = bytes_of(batch.condition, *of_prompt(batch))
    assert counted == pytest.approx(measured + inputs, rel=WITHIN)


@pytest.mark.parametrize(
    ("every", "waits"), [(None, False), (1, False), (2, False), (None, True), (1, True)]
)
@pytest.mark.parametrize("size", ["512x320x17", "320x192x33"])
def test_a_step_s_memory_is_counted_within_a_tenth_of_what_is_measured(
    size: str, every: int | None, waits: bool, checkpoint: Path, shapes: Shapes
) -> None:
    bucket, batch_size = Bucket.parse(size), 2
    settings = {**FP32, "data": {"batch_size": batch_size}}
    settings["hparams"] = {
        "mixed_precision": "no",
        "gradient_checkpointing": every is not None,
        "checkpoint_every_n_blocks": every or 1,
        "weights_in_main_memory": waits,
    }
    transformer = load_transformer(checkpoint, dtype=torch.float32, trains=True)
    trained = add_lora(transformer, rank=4, alpha=4)
    if waits:
        hold_frozen(transformer, waits=True)
    transformer.train()
    if every is not None:
        recompute_blocks(transformer, every)
    batch = latent_batch(bucket, batch_size, transformer)

    def step() -> None:
        losses = batch_losses(
            transformer, batch, dtype=torch.float32, guidance=1.0, weighting="none"
        )
        losses.mean().backward()
        for weight in trained:
            weight.grad = None

    measured = measure(step)

    estimate = Train(Config.model_validate(settings), shapes).estimate(bucket)
    counted = estimate.peak_bytes - sum(estimate.resident.values())
    inputs = bytes_of(batch.latents, batch.condition, batch.noise, batch.sigmas, *of_prompt(batch))
    assert counted == pytest.approx(measured + inputs, rel=WITHIN)


def of_prompt(batch: LatentBatch) -> list[torch.Tensor]:
    """List a batch's embeddings."""
    prompt = batch.prompt
    return [prompt.prompt_embeds, prompt.prompt_attention_mask, prompt.pooled_prompt_embeds]


def bytes_of(*tensors: torch.Tensor) -> int:
    """Count tensors' bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adam", "adamw", "optimi-adamw", "optimi-stableadamw"])
def test_an_optimizer_s_state_is_as_large_as_counted(
    name: str, dtype: torch.dtype, shapes: Shapes
) -> None:
    from hvkf.estimate.training_state import optimizer_bytes

    weight = torch.nn.Parameter(torch.randn((64, 64), dtype=dtype))
    optimizer = make_optimizer(name, [weight], 1e-3, [])
    weight.grad = torch.randn_like(weight)
    optimizer.step()

    tensors, _ = optimizer_state(optimizer, {weight: "weight"})

    held = [tensor for tensor in tensors.values() if tensor.numel() == weight.numel()]
    found = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert found == optimizer_bytes(name, weight.numel(), weight.element_size())


def test_hunyuanvideo_has_its_published_numbers_of_weights() -> None:
    from hvkf.estimate.parts import num_parameters

    shapes = published_shapes()
    # The published 12,821,012,544 and the widened input's 16 channels of 2x2 patches.
    assert num_parameters(shapes.transformer(torch.bfloat16)) == 12_821_012_544 + 16 * 4 * 3072
    # Llama-3-8B's published 8,030,261,248 with 64 tokens more, without its head, two layers and
    # the last norm, which are not read.
    llama = 8_030_261_248 - 128_256 * 4096 + 64 * 4096 - 2 * 218_112_000 - 4096
    assert num_parameters(shapes.llama(torch.bfloat16)) == llama
    assert num_parameters(shapes.clip(torch.bfloat16)) == 123_060_480
    assert num_parameters(shapes.vae(torch.bfloat16)) == 246_478_803


def test_rendering_hunyuanvideo_takes_about_the_published_memory() -> None:
    render = Render(Config(), published_shapes())

    large = render.estimate(Bucket.parse("1280x720x129")).peak_bytes
    small = render.estimate(Bucket.parse("960x544x129")).peak_bytes

    assert large == pytest.approx(60e9, rel=0.15)
    assert small == pytest.approx(45e9, rel=0.15)


def test_sharing_all_weights_out_leaves_each_rank_its_part(shapes: Shapes) -> None:
    config, bucket = Config.model_validate(FP32), Bucket.parse("64x64x17")

    alone = Train(config, shapes).estimate(bucket)
    shared = Train(config, shapes, num_ranks=4, sharding=Sharding.ALL).estimate(bucket)

    assert shared.resident["frozen weights"] == -(-alone.resident["frozen weights"] // 4)
    assert shared.resident["gathered"] > 0
    saved = sum(alone.resident.values()) - sum(shared.resident.values())
    assert alone.peak_bytes - shared.peak_bytes == saved


def test_checkpoints_in_main_memory_do_not_count_on_the_gpu(shapes: Shapes) -> None:
    bucket = Bucket.parse("320x192x33")
    hparams: dict[str, Any] = {"mixed_precision": "no", "gradient_checkpointing": True}
    settings = {**FP32, "hparams": hparams}
    moved = {**FP32, "hparams": {**hparams, "checkpoint_in_main_memory": True}}

    here = Train(Config.model_validate(settings), shapes).estimate(bucket)
    away = Train(Config.model_validate(moved), shapes).estimate(bucket)

    # Of three blocks' inputs (float32, 32 channels, of video and text) one is fetched at a time.
    inputs = (9 * 12 * 20 + 256) * 32 * 4
    assert 2 * inputs <= here.peak_bytes - away.peak_bytes <= 3 * inputs


def test_packed_weights_count_by_their_bits() -> None:
    shapes = published_shapes()
    found = {
        stored: Train(
            Config.model_validate({"hparams": {"packed_weights": stored}}), shapes
        ).transformer
        for stored in ("fp8", "int8", "nf4")
    }
    frozen = {stored: num_bytes(made, trained=False) for stored, made in found.items()}
    # 12.6 of 12.8 billion weights lie in the blocks' linear layers.
    assert frozen["int8"] == frozen["fp8"] == pytest.approx(12.8e9, rel=0.05)
    assert frozen["nf4"] == pytest.approx(7.5e9, rel=0.05)


def test_weights_that_wait_count_while_a_layer_computes() -> None:
    shapes, bucket = published_shapes(), Bucket.parse("256x256x17")

    def of_step(**hparams: Any) -> StageEstimate:
        return Train(Config.model_validate({"hparams": hparams}), shapes).estimate(bucket)

    here, away = of_step(), of_step(weights_in_main_memory=True)
    moved = here.resident["frozen weights"] - away.resident["frozen weights"]
    assert moved == pytest.approx(24.9e9, rel=0.01)
    largest = 3072 * 5 * 3072 * 2  # what goes into a single block's last layer
    assert here.peak_bytes - away.peak_bytes == pytest.approx(moved, abs=largest)
    assert away.flops == here.flops


def test_what_waits_in_main_memory_does_not_count_while_rendering(tmp_path: Path) -> None:
    deep = {"num_layers": 2, "num_single_layers": 4}
    shapes = shapes_of_folder(build_tiny_checkpoint(tmp_path, transformer=deep))
    bucket = Bucket.parse("64x64x17")

    def peak(**speed: Any) -> Any:
        config = Config.model_validate({"render": {"precision": "fp32", "speed": speed}})
        return Render(config, shapes).estimate(bucket).passes

    whole, away, blocks = peak(), peak(offload_encoders=True), peak(group_offload=True)
    encoders = Render(Config.model_validate({"render": {"precision": "fp32"}}), shapes).encoders
    assert whole["sampling"] - away["sampling"] == sum(encoders.resident.values())
    assert whole["decoding"] - away["decoding"] == sum(
        size for name, size in encoders.resident.items() if name != "VAE"
    )
    # Two blocks are there at a time.
    sizes = block_bytes(shapes.transformer(torch.float32))
    assert whole["sampling"] - blocks["sampling"] == sum(sizes) - 2 * max(sizes)
