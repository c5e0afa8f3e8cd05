"""A step gives the device all its work without waiting for it; its figures come later.

The device is PyTorch's meta device, whose tensors have no values: asking for one is a fault, and so
is copying one to the host. The host does what it would do with a GPU.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from hvkf.errors import BadInput
from hvkf.storage import FolderStore
from hvkf.training import trainer as trainer_module
from hvkf.training.batch_plan import MicroBatch
from hvkf.training.dataset import Draw, LatentBatch, LatentReader, TrainSamples
from hvkf.training.items import find_sources, read_items
from hvkf.training.sharding import Sharding
from hvkf.training.steps import compute_gradients
from hvkf.training.trainer import Trainer
from tests.training.latents import run_training, train_config, write_latents
from tests.training.trainings import prepare, rows_of, run_bytes

META = torch.device("meta")
# The shipped StableAdamW waits for no GPU in its Triton kernels alone; those need a real one.
WITHOUT_KERNELS = {"optimizer_type": "adamw", "lr_warmup_steps": 1}


@pytest.fixture
def valueless(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accelerator]:
    """An accelerator whose device is the meta device, and transformers that lie there."""
    load = trainer_module._load

    def load_there(config: Any, store: Any, dtype: torch.dtype, device: torch.device) -> Any:
        return load(config, store, dtype, torch.device("cpu")).to(device)

    monkeypatch.setattr(trainer_module, "_load", load_there)
    monkeypatch.setattr(Accelerator, "device", META)
    try:
        yield Accelerator(cpu=True)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def micro_batches(config: Any, store: FolderStore) -> list[LatentBatch]:
    """Read two micro-batches of two samples."""
    sources = find_sources(config, store)
    items = read_items(store, sources, config.data)
    samples = TrainSamples(config, LatentReader(store, sources, config.data), items.train)
    keys = [item.key for item in items.train if item.bucket == "48x32x9"]
    return [samples[Draw(MicroBatch(tuple(pair), False), 0)] for pair in (keys[:2], keys[1:3])]


@pytest.mark.parametrize(
    "hparams",
    [
        {},
        {"max_grad_norm": 0.1, "gradient_checkpointing": True, "caption_dropout_p": 0.5},
        {"max_grad_norm": 0.1, "grad_clip_method": "value", "optimizer_type": "optimi-adamw"},
        {"optimizer_args": ["foreach=False"]},
    ],
    ids=["plain", "clipped", "optimi", "no-foreach"],
)
def test_a_step_never_waits_for_the_device(
    hparams: dict[str, Any], valueless: Accelerator, tmp_path: Path
) -> None:
    config, store = prepare(tmp_path, hparams={**WITHOUT_KERNELS, **hparams})
    trainer = Trainer(config, store, valueless, Sharding.NOTHING, 10, None)
    batches = micro_batches(config, store)
    for step in (1, 2):
        gradients = compute_gradients(
            trainer, batches, weight=0.25, hparams=config.hparams, accelerator=valueless
        )
        trainer.update(step)
        assert all(figure.is_meta for figure in (*gradients.losses, gradients.norm))
    assert all(weight.is_meta for weight in trainer.weights.values())


@pytest.mark.parametrize("wait", ["item", "cpu", "tolist", "nonzero", "__bool__", "__float__"])
def test_a_device_without_values_tells_of_waiting(wait: str) -> None:
    loss = torch.ones(1, device=META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        getattr(loss, wait)()


@pytest.mark.gpu
def test_a_step_never_waits_for_a_real_gpu(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, hparams={"lr_warmup_steps": 1, "max_grad_norm": 0.1})
    accelerator = Accelerator()
    try:
        trainer = Trainer(config, store, accelerator, Sharding.NOTHING, 10, None)
        batches = [batch.pin_memory() for batch in micro_batches(config, store)]
        for step in (1, 2, 3):
            # The first step may set up what later ones use.
            torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
            compute_gradients(
                trainer, batches, weight=0.25, hparams=config.hparams, accelerator=accelerator
            )
            trainer.update(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        AcceleratorState._reset_state(reset_partial_state=True)


def test_fetching_figures_seldom_changes_nothing_but_when_they_come(tmp_path: Path) -> None:
    runs = []
    for every in (1, 3, 100):
        config, store = prepare(
            tmp_path / str(every),
            experiment={"log_every_n_steps": every},
            checkpointing={"save_every_n_steps": None},
        )
        run_training(config, store)
        runs.append(run_bytes(store))
    assert runs[0] == runs[1] == runs[2]
    assert len(rows_of(store)) == 4


def test_a_loss_that_was_not_finite_some_steps_ago_is_named_and_never_saved(
    tmp_path: Path,
) -> None:
    config = train_config(
        tmp_path,
        experiment={"log_every_n_steps": 100},
        hparams={"max_train_steps": 12, "lr_warmup_steps": 2},
        checkpointing={"save_every_n_steps": 6},
    )
    store = FolderStore(tmp_path)
    write_latents(store, config, {"32x32x5": 7}, spoil={"32x32x5-3": float("nan")})
    with pytest.raises(BadInput, match=r"loss is not finite at step \d+ \(items 32x32x5-3, "):
        run_training(config, store)
    assert not [path for path in run_bytes(store) if "step-" in path]


def test_steps_are_traced_as_asked_and_the_run_is_the_same(tmp_path: Path) -> None:
    config, store = prepare(tmp_path / "plain")
    run_training(config, store)
    traced, traced_store = prepare(tmp_path / "traced", profiling={"first_step": 2, "num_steps": 2})
    run_training(traced, traced_store)
    path = "runs/test/profile/steps-00000002-00000003-rank0.json.gz"
    events = json.loads(gzip.decompress(traced_store.read(path)))["traceEvents"]
    assert sum("Optimizer.step" in event.get("name", "") for event in events) == 2
    expected = run_bytes(store)
    assert {
        name: data for name, data in run_bytes(traced_store).items() if name != path
    } == expected


def test_a_trace_that_the_run_ends_in_ends_with_the_run(tmp_path: Path) -> None:
    config, store = prepare(tmp_path, profiling={"first_step": 4, "num_steps": 9})
    run_training(config, store)
    assert store.exists("runs/test/profile/steps-00000004-00000004-rank0.json.gz")


@pytest.mark.lengthy
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo's own looking
def test_compiled_blocks_train_to_the_same_losses(tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        config = train_config(
            tmp_path / str(compiled),
            hparams={"compile_blocks": compiled, "max_train_steps": 2, "mixed_precision": "no"},
            validation={"num_items": 0},
        )
        store = FolderStore(tmp_path / str(compiled))
        write_latents(store, config, {"32x32x5": 3})  # one shape: compiling takes a minute
        run_training(config, store)
        losses.append([row["loss"] for row in rows_of(store)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
