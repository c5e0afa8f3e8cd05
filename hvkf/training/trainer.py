"""What is trained: the transformer with its LoRA, the optimizer, and their average and state."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch.distributed.tensor import DTensor

from hvkf.config import Config
from hvkf.errors import BadInput
from hvkf.model.attention import apply_attention
from hvkf.model.frozen import hold_frozen
from hvkf.model.loading import load_transformer
from hvkf.model.lora import add_lora, load_lora_state, lora_state_dict
from hvkf.model.lora_file import read_lora
from hvkf.model.recomputing import in_main_memory, recompute_blocks
from hvkf.model_source import model_folder_or_hub_id
from hvkf.seeds import seed_for
from hvkf.storage import Store
from hvkf.training.checkpoints import Snapshot
from hvkf.training.ema import MovingAverage
from hvkf.training.optimizers import make_optimizer
from hvkf.training.sharding import Sharding, check_sharding, reshard, shard
from hvkf.training.state import (
    Tensors,
    fill,
    load_optimizer,
    load_scheduler_state,
    optimizer_state,
    scheduler_state,
    whole,
)

BASE_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def has_float32_weights(config: Config) -> bool:
    """Whether the LoRA's weights, and so its gradients, are float32 beside a smaller base model.

    fp16 weights would overflow in the optimizer; fp32 gradients are asked for by a setting.
    """
    hparams = config.hparams
    return hparams.mixed_precision == "fp16" or hparams.gradient_precision == "fp32"


class Trainer:
    """The trained weights and all state that changes with a step."""

    def __init__(
        self,
        config: Config,
        store: Store,
        accelerator: Accelerator,
        sharding: Sharding,
        num_steps: int,
        lora_file: Path | None,
    ) -> None:
        hparams = config.hparams
        check_sharding(hparams, sharding)
        self._config = config
        self._accelerator = accelerator
        self._sharding = sharding
        self.dtype = BASE_DTYPES[hparams.mixed_precision]
        self.transformer = _load(config, store, self.dtype, accelerator.device)
        if lora_file is not None:
            _begin_from(self.transformer, lora_file, config)
        self.transformer.train()
        self.model = self._spread()
        self.weights: Tensors = lora_state_dict(self.transformer)
        self._names = {weight: name for name, weight in self.weights.items()}
        optimizer = make_optimizer(
            hparams.optimizer_type,
            list(self._names),  # type: ignore[arg-type]
            hparams.learning_rate,
            hparams.optimizer_args,
        )
        self.scheduler = _make_scheduler(config, optimizer, num_steps)
        self.average = self._make_average()
        self.optimizer = accelerator.prepare(optimizer)

    @property
    def is_sharded(self) -> bool:
        """Whether other ranks hold parts of the state, so that all must join in a snapshot."""
        return self._sharding is not Sharding.NOTHING

    def _spread(self) -> Any:
        """Prepare the transformer for this rank among the others, and for its precision."""
        if not self.is_sharded:
            return self._accelerator.prepare_model(self.transformer)
        model = self._accelerator.prepare_model(self.transformer, evaluation_mode=True)
        shard(self.transformer, self._sharding, self._accelerator.device)
        return model

    def synchronised(self, is_last: bool) -> AbstractContextManager[object]:
        """Exchange gradients between ranks with the last of a step's micro-batches only."""
        if not self.is_sharded:
            return nullcontext() if is_last else self._accelerator.no_sync(self.model)
        self.transformer.set_requires_gradient_sync(is_last)
        return nullcontext()

    @contextmanager
    def evaluated(self) -> Iterator[Any]:
        """Give the transformer as it will be rendered with: the average in place, no dropout."""
        reshard(self.transformer)
        self.transformer.eval()
        with self.average.in_place() if self.average is not None else nullcontext():
            yield self.transformer
            reshard(self.transformer)
        self.transformer.train()

    def _make_average(self) -> MovingAverage | None:
        ema = self._config.hparams.ema
        if not ema.use_ema:
            return None
        return MovingAverage(
            self.weights,
            decay=ema.ema_decay,
            interval=ema.ema_update_interval or 1,
            device="cpu" if ema.ema_device == "cpu" else None,
        )

    def gradient_norm(self) -> torch.Tensor:
        """Clip the gradients as configured and return their norm before that, on the device."""
        self._accelerator.unscale_gradients(self.optimizer)
        weights = [weight for weight in self._names if weight.grad is not None]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        limit = self._config.hparams.max_grad_norm
        if limit > 0 and self._config.hparams.grad_clip_method == "norm":
            torch.nn.utils.clip_grads_with_norm_(weights, limit, norm)
        elif limit > 0:
            torch.nn.utils.clip_grad_value_(weights, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self, step: int) -> None:
        """Let the optimizer, the schedule and the average take step number `step`, from 1."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not self._accelerator.optimizer_step_was_skipped:
            self.scheduler.step()
        if self.average is not None:
            self.average.update(step)

    def snapshot(self) -> Snapshot:
        """Take the whole state; if it is sharded, every rank must call this."""
        weights = {name: whole(weight) for name, weight in self.weights.items()}
        tensors = {"weights": weights}
        lora = weights
        if self.average is not None:
            tensors["ema"] = {name: whole(mean) for name, mean in self.average.shadow.items()}
            lora = {name: mean.to(weights[name].dtype) for name, mean in tensors["ema"].items()}
        state, values = optimizer_state(self.optimizer.optimizer, self._names)
        tensors["optimizer"] = state
        scaler = self._accelerator.scaler
        return Snapshot(
            lora,
            tensors,
            {
                "optimizer": values,
                "scheduler": scheduler_state(self.scheduler),
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a state that `snapshot` took."""
        for name, weight in self.weights.items():
            fill(weight, snapshot.tensors["weights"][name])
        if self.average is not None:
            self.average.load(snapshot.tensors["ema"])
        load_optimizer(
            self.optimizer.optimizer,
            self._names,
            snapshot.tensors["optimizer"],
            snapshot.values["optimizer"],
        )
        load_scheduler_state(self.scheduler, snapshot.values["scheduler"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(snapshot.values["scaler"])


def _load(config: Config, store: Store, dtype: torch.dtype, device: torch.device) -> Any:
    """Load the transformer and add the LoRA, its first values drawn from the run's seed.

    Weights that are to be packed or to wait are loaded into main memory: the GPU may not hold them
    in full.
    """
    model, network, hparams = config.model, config.network, config.hparams
    transformer = load_transformer(
        model_folder_or_hub_id(model, store),
        revision=model.revision,
        variant=model.variant,
        dtype=dtype,
        attention="sdpa" if hparams.holds_frozen_weights else model.attention,
        device="cpu" if hparams.holds_frozen_weights else device,
        trains=True,
    )
    torch.manual_seed(seed_for(config.experiment.random_seed, "lora"))
    trained = add_lora(
        transformer,
        rank=network.lora_rank,
        alpha=network.lora_alpha,
        dropout=network.lora_dropout,
        target=network.target_modules or network.lora_layers,
        init=network.init_lora_weights,
        train_norm_layers=network.train_norm_layers,
    )
    if has_float32_weights(config):
        for weight in trained:
            weight.data = weight.data.float()
    if hparams.holds_frozen_weights:
        hold_frozen(
            transformer,
            hparams.packed_weights,
            waits=hparams.weights_in_main_memory,
            device=device,
        )
        apply_attention(transformer, model.attention, trains=True)
    if hparams.gradient_checkpointing:
        waiting = in_main_memory if hparams.checkpoint_in_main_memory else nullcontext
        recompute_blocks(transformer, hparams.checkpoint_every_n_blocks, waiting)
    if config.hparams.compile_blocks:
        transformer.compile_repeated_blocks()
    return transformer


def _begin_from(transformer: Any, file: Path, config: Config) -> None:
    """Put the weights of a LoRA file in the place of the new ones.

    Raises:
        BadInput: it has another alpha, rank or other layers.
    """
    contents = read_lora(file)
    network = config.network
    for setting, found, wanted in (
        ("lora_rank", contents.rank, network.lora_rank),
        ("lora_alpha", contents.alpha, network.lora_alpha),
    ):
        if found is not None and found != wanted:
            raise BadInput(
                f"{file} has another {setting.removeprefix('lora_')}, {found:g}, than "
                f"network.{setting} {wanted:g}: set that to {found:g} to go on training it."
            )
    if contents.norms and not network.train_norm_layers:
        raise BadInput(
            f"{file} has trained norm weights: set network.train_norm_layers to true to go on "
            "training it."
        )
    load_lora_state(transformer, contents.weights)


def _make_scheduler(config: Config, optimizer: torch.optim.Optimizer, num_steps: int) -> Any:
    hparams = config.hparams
    try:
        return get_scheduler(
            hparams.lr_scheduler,
            optimizer,
            num_warmup_steps=hparams.lr_warmup_steps,
            num_training_steps=num_steps,
            num_cycles=hparams.lr_scheduler_num_cycles,
            power=hparams.lr_scheduler_power,
        )
    except ValueError as fault:
        raise BadInput(
            f"hparams.lr_scheduler {hparams.lr_scheduler!r} cannot be used ({fault}): use "
            "constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial."
        ) from None
